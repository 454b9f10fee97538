"""From the bytes that Feast stores for each value, to columns.

Feast stores a serialised ``ValueProto``. In that of a list of floats, the last 4 x d bytes are the floats themselves,
so equal-length vectors are joined and read in one go; only what doesn't have that form is parsed value by value. The
bytes of a compressed vector end its value in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from feast.protos.feast.types.Value_pb2 import FloatList
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from recsys_llm.errors import StoreError
from recsys_llm.retrieval.columns import ARROW_TYPES, Column, Kind, empty
from recsys_llm.retrieval.service import Feature, View
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
FLOAT_BYTES = 5
"""Bytes of a stored float: one for the field, four for the number."""
FLOAT_TAG = ValueProto(float_val=1.0).SerializeToString()[:1]


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
    StoreError
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
    parsed = [where.parse(value, row) for row, value in enumerate(values)]
    return pa.array(parsed, type=ARROW_TYPES[feature.kind])


class _Where:
    """Parses values of one feature, and knows how to name them."""

    def __init__(self, view: View, feature: Feature, ids: Sequence[str]) -> None:
        self.view, self.feature, self.ids = view, feature, ids
        self.parsed: dict[bytes, Any] = {}

    def parse(self, value: bytes | None, row: int) -> Any:
        """Return a value as Python has it; None where there is none. Equal bytes are parsed once."""
        if not value:
            return None
        if value not in self.parsed:
            self.parsed[value] = self._parse(value, row)
        return self.parsed[value]

    def _parse(self, value: bytes, row: int) -> Any:
        try:
            proto = ValueProto.FromString(value)
        except DecodeError:
            raise self.error(row, f"{len(value)} bytes that are no Feast value (truncated or altered)") from None
        field = proto.WhichOneof("val")
        if field is None or field == "null_val":
            return None
        if field not in (FIELDS[self.feature.kind] if self.feature.storage is None else (BYTES_FIELD,)):
            raise self.error(row, f"a Feast value of type {field}")
        found = getattr(proto, field)
        return list(found.val) if field.endswith("_list_val") else found

    def error(self, row: int, found: str) -> StoreError:
        """Return the error that says what was found instead of a value of this feature."""
        feature = self.feature
        expected = f"a {feature.kind}{f' of length {feature.dimension}' if feature.dimension else ''}"
        if feature.storage is not None:
            expected = f"{feature.storage} in {feature.storage.width} bytes"
        return StoreError(
            f"view {self.view.name}, feature {feature.name}, {self.view.join_key}={self.ids[row]!r}: expected "
            f"{expected}, found {found}; materialise the view again"
        )


def _scalars(values: Sequence[bytes | None], where: _Where) -> npt.NDArray[np.float32]:
    column: npt.NDArray[np.float32] = empty(Kind.SCALAR, len(values))
    floats = [row for row, value in enumerate(values) if value and len(value) == FLOAT_BYTES and value[:1] == FLOAT_TAG]
    if floats:
        packed = b"".join(values[row] or b"" for row in floats)
        numbers = np.frombuffer(packed, dtype=np.uint8).reshape(-1, FLOAT_BYTES)[:, 1:]
        column[floats] = np.ascontiguousarray(numbers).view("<f4")[:, 0]
    if len(floats) < len(values):
        done = set(floats)
        for row, value in enumerate(values):
            if value and row not in done:
                parsed = where.parse(value, row)
                column[row] = np.nan if parsed is None else parsed
    return column


def _vectors(values: Sequence[bytes | None], dimension: int | None, where: _Where) -> npt.NDArray[np.float32]:
    if dimension is None:
        lists = (where.parse(value, row) for row, value in enumerate(values))
        dimension = next((len(found) for found in lists if found is not None), 0)
    column: npt.NDArray[np.float32] = empty(Kind.VECTOR, len(values), dimension)
    packed, tails = _tails(values, _prefix(dimension), 4 * dimension)
    if packed:
        column[packed] = tails.view("<f4")
    if len(packed) < len(values):
        done = set(packed)
        for row, value in enumerate(values):
            if not value or row in done:
                continue
            found = where.parse(value, row)
            if found is None:
                continue
            if len(found) != dimension:
                raise where.error(row, f"one of length {len(found)} where others have {dimension}")
            column[row] = found
    return column


def _stored_vectors(values: Sequence[bytes | None], storage: VectorStorage, where: _Where) -> npt.NDArray[np.float32]:
    column: npt.NDArray[np.float32] = empty(Kind.VECTOR, len(values), storage.dim)
    packed, tails = _tails(values, _bytes_prefix(storage.width), storage.width)
    if packed:
        column[packed] = storage.decode(tails)
    if len(packed) < len(values):
        done = set(packed)
        for row, value in enumerate(values):
            found = None if row in done else where.parse(value, row)
            if found is None:
                continue
            if len(found) != storage.width:
                raise where.error(row, f"{len(found)} bytes")
            column[row] = storage.decode(np.frombuffer(found, np.uint8)[None, :])
    return column


def _tails(values: Sequence[bytes | None], prefix: bytes, length: int) -> tuple[list[int], npt.NDArray[np.uint8]]:
    """Return the rows whose value is ``prefix`` and so many bytes, and these bytes: uint8 (rows, length)."""
    size = len(prefix) + length
    rows = [row for row, value in enumerate(values) if value and len(value) == size and value.startswith(prefix)]
    joined = np.frombuffer(b"".join(values[row] or b"" for row in rows), dtype=np.uint8).reshape(len(rows), size)
    return rows, np.ascontiguousarray(joined[:, len(prefix) :])


@lru_cache(maxsize=64)
def _bytes_prefix(width: int) -> bytes:
    """Return what precedes so many bytes."""
    value: bytes = ValueProto(bytes_val=bytes(width)).SerializeToString()
    return value[: len(value) - width]


@lru_cache(maxsize=64)
def _prefix(dimension: int) -> bytes:
    """Return what precedes the floats of a vector of this length."""
    value: bytes = ValueProto(float_list_val=FloatList(val=[1.0] * dimension)).SerializeToString()
    return value[: len(value) - 4 * dimension]
