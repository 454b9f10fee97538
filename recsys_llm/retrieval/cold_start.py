"""What a user without a row of their own is given: the row of their segment, else that of everyone.

Views with the feature ``provenance`` have such rows, under reserved user ids; the feature then says ``segment`` or
``global``. One rule for training and serving: a row past its ttl counts as none, for the user and for what stands in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from recsys_llm.retrieval.blocks import EntityBlock
from recsys_llm.retrieval.columns import Rows
from recsys_llm.retrieval.examples import Ids, Micros, check_segments
from recsys_llm.retrieval.fallback import cold_views, filled, lacks_row
from recsys_llm.retrieval.history import distinct_pairs, history
from recsys_llm.retrieval.service import View
from recsys_llm.schema import GLOBAL_USER, USER, segment_user

if TYPE_CHECKING:
    import feast

JOIN_ROWS = 5_000
"""Rows joined at a time: thousands of nights of one reserved user stand against each."""


def segments_of(examples: pd.DataFrame, views: Sequence[View]) -> Ids | None:
    """Return the segments of training examples, (n,) of str or None; None where no view has rows for cold users.

    Raises
    ------
    SchemaError
        A segment is no string.
    """
    return check_segments(examples) if cold_views(views) else None


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
    return filled(block, views, other, list(choices))
