"""What stands in for rows that a user lacks, without pandas: the one rule for training and for serving."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from recsys_llm.errors import StoreError
from recsys_llm.retrieval.blocks import EntityBlock, Status
from recsys_llm.retrieval.service import View
from recsys_llm.retrieval.stored import Cells, Column, Columns, Rows, Stored
from recsys_llm.schema import GLOBAL_USER, segment_user


def cold_views(views: Sequence[View]) -> tuple[View, ...]:
    """Return the views that have rows for cold users."""
    return tuple(view for view in views if view.has_cold_rows)


def lacks_row(block: EntityBlock, views: Sequence[View]) -> npt.NDArray[np.bool_]:
    """Return bool (n,): who has no row, or one past its ttl, in any of ``views``."""
    lacking = np.zeros(len(block), dtype=np.bool_)
    for view in views:
        lacking |= block.status[view.name] != Status.PRESENT
    return lacking


def filled_now(
    users: EntityBlock,
    views: Sequence[View],
    segments: Sequence[str | None],
    read: Callable[[tuple[str, ...]], EntityBlock],
) -> EntityBlock:
    """Return the block of users with what stands in for missing rows.

    Parameters
    ----------
    users
        n rows.
    views
        Those with rows for cold users.
    segments
        Of each user, n of them; None: not known.
    read
        From reserved user ids to their rows in ``views``; asked once, and only where a user lacks a row.
    """
    lacking = np.flatnonzero(lacks_row(users, views)).tolist()
    if not lacking:
        return users
    named = {segment for row in lacking if (segment := segments[row])}
    ids = (*(segment_user(segment) for segment in sorted(named)), GLOBAL_USER)
    place = {id_: number for number, id_ in enumerate(ids)}
    choices = np.full((2, len(users)), -1, dtype=np.int64)
    choices[1, lacking] = place[GLOBAL_USER]
    for row in lacking:
        if segment := segments[row]:
            choices[0, row] = place[segment_user(segment)]
    return filled(users, views, read(ids), list(choices))


def filled(own: EntityBlock, views: Sequence[View], other: EntityBlock, choices: Sequence[Rows]) -> EntityBlock:
    """Return ``own`` with rows of ``other`` where it has none.

    Parameters
    ----------
    choices
        For each preference, the best first: int64 (n,), the row of ``other`` that each row would take; -1: none.
    """
    plain, shared = _parts(own.columns)
    status, timestamps = dict(own.status), dict(own.timestamps)
    for view in views:
        rows = np.full(len(own), -1, dtype=np.int64)
        for choice in reversed(choices):
            known = (choice >= 0) & (other.status[view.name][choice] == Status.PRESENT)
            rows[known] = choice[known]
        rows[own.status[view.name] == Status.PRESENT] = -1
        if (rows < 0).all():
            continue
        for feature in view.features:
            merged = _merged(own.stored(feature.column), other.stored(feature.column), rows, feature.column)
            if feature.column in shared:
                shared[feature.column] = merged
            else:
                plain[feature.column] = merged.gather()
        status[view.name] = np.where(rows >= 0, Status.FALLBACK, own.status[view.name]).astype(np.uint8)
        if view.name in timestamps:
            timestamps[view.name] = np.where(rows >= 0, other.timestamps[view.name][rows], own.timestamps[view.name])
    return EntityBlock(own.entity, own.ids, Columns(plain, shared, tuple(own.columns)), status, timestamps)


def _parts(columns: Mapping[str, Column]) -> tuple[dict[str, Column], dict[str, Stored]]:
    if isinstance(columns, Columns):
        return dict(columns.plain), dict(columns.shared)
    return dict(columns), {}


def _merged(own: Stored, other: Stored, rows: Rows, name: str) -> Stored:
    """Return values of both, and which of them each row has: the ``rows`` of ``other``, or its own where that is -1."""
    first, second = own.values, other.values
    places = np.where(rows >= 0, len(first) + other.rows[rows], own.rows)
    if isinstance(first, Cells):
        return Stored(Cells(first.kind, np.concatenate([first.values, second.values])), places)
    if not isinstance(first, np.ndarray):
        import pyarrow as pa

        return Stored(pa.concat_arrays([first, second]), places)
    if first.ndim == 2 and first.shape[1] != second.shape[1]:
        if not np.isnan(first).all():
            raise StoreError(
                f"{name}: expected vectors of length {first.shape[1]}, found {second.shape[1]} in the rows for cold "
                "users; materialise the view again"
            )
        first = np.full((len(first), second.shape[1]), np.nan, dtype=np.float32)  # no length was known
    return Stored(np.concatenate([first, second]), places)
