"""Feast's stored bytes, read without protobuf: a ``ValueProto``, and the ``Timestamp`` of a Redis row.

A process that serves needs neither Feast nor protobuf for them. tests/retrieval/test_wire.py compares this reading with
protobuf's own, field by field and on altered bytes. The form: https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

VARINT, FIXED64, BYTES, GROUP, END_GROUP, FIXED32 = range(6)
"""Wire types."""
_VARINT_BYTES = 10
_TEXT_TAG = 0x0A

FIELDS: Final[Mapping[int, tuple[str, int]]] = {
    1: ("bytes_val", BYTES),
    2: ("string_val", BYTES),
    3: ("int32_val", VARINT),
    4: ("int64_val", VARINT),
    5: ("double_val", FIXED64),
    6: ("float_val", FIXED32),
    7: ("bool_val", VARINT),
    8: ("unix_timestamp_val", VARINT),
    11: ("bytes_list_val", BYTES),
    12: ("string_list_val", BYTES),
    13: ("int32_list_val", BYTES),
    14: ("int64_list_val", BYTES),
    15: ("double_list_val", BYTES),
    16: ("float_list_val", BYTES),
    17: ("bool_list_val", BYTES),
    18: ("unix_timestamp_list_val", BYTES),
    19: ("null_val", VARINT),
    20: ("map_val", BYTES),
    21: ("map_list_val", BYTES),
    22: ("bytes_set_val", BYTES),
    23: ("string_set_val", BYTES),
    24: ("int32_set_val", BYTES),
    25: ("int64_set_val", BYTES),
    26: ("double_set_val", BYTES),
    27: ("float_set_val", BYTES),
    28: ("bool_set_val", BYTES),
    29: ("unix_timestamp_set_val", BYTES),
    32: ("json_val", BYTES),
    33: ("json_list_val", BYTES),
    34: ("struct_val", BYTES),
    35: ("struct_list_val", BYTES),
    36: ("uuid_val", BYTES),
    37: ("time_uuid_val", BYTES),
    38: ("uuid_list_val", BYTES),
    39: ("time_uuid_list_val", BYTES),
    40: ("uuid_set_val", BYTES),
    41: ("time_uuid_set_val", BYTES),
    42: ("list_val", BYTES),
    43: ("set_val", BYTES),
    44: ("decimal_val", BYTES),
    45: ("decimal_list_val", BYTES),
    46: ("decimal_set_val", BYTES),
    47: ("scalar_map_val", BYTES),
    48: ("zoned_timestamp_val", BYTES),
}
"""Number to name and wire type of what a ``ValueProto`` may hold; one of them at a time."""


class WireError(ValueError):
    """Bytes that protobuf would refuse."""


def parse_value(data: bytes) -> tuple[str | None, Any]:
    r"""Return which field a ``ValueProto`` holds, and its value.

    Returns
    -------
    tuple
        None where nothing is set. The value is an int, float, bool, str, bytes, or a tuple of them; None for fields
        that no feature of a model has (their names are enough for a message).

    Raises
    ------
    WireError
        The bytes are no ``ValueProto``.

    Examples
    --------
    >>> parse_value(b"\x12\x02ab"), parse_value(b"")
    (('string_val', 'ab'), (None, None))
    """
    name: str | None = None
    value: Any = None
    for number, wire, raw in _fields(data):
        found, expected = FIELDS.get(number, (None, wire))
        if found is None or wire != expected:
            continue
        if found in _LISTS:
            values = _list(raw, *_LISTS[found])
            value = value + values if found == name else values  # protobuf merges messages that come twice
        else:
            value = _SINGLE[found](raw) if found in _SINGLE else None
        name = found
    return name, value


def parse_timestamp(data: bytes) -> int:
    """Return the microseconds since the epoch of a ``google.protobuf.Timestamp``.

    Raises
    ------
    WireError
        The bytes are none.
    """
    seconds = nanos = 0
    for number, wire, raw in _fields(data):
        if wire == VARINT and number == 1:
            seconds = _int64(raw)
        elif wire == VARINT and number == 2:
            nanos = _int32(raw)
    return seconds * 1_000_000 + nanos // 1_000


def varint(value: int) -> bytes:
    """Return an unsigned number as protobuf writes it.

    Examples
    --------
    >>> varint(300).hex()
    'ac02'
    """
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def float_list_prefix(length: int) -> bytes:
    """Return what precedes the floats of a ``ValueProto`` with a list of so many."""
    packed = b"\x0a" + varint(4 * length) if length else b""
    return b"\x82\x01" + varint(len(packed) + 4 * length) + packed


def bytes_prefix(width: int) -> bytes:
    """Return what precedes the bytes of a ``ValueProto`` with so many."""
    return b"\x0a" + varint(width)


def _fields(data: bytes) -> Iterator[tuple[int, int, Any]]:
    """Yield number, wire type and raw value of each field; groups, which nothing here has, are passed over."""
    at, groups = 0, []
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise WireError(f"field number {number}")
        raw: Any = None
        if wire == VARINT:
            raw, at = _varint(data, at)
        elif wire in (FIXED64, FIXED32, BYTES):
            length, at = _varint(data, at) if wire == BYTES else ({FIXED64: 8, FIXED32: 4}[wire], at)
            raw, at = data[at : at + length], at + length
            if at > len(data):
                raise WireError("truncated")
        elif wire == GROUP:
            groups.append(number)
        elif wire != END_GROUP or not groups or groups.pop() != number:
            raise WireError(f"wire type {wire}")
        if not groups and wire not in (GROUP, END_GROUP):
            yield number, wire, raw
    if groups:
        raise WireError("truncated")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for place in range(_VARINT_BYTES):
        if at + place >= len(data):
            raise WireError("truncated")
        byte = data[at + place]
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            if value >> 64:
                raise WireError("a number of more than 64 bits")
            return value, at + place + 1
    raise WireError("a number of more than 64 bits")


def _list(data: bytes, wire: int, convert: Callable[[Any], Any], unpack: str | None) -> tuple[Any, ...]:
    """Return the elements of ``repeated T val = 1``: one by one, or packed."""
    if convert is _text and (texts := _short_texts(data)) is not None:
        return texts
    values: list[Any] = []
    for number, found, raw in _fields(data):
        if number != 1:
            continue
        if found == wire:
            values.append(convert(raw))
        elif found == BYTES and unpack is not None:
            if len(raw) % struct.calcsize(unpack):
                raise WireError("truncated")
            values += struct.unpack(f"<{len(raw) // struct.calcsize(unpack)}{unpack[1]}", raw)
        elif found == BYTES and wire == VARINT:
            at = 0
            while at < len(raw):
                value, at = _varint(raw, at)
                values.append(convert(value))
    return tuple(values)


def _short_texts(data: bytes) -> tuple[str, ...] | None:
    """Return the elements of a list of texts of up to 127 bytes, as protobuf writes them; None for any other bytes."""
    texts, at, end = [], 0, len(data)
    while at < end:
        if data[at] != _TEXT_TAG or at + 1 == end or (length := data[at + 1]) >= 0x80:
            return None
        start, at = at + 2, at + 2 + length
        if at > end:
            return None
        texts.append(_text(data[start:at]))
    return tuple(texts)


def _text(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise WireError("no UTF-8") from None


def _int64(raw: int) -> int:
    return raw - (1 << 64) if raw >> 63 else raw


def _int32(raw: int) -> int:
    raw &= 0xFFFFFFFF
    return raw - (1 << 32) if raw >> 31 else raw


def _float(raw: bytes) -> float:
    return float(struct.unpack("<f", raw)[0])


def _double(raw: bytes) -> float:
    return float(struct.unpack("<d", raw)[0])


_SINGLE: Mapping[str, Callable[[Any], Any]] = {
    "bytes_val": bytes,
    "string_val": _text,
    "int32_val": _int32,
    "int64_val": _int64,
    "double_val": _double,
    "float_val": _float,
    "bool_val": bool,
}
_LISTS: Mapping[str, tuple[int, Callable[[Any], Any], str | None]] = {
    "string_list_val": (BYTES, _text, None),
    "int32_list_val": (VARINT, _int32, None),
    "int64_list_val": (VARINT, _int64, None),
    "double_list_val": (FIXED64, _double, "<d"),
    "float_list_val": (FIXED32, _float, "<f"),
}
