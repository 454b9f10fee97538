"""Examples to train a ranker on: what a user took, among items that could have been taken at that moment."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import numpy as np
import pandas as pd
import pyarrow as pa

from recsys_llm.errors import TrainingError
from recsys_llm.ranking.events import (
    Catalogue,
    Events,
    Floats,
    Ints,
    positions,
    read_catalogue,
    read_events,
    to_datetimes,
)
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from recsys_llm.timestamps import to_micros

LABEL = "label"
"""float32: 1 for the item of the event, 0 for a sampled one."""
GROUP = "group"
"""int64: one positive and its negatives share a number; numbers follow the events' time."""

LOG_Q = "log_q"
"""float32: log-probability of a row's item under the sampling of negatives. Training takes it off the score, so that
the ranker learns the choice among all items, not the choice among the sampled ones (Yi et al. 2019)."""

_ROUNDS = 20
"""Redraws of unusable negatives before the few rows that are left are drawn from their exact candidate list."""


def sample_examples(
    interactions: pa.Table | pd.DataFrame,
    items: pa.Table | pd.DataFrame,
    *,
    start: datetime,
    end: datetime,
    negatives: int = 20,
    popular_share: float = 0.5,
    max_positives: int | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Return one group of a positive and its negatives for each event with ``start < t <= end``.

    An event counts only if its item was in the catalogue strictly before ``t``: where an item's timestamp is its first
    sale, the event at that very moment would be given away by the item being new. Negatives were in the catalogue
    strictly before ``t`` too, and none is an item of the same (user, t) basket. Within a group the rows are shuffled.

    Parameters
    ----------
    interactions, items
        Canonical tables (``user_id``, ``item_id``, ``event_timestamp``; ``item_id``, ``event_timestamp``).
    start, end
        tz-aware.
    negatives
        Distinct negatives for each positive, at least 1; fewer where the catalogue is smaller.
    popular_share
        Chance, 0 to 1, that a negative is drawn by its number of events up to ``start``; otherwise every known item is
        as likely as another.
    max_positives
        Keep a random sample of this many positives; None keeps all.
    seed
        Same seed and same tables (in any row order): same examples.

    Returns
    -------
    pd.DataFrame
        ``user_id``, ``item_id`` (str), ``event_timestamp`` (UTC, microseconds), ``label`` (float32), ``group`` (int64),
        ``log_q`` (float32), ordered by group. ``attrs`` counts ``positives``, ``dropped_unknown`` (events whose item
        was not in the catalogue strictly before them) and ``dropped_alone`` (nothing to compare with).

    Raises
    ------
    TrainingError
        No event is left, or a number is out of range.
    SchemaError
        A table lacks a column.
    """
    if negatives < 1 or not 0 <= popular_share <= 1:
        raise TrainingError(
            f"expected negatives >= 1 and popular_share in 0..1, found {negatives} and {popular_share}; change them"
        )
    events, catalogue = read_events(interactions), read_catalogue(items)
    rng = np.random.default_rng(seed)
    positives = _positives(events, catalogue, to_micros(start), to_micros(end))
    unknown = int((~positives.known).sum())
    chosen = np.flatnonzero(positives.known)
    if max_positives is not None and len(chosen) > max_positives:
        chosen = np.sort(rng.choice(chosen, max_positives, replace=False))
    if not len(chosen):
        raise TrainingError(
            f"no example: {len(positives.rows)} events with {start} < t <= {end}, of which {unknown} concern items "
            "that were not in the catalogue before; choose another period or check the items' event_timestamp"
        )
    popularity = _popularity(events, catalogue, to_micros(start))
    drawn = _draw(positives, chosen, popularity, negatives, popular_share, rng)
    codes = np.concatenate([positives.items[chosen][:, None], drawn], axis=1)
    log_q = _log_probability(codes, positives.n_known[chosen][:, None], popularity, popular_share)
    frame = _frame(events, catalogue, positives.rows[chosen], codes, log_q, rng)
    kept = int(frame[GROUP].iloc[-1]) + 1 if len(frame) else 0
    frame.attrs = {"positives": kept, "dropped_unknown": unknown, "dropped_alone": len(chosen) - kept}
    return frame


@dataclass(frozen=True, eq=False)
class _Positives:
    rows: Ints  # (p,) positions in the events
    micros: Ints  # (p,)
    basket: Ints  # (p,) number of the (user, t) group
    items: Ints  # (p,) catalogue codes, -1 unknown
    n_known: Ints  # (p,) catalogue items known strictly before t
    known: np.ndarray[tuple[int], np.dtype[np.bool_]]
    taken: Ints  # sorted keys basket * V + item of every event in the period

    def is_taken(self, basket: Ints, items: Ints, size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        key = basket * size + items
        at = np.minimum(np.searchsorted(self.taken, key), len(self.taken) - 1)
        return np.asarray(self.taken[at] == key)


def _positives(events: Events, catalogue: Catalogue, start: int, end: int) -> _Positives:
    rows = np.flatnonzero((events.micros > start) & (events.micros <= end))
    codes = catalogue.codes(events.item_ids)[events.items[rows]]
    basket, micros = events.baskets()[rows], events.micros[rows]
    n_known = catalogue.known_before(micros)
    inside = codes >= 0
    taken = np.unique(basket[inside] * len(catalogue.item_ids) + codes[inside])
    return _Positives(rows, micros, basket, codes, n_known, inside & (codes < n_known), taken)


def _popularity(events: Events, catalogue: Catalogue, start: int) -> Ints:
    """Return events up to and including ``start`` for each catalogue item."""
    codes = positions(catalogue.item_ids, events.item_ids)[events.items[events.micros <= start]]
    return np.bincount(codes[codes >= 0], minlength=len(catalogue.item_ids)).astype(np.int64)


def _draw(
    positives: _Positives,
    chosen: Ints,
    popularity: Ints,
    negatives: int,
    popular_share: float,
    rng: np.random.Generator,
) -> Ints:
    """Return int64 (len(chosen), negatives): distinct catalogue codes, -1 where there is nothing left to draw."""
    size = len(popularity)
    n_known = np.repeat(positives.n_known[chosen][:, None], negatives, axis=1)
    basket = np.repeat(positives.basket[chosen][:, None], negatives, axis=1)
    share = np.cumsum(popularity)
    drawn = np.full(n_known.shape, -1, np.int64)
    todo = np.ones(n_known.shape, bool)
    for _ in range(_ROUNDS):
        known, count = n_known[todo], int(todo.sum())
        new = (rng.random(count) * known).astype(np.int64)
        # Items are in the order in which they became known: popularity among the known ones is a prefix of its sum.
        total = share[known - 1]
        popular = (rng.random(count) < popular_share) & (total > 0)
        new[popular] = np.searchsorted(share, rng.random(int(popular.sum())) * total[popular], side="right")
        drawn[todo] = new
        todo = positives.is_taken(basket, drawn, size) | _repeated(drawn)
        if not todo.any():
            return drawn
    for row in np.flatnonzero(todo.any(axis=1)):
        drawn[row] = _exhaustive(positives, int(chosen[row]), drawn[row], todo[row], size, rng)
    return drawn


def _repeated(drawn: Ints) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
    """Return which entries equal an earlier entry of their row."""
    order = np.argsort(drawn, axis=1, kind="stable")
    ordered = np.take_along_axis(drawn, order, axis=1)
    same = np.zeros(drawn.shape, bool)
    same[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeated = np.zeros(drawn.shape, bool)
    np.put_along_axis(repeated, order, same, axis=1)
    return repeated


def _exhaustive(
    positives: _Positives,
    position: int,
    drawn: Ints,
    todo: np.ndarray[tuple[int, ...], np.dtype[np.bool_]],
    size: int,
    rng: np.random.Generator,
) -> Ints:
    candidates = np.arange(positives.n_known[position])
    basket = np.full(len(candidates), positives.basket[position])
    candidates = candidates[~positives.is_taken(basket, candidates, size)]
    left = rng.permutation(np.setdiff1d(candidates, drawn[~todo]))[: int(todo.sum())]
    result = drawn.copy()
    result[todo] = -1
    result[np.flatnonzero(todo)[: len(left)]] = left
    return result


def _log_probability(codes: Ints, n_known: Ints, popularity: Ints, popular_share: float) -> Floats:
    """Return the log-probability that one draw is each of ``codes`` (p, k); what repeats exclude is not counted."""
    total = np.append(0, np.cumsum(popularity))[n_known]
    popular = np.where(total > 0, popular_share, 0.0)
    share = popularity[codes] / np.maximum(total, 1)
    # Never below the uniform draw's share with weight 1e-3, so that items without events keep a finite one.
    chance = np.maximum(1 - popular, 1e-3) / np.maximum(n_known, 1) + popular * share
    return np.asarray(np.log(chance), np.float32)


def _frame(
    events: Events, catalogue: Catalogue, rows: Ints, codes: Ints, log_q: Floats, rng: np.random.Generator
) -> pd.DataFrame:
    order = np.argsort(rng.random(codes.shape), axis=1)
    label = np.zeros(codes.shape, np.float32)
    label[:, 0] = 1
    codes, label = np.take_along_axis(codes, order, axis=1), np.take_along_axis(label, order, axis=1)
    log_q = np.take_along_axis(log_q, order, axis=1)
    keep = (codes >= 0) & ((codes >= 0).sum(axis=1, keepdims=True) > 1)
    group = (np.cumsum(keep.any(axis=1)) - 1)[:, None].repeat(codes.shape[1], axis=1)
    row = np.repeat(rows[:, None], codes.shape[1], axis=1)[keep]
    return pd.DataFrame(
        {
            USER_ID: events.user_ids[events.users[row]],
            ITEM_ID: catalogue.item_ids[codes[keep]],
            EVENT_TIMESTAMP: to_datetimes(events.micros[row]),
            LABEL: label[keep],
            GROUP: group[keep].astype(np.int64),
            LOG_Q: log_q[keep],
        }
    )
