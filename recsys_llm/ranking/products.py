"""Entries and largest entries of products of sparse matrices, by blocks: memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from recsys_llm.ranking.events import Floats, Ints

_CELLS = 4_000_000
"""Dense cells held at once: 16 MB of float32."""


def matrix(rows: Ints, columns: Ints, values: npt.NDArray[Any], height: int, width: int) -> Any:
    """Return float32 CSR (height, width); entries at one place are summed."""
    return sparse.coo_array((values.astype(np.float32), (rows, columns)), shape=(height, width)).tocsr()


def pick(left: Any, right: Any, rows: Ints, columns: Ints) -> Floats:
    """Return chosen entries of ``left @ right``.

    Parameters
    ----------
    left, right : CSR (m, k), (k, w)
    rows, columns : int64 (n,)
        Which entries; a column of -1 is unknown.

    Returns
    -------
    float32 (n,)
        NaN where the column is -1 or the row of ``left`` is empty: nothing is known there.
    """
    result = np.full(len(rows), np.nan, np.float32)
    filled = np.diff(left.indptr) > 0
    wanted = np.flatnonzero((columns >= 0) & filled[rows])
    if (np.diff(rows[wanted]) < 0).any():
        wanted = wanted[np.argsort(rows[wanted], kind="stable")]
    distinct, begins = np.unique(rows[wanted], return_index=True)
    ends = np.append(begins[1:], len(wanted))
    step = max(1, _CELLS // max(1, right.shape[1]))
    for first in range(0, len(distinct), step):
        block = distinct[first : first + step]
        chosen = wanted[begins[first] : ends[first + len(block) - 1]]
        dense = (left[block] @ right).toarray()
        result[chosen] = dense[np.searchsorted(block, rows[chosen]), columns[chosen]]
    return result


def top_products(left: Any, right: Any, scale: Callable[[Any, int], Any], top: int) -> Any:
    """Return CSR ``left.T @ right``, each row cut to its ``top`` largest entries; of equal ones the lower column stays.

    Parameters
    ----------
    scale
        Called with a COO block of rows and the number of its first row; returns the block with its final values.
    """
    transposed, height, width = left.T.tocsr(), left.shape[1], right.shape[1]
    step = max(1, _CELLS // max(1, width))
    blocks = [
        _top(scale((transposed[first : first + step] @ right).tocoo(), first), top) for first in range(0, height, step)
    ]
    return sparse.vstack(blocks, format="csr")


def _top(block: Any, top: int) -> Any:
    rows, columns = block.coords
    order = np.lexsort((columns, -block.data, rows))
    row = rows[order]
    place = np.arange(len(row)) - np.searchsorted(row, row)
    keep = order[place < top]
    return matrix(rows[keep], columns[keep], block.data[keep], *block.shape)
