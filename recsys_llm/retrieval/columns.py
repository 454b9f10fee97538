"""Columns of features made from Arrow: of training sets, and for those who ask a lookup for Arrow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys_llm.errors import StoreError
from recsys_llm.retrieval.stored import Column, Columns, Kind, Rows, Stored, nulls, take
from recsys_llm.storage import VectorStorage

__all__ = [
    "ARROW_TYPES",
    "Column",
    "Columns",
    "Kind",
    "Rows",
    "Stored",
    "combined",
    "empty",
    "from_arrow",
    "nulls",
    "take",
    "with_missing",
]

ARROW_TYPES: Mapping[Kind, Any] = {
    Kind.STRING: pa.string(),
    Kind.STRINGS: pa.list_(pa.string()),
    Kind.FLOATS: pa.list_(pa.float32()),
    Kind.INTS: pa.list_(pa.int64()),
}


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
