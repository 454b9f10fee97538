"""Arrow arrays of vectors."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa


def list_array(matrix: npt.NDArray[np.float32]) -> pa.Array:
    """Return a matrix (n, d) as an Arrow list<float> array of n rows, without copying the values."""
    rows, width = matrix.shape
    offsets = np.arange(rows + 1, dtype=np.int32) * width
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(matrix).reshape(-1), pa.float32()))
