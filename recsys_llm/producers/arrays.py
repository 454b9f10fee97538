"""Arrow arrays of vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys_llm.storage import VectorStorage


def list_array(matrix: npt.NDArray[np.float32]) -> pa.Array:
    """Return a matrix (n, d) as an Arrow list<float> array of n rows, without copying the values."""
    rows, width = matrix.shape
    offsets = np.arange(rows + 1, dtype=np.int32) * width
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(matrix).reshape(-1), pa.float32()))


def vector_array(vectors: npt.NDArray[np.float32], stored: VectorStorage) -> pa.Array:
    """Return vectors (n, dim) in the form in which a view keeps them: list<float>, or binary with the codes of each."""
    codes = stored.encode(vectors)
    if not stored.is_bytes:
        return list_array(codes)
    offsets = np.arange(len(codes) + 1, dtype=np.int32) * stored.width
    return pa.BinaryArray.from_buffers(
        pa.binary(), len(codes), [None, pa.py_buffer(offsets), pa.py_buffer(codes.tobytes())]
    )


def stored_type(stored: VectorStorage) -> pa.DataType:
    """Return the type of :func:`vector_array`."""
    return pa.binary() if stored.is_bytes else pa.list_(pa.float32())


def first_not_finite(vectors: pa.Array) -> int | None:
    """Return the row of the first list of floats that holds NaN or an infinity; None where there is none."""
    broken = ~np.isfinite(vectors.flatten().to_numpy(zero_copy_only=False))
    return int(pc.list_parent_indices(vectors)[int(broken.argmax())].as_py()) if broken.any() else None


def first_of_other_length(vectors: pa.Array, length: int) -> tuple[int, int] | None:
    """Return the row and the length of the first list that has not ``length`` values; nulls have none."""
    lengths = pc.list_value_length(vectors)
    row = int(pc.index(pc.not_equal(lengths, length), True).as_py())
    return (row, int(lengths[row].as_py())) if row >= 0 else None
