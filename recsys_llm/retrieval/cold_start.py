"""What a user without a row of their own is given: the row of their segment, else that of everyone.

Views with the feature ``provenance`` have such rows, under reserved user ids; the feature then says ``segment`` or
``global``. One rule for training and serving: a row past its ttl counts as none, for the user and for what stands in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from recsys_llm.errors import StoreError
from recsys_llm.retrieval.blocks import EntityBlock, Status
from recsys_llm.retrieval.columns import Column, Columns, Rows, Stored
from recsys_llm.retrieval.examples import Ids, Micros, check_segments
from recsys_llm.retrieval.history import distinct_pairs, history
from recsys_llm.retrieval.service import View
from recsys_llm.schema import GLOBAL_USER, USER, segment_user

if TYPE_CHECKING:
    import feast

JOIN_ROWS = 5_000
"""Rows joined at a time: thousands of nights of one reserved user stand against each."""


def cold_views(views: Sequence[View]) -> tuple[View, ...]:
    """Return the views that have rows for cold users."""
    return tuple(view for view in views if view.has_cold_rows)


def segments_of(examples: pd.DataFrame, views: Sequence[View]) -> Ids | None:
    """Return the segments of training examples, (n,) of str or None; None where no view has rows for cold users.

    Raises
    ------
    SchemaError
        A segment is no string.
    """
    return check_segments(examples) if cold_views(views) else None


def lacks_row(block: EntityBlock, views: Sequence[View]) -> npt.NDArray[np.bool_]:
    """Return bool (n,): who has no row, or one past its ttl, in any of ``views``."""
    lacking = np.zeros(len(block), dtype=np.bool_)
    for view in views:
        lacking |= block.status[view.name] != Status.PRESENT
    return lacking


def filled_now(
    user: EntityBlock, views: Sequence[View], segment: str | None, read: Callable[[tuple[str, ...]], EntityBlock]
) -> EntityBlock:
    """Return the block of one user with what stands in for missing rows.

    Parameters
    ----------
    user
        1 row.
    views
        Those with rows for cold users.
    segment
        The user's; None: not known.
    read
        From reserved user ids to their rows in ``views``; asked only where the user lacks a row.
    """
    if not lacks_row(user, views).any():
        return user
    ids = (GLOBAL_USER,) if not segment else (segment_user(segment), GLOBAL_USER)
    return _filled(user, views, read(ids), [np.array([place]) for place in range(len(ids))])


def user_history(
    store: feast.FeatureStore, views: Sequence[View], ids: Ids, micros: Micros, segments: Ids | None
) -> tuple[EntityBlock, Rows]:
    """Return the features of distinct users as of distinct times, and which of them each of n rows is.

    Parameters
    ----------
    ids, micros, segments : (n,)
        Users, times, and segments (str or None); None: not known.
    """
    first, rows = distinct_pairs(ids, micros)
    block, times = history(store, views, USER, ids[first], micros[first]), micros[first]
    cold = cold_views(views)
    if not len(cold) or not lacks_row(block, cold).any():
        return block, rows
    names = np.full(len(block), "", dtype=object)
    if segments is not None:
        # One user may be asked for under two segments at one time.
        known = np.array([segment or "" for segment in segments], dtype=object)
        apart, again = distinct_pairs(known, rows)
        names, pairs, rows = known[apart], rows[apart], again
        block, times = block.take(pairs), times[pairs]
    return _filled_then(store, block, cold, times, names), rows


def _filled_then(
    store: feast.FeatureStore, block: EntityBlock, views: Sequence[View], micros: Micros, segments: Ids
) -> EntityBlock:
    wanted = np.flatnonzero(lacks_row(block, views))
    told = wanted[segments[wanted] != ""]
    ids = np.array([segment_user(segment) for segment in segments[told]] + [GLOBAL_USER] * len(wanted), dtype=object)
    at = np.concatenate([micros[told], micros[wanted]])
    first, rows = distinct_pairs(ids, at)
    other = history(store, views, USER, ids[first], at[first], join_rows=JOIN_ROWS)
    choices = np.full((2, len(block)), -1, dtype=np.int64)
    choices[0, told], choices[1, wanted] = rows[: len(told)], rows[len(told) :]
    return _filled(block, views, other, list(choices))


def _filled(own: EntityBlock, views: Sequence[View], other: EntityBlock, choices: Sequence[Rows]) -> EntityBlock:
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
    if not isinstance(first, np.ndarray):
        return Stored(pa.concat_arrays([first, second]), places)
    if first.ndim == 2 and first.shape[1] != second.shape[1]:
        if not np.isnan(first).all():
            raise StoreError(
                f"{name}: expected vectors of length {first.shape[1]}, found {second.shape[1]} in the rows for cold "
                "users; materialise the view again"
            )
        first = np.full((len(first), second.shape[1]), np.nan, dtype=np.float32)  # no length was known
    return Stored(np.concatenate([first, second]), places)
