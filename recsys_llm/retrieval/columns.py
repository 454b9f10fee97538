"""Columns of features in memory: what kinds there are, and stored values shared by many rows.

A column is one of

- float32 (n,), NaN where the value is null;
- float32 (n, d), a row of NaN where the vector is missing;
- a pyarrow array of strings or lists, null where missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys_llm.errors import StoreError
from recsys_llm.storage import VectorStorage

Column = Any
"""float32 (n,) | float32 (n, d) | pyarrow.Array of string or list."""
Rows = npt.NDArray[np.int64]


class Kind(StrEnum):
    """What a feature is in memory."""

    SCALAR = "scalar"
    """A number: float32 (n,)."""
    VECTOR = "vector"
    """Numbers of one length for all rows: float32 (n, d)."""
    STRING = "string"
    STRINGS = "strings"
    """A list of strings, of any length."""
    FLOATS = "floats"
    """A list of float32, of any length."""
    INTS = "ints"
    """A list of int64, of any length."""


ARROW_TYPES: Mapping[Kind, Any] = {
    Kind.STRING: pa.string(),
    Kind.STRINGS: pa.list_(pa.string()),
    Kind.FLOATS: pa.list_(pa.float32()),
    Kind.INTS: pa.list_(pa.int64()),
}


@dataclass(frozen=True, eq=False)
class Stored:
    """Values kept once, and which of them each row has.

    ``values`` ends with one extra row that stands for missing: NaN, or null.
    """

    values: Column
    rows: Rows
    """int64 (n,): position in ``values``."""

    def gather(self) -> Column:
        """Return the column, one value per row."""
        return take(self.values, self.rows)


@dataclass(frozen=True, eq=False)
class Columns(Mapping[str, Column]):
    """Columns by full feature name; those that are :class:`Stored` are gathered when asked for."""

    plain: Mapping[str, Column] = field(default_factory=dict)
    shared: Mapping[str, Stored] = field(default_factory=dict)
    order: tuple[str, ...] | None = None
    """All names, in the order of the service; None: the plain ones, then the shared ones."""

    def __getitem__(self, name: str) -> Column:
        return self.shared[name].gather() if name in self.shared else self.plain[name]

    def __contains__(self, name: object) -> bool:
        return name in self.shared or name in self.plain

    def __iter__(self) -> Iterator[str]:
        yield from (*self.plain, *self.shared) if self.order is None else self.order

    def __len__(self) -> int:
        return len(self.plain) + len(self.shared)


def take(column: Column, rows: Rows) -> Column:
    """Return ``column`` at ``rows``; contiguous, and faster than indexing."""
    if isinstance(column, np.ndarray):
        return np.take(column, rows, axis=0)
    return column.take(pa.array(rows))


def nulls(column: Column) -> npt.NDArray[np.bool_]:
    """Return bool (n,): which rows have no value. A vector counts as missing when all of it is NaN."""
    if not isinstance(column, np.ndarray):
        missing: npt.NDArray[np.bool_] = column.is_null().to_numpy(zero_copy_only=False)
        return missing
    if column.ndim == 1:
        return np.isnan(column)
    return np.asarray(np.isnan(column).all(axis=1), dtype=np.bool_)


def blank(column: Column, where: npt.NDArray[np.bool_]) -> Column:
    """Return ``column`` with the rows of ``where`` (bool (n,)) missing."""
    if not where.any():
        return column
    if isinstance(column, np.ndarray):
        mask = where if column.ndim == 1 else where[:, None]
        return np.where(mask, np.float32(np.nan), column)
    rows = np.arange(len(column))
    return column.take(pa.array(rows, mask=where))


def empty(kind: Kind, n: int, dimension: int = 0) -> Column:
    """Return a column of ``n`` missing values."""
    if kind is Kind.SCALAR:
        return np.full(n, np.nan, dtype=np.float32)
    if kind is Kind.VECTOR:
        return np.full((n, dimension), np.nan, dtype=np.float32)
    return pa.nulls(n, ARROW_TYPES[kind])


def with_missing(column: Column) -> Column:
    """Return ``column`` with one more row, a missing one, at the end."""
    if isinstance(column, np.ndarray):
        tail = np.full((1, *column.shape[1:]), np.nan, dtype=np.float32)
        return np.concatenate([column, tail])
    return pa.concat_arrays([column, pa.nulls(1, column.type)])


def combined(array: Any) -> Any:
    """Return a pyarrow array from an array or a chunked one."""
    if isinstance(array, pa.ChunkedArray):
        return array.combine_chunks() if array.num_chunks != 1 else array.chunk(0)
    return array


def from_arrow(
    array: Any, kind: Kind, *, name: str, dimension: int | None = None, storage: VectorStorage | None = None
) -> Column:
    """Return an Arrow column as a column of ``kind``.

    Parameters
    ----------
    array
        pyarrow array or chunked array.
    name
        Of the feature, for messages.
    dimension
        Length of vectors; None: that of the first one.
    storage
        Of vectors that are stored as bytes.

    Raises
    ------
    StoreError
        A vector has another length.
    """
    array = combined(array)
    if storage is not None:
        return _stored_vectors(array, storage, name=name)
    if kind is Kind.VECTOR:
        return _vectors(array, name=name, dimension=dimension)
    if kind is not Kind.SCALAR:
        return array.cast(ARROW_TYPES[kind])
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    floats = array.cast(pa.float32(), safe=False)
    values: npt.NDArray[np.float32] = floats.fill_null(float("nan")).to_numpy(zero_copy_only=False)
    return values


def _vectors(array: Any, *, name: str, dimension: int | None) -> npt.NDArray[np.float32]:
    """Return lists of floats as float32 (n, d); null lists are rows of NaN, null elements NaN."""
    known = array.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(array.type):
        array = array.cast(pa.list_(array.type.value_type))
    lengths = array.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)[known]
    if dimension is None:
        dimension = int(lengths[0]) if len(lengths) else 0
    wrong = np.flatnonzero(lengths != dimension)
    if len(wrong):
        raise StoreError(
            f"{name}: expected vectors of length {dimension}, found one of length {int(lengths[wrong[0]])}; "
            "vectors of two models don't belong in one view: use a view of a new version"
        )
    flat = array.flatten().cast(pa.float32(), safe=False)
    values = (flat.fill_null(float("nan")) if flat.null_count else flat).to_numpy(zero_copy_only=False)
    if known.all():
        filled: npt.NDArray[np.float32] = values.reshape(len(lengths), dimension)
        return filled
    vectors = np.full((len(array), dimension), np.nan, dtype=np.float32)
    vectors[known] = values.reshape(len(lengths), dimension)
    return vectors


def _stored_vectors(array: Any, storage: VectorStorage, *, name: str) -> npt.NDArray[np.float32]:
    """Return bytes as float32 (n, d); nulls are rows of NaN."""
    known = array.is_valid().to_numpy(zero_copy_only=False)
    values = array.drop_null().to_pylist()
    wrong = next((len(value) for value in values if len(value) != storage.width), None)
    if wrong is not None:
        raise StoreError(
            f"{name}: expected {storage} in {storage.width} bytes, found {wrong} bytes; vectors of two models don't "
            "belong in one view: use a view of a new version"
        )
    vectors = np.full((len(array), storage.dim), np.nan, dtype=np.float32)
    vectors[known] = storage.decode(np.frombuffer(b"".join(values), np.uint8).reshape(len(values), storage.width))
    return vectors
