"""Items in users' lists, whether the lists are Arrow's (training sets) or Python's (rows read online)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from recsys_llm.errors import ServiceError
from recsys_llm.retrieval.stored import Cells, Column, Rows

if TYPE_CHECKING:
    from recsys_llm.retrieval.blocks import EntityBlock


class Found(NamedTuple):
    """List elements that are among the items of a block; k of them."""

    codes: Rows
    """int64 (items,): the number of each row's item; rows of one item share it."""
    width: int
    """How many numbers there are, at least 1."""
    owners: Rows
    """int64 (k,): which list each element is in."""
    places: Rows
    """int64 (k,): where in the list, from 0."""
    elements: Rows
    """int64 (k,): the number of the item."""


def find_items(lists: Column, item: EntityBlock, owners: Rows) -> Found:
    """Return the elements of ``lists`` that are items of ``item``.

    Parameters
    ----------
    lists
        Lists of item ids.
    owners
        Distinct rows of ``lists`` that matter.
    """
    return _in_cells(lists, item, owners) if isinstance(lists, Cells) else _in_arrow(lists, item)


def elements_at(lists: Column, rows: Rows, places: Rows, name: str) -> npt.NDArray[np.float32]:
    """Return element ``places[k]`` of list ``rows[k]``; NaN in a list that is missing.

    Raises
    ------
    ServiceError
        A list is shorter than the one it goes with.
    """
    if isinstance(lists, Cells):
        cells = [lists.values[row] for row in rows.tolist()]
        known = np.array([cell is not None for cell in cells], dtype=np.bool_)
        _check_lengths(known, np.array([len(cell or ()) for cell in cells], dtype=np.int64), places, name)
        taken = [np.nan if cell is None else cell[place] for cell, place in zip(cells, places.tolist(), strict=True)]
        return np.array(taken, dtype=np.float32)
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    _check_lengths(lists.is_valid().to_numpy(zero_copy_only=False)[rows], lengths[rows], places, name)
    values = lists.flatten().fill_null(float("nan")).to_numpy(zero_copy_only=False)
    inside = places < lengths[rows]
    elements = np.full(len(rows), np.nan, dtype=np.float32)
    elements[inside] = values[starts[rows[inside]] + places[inside]]
    return elements


def _check_lengths(known: npt.NDArray[np.bool_], lengths: Rows, places: Rows, name: str) -> None:
    if (known & (places >= lengths)).any():
        raise ServiceError(f"{name}: expected lists of one length per row, found a shorter one; recompute the view")


def _in_cells(lists: Cells, item: EntityBlock, owners: Rows) -> Found:
    numbers = item.positions
    codes = np.arange(len(item), dtype=np.int64)
    if len(numbers) < len(item):
        codes = np.array([numbers[id_] for id_ in item.ids], dtype=np.int64)
    found = [
        (owner, place, numbers[id_])
        for owner in owners.tolist()
        for place, id_ in enumerate(lists.values[owner] or ())
        if id_ in numbers
    ]
    columns = np.array(found, dtype=np.int64).reshape(len(found), 3).T
    return Found(codes, max(len(item), 1), columns[0], columns[1], columns[2])


def _in_arrow(lists: Any, item: EntityBlock) -> Found:
    import pyarrow as pa
    import pyarrow.compute as pc

    distinct = pa.array(item.ids, type=pa.string()).dictionary_encode()
    codes = distinct.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    lengths = lists.value_lengths().fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    owners = np.repeat(np.arange(len(lists), dtype=np.int64), lengths)
    places = np.arange(len(owners), dtype=np.int64) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    elements = pc.index_in(lists.flatten(), value_set=distinct.dictionary).fill_null(-1).to_numpy(zero_copy_only=False)
    known = elements >= 0
    width = max(len(distinct.dictionary), 1)
    return Found(codes, width, owners[known], places[known], elements[known].astype(np.int64))
