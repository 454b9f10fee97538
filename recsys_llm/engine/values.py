"""Feature values as Feast stores them, made from whole Arrow columns.

Feast keeps each value as a serialised ``Value`` message. For most types that is a constant tag before the bytes that
Arrow holds anyway, so no message object is built::

    Float32 0.5            tag 3d | 00 00 00 3f
    String "ab"            tag 12 | length 02 | 61 62
    Array(Float32) [.., ]  tag 82 01 | length of what follows | 0a | length | the packed floats

tests/engine/test_values.py compares each type with what Feast makes of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from feast import ValueType
from feast.infra.online_stores.helpers import extract_text_and_num
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from feast.type_map import python_values_to_proto_values

VARINT, FIXED64, DELIMITED, FIXED32 = 0, 1, 2, 5
"""Wire types of protobuf."""
NULL = b""
"""A ``Value`` without a value."""

Bounds = npt.NDArray[np.int64]

_SCALARS: Mapping[Any, tuple[str, Any, int]] = {
    ValueType.FLOAT: ("float_val", pa.float32(), FIXED32),
    ValueType.DOUBLE: ("double_val", pa.float64(), FIXED64),
    ValueType.INT32: ("int32_val", pa.int32(), VARINT),
    ValueType.INT64: ("int64_val", pa.int64(), VARINT),
    ValueType.BOOL: ("bool_val", pa.bool_(), VARINT),
    ValueType.STRING: ("string_val", pa.string(), DELIMITED),
    ValueType.BYTES: ("bytes_val", pa.binary(), DELIMITED),
}
_LISTS: Mapping[Any, tuple[str, Any]] = {
    ValueType.FLOAT_LIST: ("float_list_val", pa.float32()),
    ValueType.DOUBLE_LIST: ("double_list_val", pa.float64()),
    ValueType.INT32_LIST: ("int32_list_val", pa.int32()),
    ValueType.INT64_LIST: ("int64_list_val", pa.int64()),
    ValueType.BOOL_LIST: ("bool_list_val", pa.bool_()),
    ValueType.STRING_LIST: ("string_list_val", pa.string()),
    ValueType.BYTES_LIST: ("bytes_list_val", pa.binary()),
}


def stored_values(column: Any, value_type: Any) -> list[bytes]:
    """Return what Feast stores of each value of a column.

    Parameters
    ----------
    column : pyarrow array (n,)
    value_type
        ``feast.ValueType`` of the feature.

    Returns
    -------
    list of n bytes
        Those of Feast's own conversion. A null and a NaN are a ``Value`` without a value, as there; but an integer
        beside a null keeps all of its digits, which Feast loses from 2**53 on.
    """
    if value_type in _SCALARS:
        field, expected, wire = _SCALARS[value_type]
        if column.type == expected:
            return _scalars(column, _tag(field, wire))
    if value_type in _LISTS:
        field, element = _LISTS[value_type]
        if column.type == pa.list_(element) and column.flatten().null_count == 0:
            return _lists(column, _tag(field, DELIMITED))
    # Feast's other types, and columns of another type than the feature: its own conversion knows what they mean.
    values = python_values_to_proto_values(column.to_numpy(zero_copy_only=False), value_type)
    return [value.SerializeToString() for value in values]


def stored_texts(column: Any, value_type: Any, values: Sequence[bytes]) -> Sequence[str | None]:
    """Return the readable form that Feast's SQL stores keep beside a number or a string; None for all else.

    Parameters
    ----------
    values
        Those of :func:`stored_values`.
    """
    if value_type in _LISTS or value_type == ValueType.BYTES:
        return [None] * len(column)
    if value_type not in _SCALARS or column.type != _SCALARS[value_type][1]:
        return [extract_text_and_num(ValueProto.FromString(value), False)[0] for value in values]
    found = column.to_numpy(zero_copy_only=False).tolist() if not column.null_count else column.to_pylist()
    return [None if value is None or value != value else str(value) for value in found]


def _scalars(column: Any, tag: bytes) -> list[bytes]:
    known = column.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_floating(column.type):
        known = known & ~np.isnan(column.fill_null(float("nan")).to_numpy(zero_copy_only=False))
    values = column if known.all() else column.filter(pa.array(known))
    if _is_text(column.type):
        encoded = _delimited(values, tag)
    else:
        raw, bounds = _packed(values)
        encoded = [tag + raw[start:end] for start, end in _spans(bounds)]
    return encoded if len(encoded) == len(column) else _spread(encoded, known)


def _lists(column: Any, tag: bytes) -> list[bytes]:
    known = column.is_valid().to_numpy(zero_copy_only=False)
    lengths = column.value_lengths().drop_null().to_numpy(zero_copy_only=False)
    raw, places = _elements(column.flatten())
    bounds = places[np.concatenate([[0], np.cumsum(lengths)])]
    packed = not _is_text(column.type.value_type)
    heads = {size: tag + _list_head(size, packed=packed) for size in set(np.diff(bounds).tolist())}
    encoded = [heads[end - start] + raw[start:end] for start, end in _spans(bounds)]
    return encoded if len(encoded) == len(column) else _spread(encoded, known)


def _elements(values: Any) -> tuple[bytes, Bounds]:
    """Return the bytes of list elements one after the other, and where each starts."""
    if not _is_text(values.type):
        return _packed(values)
    encoded = _delimited(values, _key(1, DELIMITED))
    lengths = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    return b"".join(encoded), np.concatenate([[0], np.cumsum(lengths)])


def _list_head(size: int, *, packed: bool) -> bytes:
    """Return what stands between the tag of a list of ``size`` bytes and its elements."""
    inner = _key(1, DELIMITED) + _varint(size) if packed and size else b""
    return _varint(len(inner) + size) + inner


def _packed(values: Any) -> tuple[bytes, Bounds]:
    """Return numbers without nulls as protobuf packs them, and where each starts; the end last."""
    if pa.types.is_integer(values.type):
        return _varints(values.to_numpy(zero_copy_only=False).astype(np.int64))
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    numbers = values.to_numpy(zero_copy_only=False)
    # Both are little-endian whatever the machine is.
    return numbers.astype(numbers.dtype.newbyteorder("<")).tobytes(), np.arange(len(numbers) + 1) * numbers.itemsize


def _varints(values: npt.NDArray[np.int64]) -> tuple[bytes, Bounds]:
    """Return integers in groups of seven bits, the lowest first; negative ones take ten groups."""
    rest = values.view(np.uint64).copy()
    groups = np.empty((len(values), 10), dtype=np.uint8)
    lengths = np.ones(len(values), dtype=np.int64)
    for place in range(10):
        groups[:, place] = rest & np.uint64(0x7F)
        rest >>= np.uint64(7)
        groups[:, place] |= np.where(rest > 0, 0x80, 0).astype(np.uint8)
        lengths += rest > 0
    used = np.arange(10) < lengths[:, None]
    return groups[used].tobytes(), np.concatenate([[0], np.cumsum(lengths)])


def _delimited(values: Any, tag: bytes) -> list[bytes]:
    texts: Iterable[bytes] = values.cast(pa.binary()).to_numpy(zero_copy_only=False).tolist()
    return [tag + _varint(len(text)) + text for text in texts]


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind))


def _spans(bounds: Bounds) -> Iterable[tuple[int, int]]:
    places = bounds.tolist()
    return zip(places[:-1], places[1:], strict=True)


def _spread(encoded: list[bytes], known: npt.NDArray[np.bool_]) -> list[bytes]:
    """Return a value for each row: the next one where it is known, else a null."""
    remaining = iter(encoded)
    return [next(remaining) if one else NULL for one in known.tolist()]


def _tag(field: str, wire: int) -> bytes:
    return _key(ValueProto.DESCRIPTOR.fields_by_name[field].number, wire)


def _key(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


@cache
def _varint(value: int) -> bytes:
    return _varints(np.array([value], dtype=np.int64))[0]
