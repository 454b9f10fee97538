"""Arrow arrays of vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

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
