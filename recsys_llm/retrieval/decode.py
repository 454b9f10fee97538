"""From the bytes that Feast stores for each value, to columns.

Feast stores a serialised ``ValueProto``. In that of a list of floats, the last 4 x d bytes are the floats themselves,
so equal-length vectors are joined and read in one go, as are numbers and timestamps; only what doesn't have the form
that protobuf writes is parsed value by value. The bytes of a compressed vector end its value in the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys_llm.errors import LayoutError
from recsys_llm.retrieval.reply_table import EqualValues
from recsys_llm.retrieval.service import Feature, View
from recsys_llm.retrieval.stored import Cells, Column, Kind
from recsys_llm.retrieval.wire import WireError, bytes_prefix, float_list_prefix, parse_timestamp, parse_value
from recsys_llm.storage import VectorStorage

FIELDS = {
    Kind.SCALAR: ("float_val", "double_val", "int64_val", "int32_val", "bool_val"),
    Kind.STRING: ("string_val",),
    Kind.VECTOR: ("float_list_val", "double_list_val"),
    Kind.FLOATS: ("float_list_val", "double_list_val"),
    Kind.INTS: ("int64_list_val", "int32_list_val"),
    Kind.STRINGS: ("string_list_val",),
}
"""Which fields of a ``ValueProto`` may hold a feature of each kind."""
BYTES_FIELD = "bytes_val"
"""The field of a vector that is stored as bytes."""

FLOAT_TAG, DOUBLE_TAG, INT64_TAG, INT32_TAG, BOOL_TAG = 0x35, 0x29, 0x20, 0x18, 0x38
"""The byte before a number of each type."""
FLOAT_BYTES, DOUBLE_BYTES, LONGEST_NUMBER = 5, 9, 11
"""Bytes of a stored number; the longest is an int64 below zero."""
SECONDS_TAG, NANOS_TAG, SECONDS_BYTES, LONGEST_STAMP = 0x08, 0x10, 5, 12
"""Of a timestamp from 1978 to 3058: a tag, five bytes of seconds; unless 0, a tag and up to five of nanoseconds."""
FEW = 8
"""Up to so many values are read faster one by one."""
NO_ROW = 0
"""Timestamp of a row that isn't there: Redis has no other way to say so than the epoch."""

Bytes = npt.NDArray[np.uint8]


def decode(values: Sequence[bytes | None], view: View, feature: Feature, ids: Sequence[str]) -> Column:
    """Return one feature of n entities.

    Parameters
    ----------
    values
        Serialised values, n of them; None or empty where there is none.
    view, feature
        What they are.
    ids
        Entity keys, n of them, for messages.

    Raises
    ------
    LayoutError
        Bytes are no value of this feature's type, or a vector has another length; the message names view, feature
        and key.
    """
    where = _Where(view, feature, ids)
    if feature.storage is not None:
        return _stored_vectors(values, feature.storage, where)
    if feature.kind is Kind.VECTOR:
        return _vectors(values, feature.dimension, where)
    if feature.kind is Kind.SCALAR:
        return _scalars(values, where)
    return Cells.of(feature.kind, [where.parse(value, row) for row, value in enumerate(values)])


def decode_timestamps(values: Sequence[bytes | None], view: View, ids: Sequence[str]) -> npt.NDArray[np.int64]:
    """Return the times of Redis rows: int64 (n,), microseconds since the epoch; :data:`NO_ROW` where there is none.

    Parameters
    ----------
    values
        Serialised ``google.protobuf.Timestamp``, n of them; None or empty where there is no row.

    Raises
    ------
    LayoutError
        Bytes are no timestamp; the message names view and key.
    """
    stamps: Sequence[bytes] = values if isinstance(values, EqualValues) else [value or b"" for value in values]
    micros = np.full(len(stamps), NO_ROW, dtype=np.int64)
    if len(stamps) <= FEW:
        _parse_timestamps(stamps, range(len(stamps)), micros, view, ids)
        return micros
    if (whole := _whole_seconds(stamps)) is not None:
        return whole
    lengths, table = _table(stamps, LONGEST_STAMP)
    digits = (table & 0x7F).astype(np.int64)
    goes_on = table >= 0x80
    seconds = digits[:, 1 : 1 + SECONDS_BYTES] @ _PLACES[:SECONDS_BYTES]
    nanos = digits[:, 7:] @ _PLACES[:5]  # beyond a value's end there are zeros
    places = np.arange(7, LONGEST_STAMP)
    plain = (table[:, 0] == SECONDS_TAG) & goes_on[:, 1:SECONDS_BYTES].all(axis=1) & ~goes_on[:, SECONDS_BYTES]
    plain &= nanos < 1 << 31  # an int32
    plain &= (lengths == 6) | ((lengths > 7) & (table[:, 6] == NANOS_TAG))
    plain &= (goes_on[:, 7:] == (places < lengths[:, None] - 1)).all(axis=1)
    micros[plain] = seconds[plain] * 1_000_000 + nanos[plain] // 1_000
    _parse_timestamps(stamps, np.flatnonzero(~plain & (lengths > 0)).tolist(), micros, view, ids)
    return micros


def _whole_seconds(stamps: Sequence[bytes]) -> npt.NDArray[np.int64] | None:
    """Return the times of timestamps without nanoseconds; None unless all are of that form."""
    if not isinstance(stamps, EqualValues) or stamps.table.shape[1] != 1 + SECONDS_BYTES:
        return None
    padded = np.zeros((len(stamps), 8), dtype=np.uint8)
    padded[:, : 1 + SECONDS_BYTES] = stamps.table
    numbers = padded.view("<i8")[:, 0]
    if ((numbers & _SECONDS_FORM) != _SECONDS_TAGS).any():
        return None
    seconds = (numbers >> 8) & 0x7F
    for place in range(1, SECONDS_BYTES):
        seconds |= ((numbers >> 8 * (place + 1)) & 0x7F) << 7 * place
    micros: npt.NDArray[np.int64] = seconds * 1_000_000
    return micros


def _parse_timestamps(
    stamps: Sequence[bytes], rows: Iterable[int], micros: npt.NDArray[np.int64], view: View, ids: Sequence[str]
) -> None:
    """Fill in ``micros`` at ``rows``, one by one."""
    for row in rows:
        try:
            micros[row] = _one_timestamp(stamps[row]) if stamps[row] else NO_ROW
        except (WireError, OverflowError):
            raise LayoutError(
                f"view {view.name}, {view.join_key}={ids[row]!r}: expected a timestamp, found {stamps[row][:32]!r}; "
                "materialise it again"
            ) from None


def _one_timestamp(stamp: bytes) -> int:
    """Return what :func:`parse_timestamp` returns; sooner for whole seconds."""
    number = int.from_bytes(stamp, "little")
    if len(stamp) != 1 + SECONDS_BYTES or number & _SECONDS_FORM != _SECONDS_TAGS:
        return parse_timestamp(stamp)
    return sum((stamp[place + 1] & 0x7F) << 7 * place for place in range(SECONDS_BYTES)) * 1_000_000


class _Where:
    """Parses values of one feature, and knows how to name them."""

    def __init__(self, view: View, feature: Feature, ids: Sequence[str]) -> None:
        self.view, self.feature, self.ids = view, feature, ids
        self.parsed: dict[bytes, Any] = {}

    def parse(self, value: bytes | None, row: int) -> Any:
        """Return a value as Python has it, lists as tuples; None where there is none. Equal bytes are parsed once."""
        if not value:
            return None
        if value not in self.parsed:
            self.parsed[value] = self._parse(value, row)
        return self.parsed[value]

    def _parse(self, value: bytes, row: int) -> Any:
        try:
            field, found = parse_value(value)
        except WireError:
            raise self.error(row, f"{len(value)} bytes that are no Feast value (truncated or altered)") from None
        if field is None or field == "null_val":
            return None
        if field not in (FIELDS[self.feature.kind] if self.feature.storage is None else (BYTES_FIELD,)):
            raise self.error(row, f"a Feast value of type {field}")
        if field == "double_list_val":
            with np.errstate(over="ignore"):  # as Arrow: what no float32 holds is infinite
                return tuple(np.array(found, dtype=np.float64).astype(np.float32).tolist())
        return found

    def error(self, row: int, found: str) -> LayoutError:
        """Return the error that says what was found instead of a value of this feature."""
        feature = self.feature
        expected = f"a {feature.kind}{f' of length {feature.dimension}' if feature.dimension else ''}"
        if feature.storage is not None:
            expected = f"{feature.storage} in {feature.storage.width} bytes"
        return LayoutError(
            f"view {self.view.name}, feature {feature.name}, {self.view.join_key}={self.ids[row]!r}: expected "
            f"{expected}, found {found}; materialise the view again"
        )


def _scalars(values: Sequence[bytes | None], where: _Where) -> npt.NDArray[np.float32]:
    packed = _packed(values, _FLOAT_PREFIX, FLOAT_BYTES - 1)
    if packed is not None:
        return packed.view("<f4")[:, 0]
    stored = [value or b"" for value in values]
    lengths, table = _table(stored, LONGEST_NUMBER)
    tags, column = table[:, 0], np.full(len(values), np.nan, dtype=np.float32)
    known = lengths == 0

    floats = (tags == FLOAT_TAG) & (lengths == FLOAT_BYTES)
    column[floats] = table[floats, 1:FLOAT_BYTES].copy().view("<f4")[:, 0]
    doubles = (tags == DOUBLE_TAG) & (lengths == DOUBLE_BYTES)
    with np.errstate(over="ignore"):
        column[doubles] = table[doubles, 1:DOUBLE_BYTES].copy().view("<f8")[:, 0]
    known |= floats | doubles

    # A varint is whole when all bytes but its last go on; ten of them hold 64 bits when the last is 1.
    goes_on = table[:, 1:] >= 0x80
    varints = (goes_on == (np.arange(1, LONGEST_NUMBER) < lengths[:, None] - 1)).all(axis=1)
    varints &= (lengths > 1) & (table[:, 10] <= 1)
    numbers = (table[:, 1:] & 0x7F).astype(np.uint64) @ _PLACES.astype(np.uint64)
    for tag, kind in ((INT64_TAG, np.int64), (INT32_TAG, np.int32), (BOOL_TAG, np.bool_)):
        rows = varints & (tags == tag)
        # By way of float64, as Python's own numbers go to float32.
        column[rows] = numbers[rows].astype(kind).astype(np.float64)
        known |= rows

    for row in np.flatnonzero(~known).tolist():
        parsed = where.parse(stored[row], row)
        column[row] = np.nan if parsed is None else parsed
    return column


def _vectors(values: Sequence[bytes | None], dimension: int | None, where: _Where) -> npt.NDArray[np.float32]:
    if dimension is None:
        lists = (where.parse(value, row) for row, value in enumerate(values))
        dimension = next((len(found) for found in lists if found is not None), 0)
    prefix = _float_list_prefix(dimension)
    packed = _packed(values, prefix, 4 * dimension)
    if packed is not None:
        return packed.view("<f4")
    column = np.full((len(values), dimension), np.nan, dtype=np.float32)
    rows, tails = _tails(values, prefix, 4 * dimension)
    column[rows] = tails.view("<f4")
    for row, found in _others(values, rows, where):
        if len(found) != dimension:
            raise where.error(row, f"one of length {len(found)} where others have {dimension}")
        column[row] = found
    return column


def _stored_vectors(values: Sequence[bytes | None], storage: VectorStorage, where: _Where) -> npt.NDArray[np.float32]:
    prefix = _bytes_prefix(storage.width)
    packed = _packed(values, prefix, storage.width)
    if packed is not None:
        return storage.decode(packed)
    column = np.full((len(values), storage.dim), np.nan, dtype=np.float32)
    rows, tails = _tails(values, prefix, storage.width)
    column[rows] = storage.decode(tails)
    for row, found in _others(values, rows, where):
        if len(found) != storage.width:
            raise where.error(row, f"{len(found)} bytes")
        column[row] = storage.decode(np.frombuffer(found, np.uint8)[None, :])
    return column


def _packed(values: Sequence[bytes | None], prefix: bytes, length: int) -> Bytes | None:
    """Return the bytes after ``prefix`` of each value, uint8 (n, length); None unless all values have this form."""
    size = len(prefix) + length
    if isinstance(values, EqualValues):
        return _after(values.table, prefix) if length and values.table.shape[1] == size else None
    if len(values) <= FEW:
        if not length or not all(value and len(value) == size and value.startswith(prefix) for value in values):
            return None
        tails = bytearray(b"".join([value[len(prefix) :] for value in values if value]))
        return np.frombuffer(tails, dtype=np.uint8).reshape(-1, length)
    try:
        lengths = list(map(len, values))  # type: ignore[arg-type]
    except TypeError:  # None: no value
        return None
    if not length or lengths.count(size) != len(values):
        return None
    return _after(np.frombuffer(b"".join(values), dtype=np.uint8).reshape(-1, size), prefix)  # type: ignore[arg-type]


def _after(table: Bytes, prefix: bytes) -> Bytes | None:
    """Return what comes after ``prefix`` in each row; None where a row starts with something else."""
    if not (table[:, : len(prefix)] == np.frombuffer(prefix, dtype=np.uint8)).all():
        return None
    return table[:, len(prefix) :].copy()


def _tails(values: Sequence[bytes | None], prefix: bytes, length: int) -> tuple[list[int], Bytes]:
    """Return the rows whose value is ``prefix`` and so many bytes, and these bytes: uint8 (rows, length)."""
    size = len(prefix) + length
    rows = [row for row, value in enumerate(values) if value and len(value) == size and value.startswith(prefix)]
    joined = np.frombuffer(b"".join([values[row] or b"" for row in rows]), dtype=np.uint8).reshape(len(rows), size)
    return rows, joined[:, len(prefix) :].copy()


def _others(values: Sequence[bytes | None], rows: list[int], where: _Where) -> list[tuple[int, Any]]:
    """Return the values that are not in ``rows``, parsed one by one."""
    done = set(rows)
    parsed = [(row, where.parse(value, row)) for row, value in enumerate(values) if value and row not in done]
    return [(row, found) for row, found in parsed if found is not None]


def _table(values: Sequence[bytes], width: int) -> tuple[npt.NDArray[np.int64], Bytes]:
    """Return the lengths of short values, and their bytes with zeros behind; of a longer one, zeros only."""
    if isinstance(values, EqualValues):
        length = values.table.shape[1]
        table = np.zeros((len(values), width), dtype=np.uint8)
        if length <= width:
            table[:, :length] = values.table
        return np.full(len(values), length, dtype=np.int64), table
    lengths = np.array(list(map(len, values)), dtype=np.int64)
    if len(values) and lengths[0] <= width and (lengths == lengths[0]).all():
        table = np.zeros((len(values), width), dtype=np.uint8)
        table[:, : lengths[0]] = np.frombuffer(b"".join(values), dtype=np.uint8).reshape(len(values), -1)
        return lengths, table
    padded = [value.ljust(width, b"\0") if len(value) <= width else bytes(width) for value in values]
    return lengths, np.frombuffer(b"".join(padded), dtype=np.uint8).reshape(len(values), width)


_FLOAT_PREFIX = bytes([FLOAT_TAG])
_SECONDS_FORM = int.from_bytes(b"\xff" + b"\x80" * SECONDS_BYTES, "little")
_SECONDS_TAGS = int.from_bytes(bytes([SECONDS_TAG]) + b"\x80" * (SECONDS_BYTES - 1), "little")
"""The bits of such a timestamp that say its form: the tag, and which bytes go on."""
_PLACES = np.array([1 << 7 * place for place in range(9)] + [-(1 << 63)], dtype=np.int64)
"""What each byte of a varint counts; the tenth stands for bit 63."""
_bytes_prefix = lru_cache(maxsize=64)(bytes_prefix)
_float_list_prefix = lru_cache(maxsize=64)(float_list_prefix)
