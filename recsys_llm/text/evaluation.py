"""How well item vectors find the next item: the nearest neighbours of what a user had last.

Only NumPy: the same figures are taken of an encoder in training, of a stored view and of vectors from elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys_llm.bootstrap import Interval, paired_difference
from recsys_llm.errors import ModelError
from recsys_llm.text.events import Events, Ints, read_events
from recsys_llm.timestamps import to_micros

NDCG_K = 10
_CELLS = 4_000_000
"""Scores held at once: 16 MB."""

Floats = npt.NDArray[np.float64]
Metric = Literal["recall", "ndcg", "cold_recall", "cold_recall_among_cold"]
METRICS: tuple[Metric, ...] = ("recall", "ndcg", "cold_recall", "cold_recall_among_cold")


@dataclass(frozen=True, eq=False)
class NextItemPairs:
    """An item that a user liked, and one that they liked next; made by :func:`next_item_pairs`.

    All arrays but the last are of length n, ordered by user and time of the target.
    """

    query: Ints
    """Position of the item in the catalogue."""
    target: Ints
    user: Ints
    """Position of the user among all users of the interactions, sorted by id."""
    time: Ints
    """When the target was liked, microseconds since the epoch."""
    cold_items: npt.NDArray[np.bool_]
    """(items,): nobody had an event with the item before ``until``."""

    def __len__(self) -> int:
        return len(self.query)

    @property
    def is_cold(self) -> npt.NDArray[np.bool_]:
        """Whether each target is one of the cold items, (n,)."""
        found: npt.NDArray[np.bool_] = self.cold_items[self.target]
        return found

    def take(self, rows: npt.NDArray[np.generic]) -> NextItemPairs:
        """Return some of the pairs, by position or by a mask; the catalogue stays."""
        return NextItemPairs(self.query[rows], self.target[rows], self.user[rows], self.time[rows], self.cold_items)

    def among(self, items: Ints) -> NextItemPairs:
        """Return the same pairs in a smaller catalogue: the items at the sorted positions ``items``.

        Every query and target must be one of them.
        """
        query, target = np.searchsorted(items, self.query), np.searchsorted(items, self.target)
        return NextItemPairs(query, target, self.user, self.time, self.cold_items[items])


def next_item_pairs(
    interactions: pa.Table | Iterable[pa.RecordBatch],
    item_ids: Sequence[str],
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    until: datetime,
    per_user: int | None = 100,
    seed: int = 0,
) -> NextItemPairs:
    """Pair each liked item with one from the same user's liked items just before.

    What a user didn't like is left out; the rest of their events at one time are a group, and a group is followed by
    the user's next one. Every item of a group is a target once. Its query is drawn, uniformly under ``seed``, from the
    group before; a target that is its own query takes the next item of that group, or is left out if there is none.
    The group before may lie before ``start``, as a user's history does. The result depends on the rows, not on their
    order.

    Parameters
    ----------
    interactions
        Canonical, with ``liked``; with the history before ``start``.
    item_ids : items
        The catalogue. Events of other items are left out.
    start, end
        Targets with ``start <= time < end``; None is unbounded.
    until
        An item without any event, liked or not, before this time is cold.
    per_user
        More pairs of one user than this are sampled; None: all.

    Examples
    --------
    >>> from datetime import UTC
    >>> times = [datetime(2024, 1, day, tzinfo=UTC) for day in (1, 1, 2)]
    >>> events = pa.table(
    ...     {"user_id": ["u"] * 3, "item_id": ["a", "b", "c"], "event_timestamp": times, "liked": [True, False, True]}
    ... )
    >>> pairs = next_item_pairs(events, ["a", "b", "c"], until=times[2])
    >>> pairs.query.tolist(), pairs.target.tolist(), pairs.is_cold.tolist()
    ([0], [2], [True])
    """
    events = read_events(interactions, item_ids)
    return pair_events(events, len(item_ids), start=start, end=end, until=until, per_user=per_user, seed=seed)


def pair_events(
    events: Events,
    items: int,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    until: datetime,
    per_user: int | None = 100,
    seed: int = 0,
) -> NextItemPairs:
    """Pair events that have been read already; as :func:`next_item_pairs`, for a catalogue of ``items``."""
    cold = np.ones(items, np.bool_)
    cold[events.item[events.time < to_micros(until)]] = False
    user, time, item, _ = events.where(events.liked)
    rng = np.random.default_rng(seed)
    query, row = _draw_queries(user, time, item, rng)
    inside = np.ones(len(row), np.bool_)
    if start is not None:
        inside &= time[row] >= to_micros(start)
    if end is not None:
        inside &= time[row] < to_micros(end)
    query, row = query[inside], row[inside]
    if per_user is not None:
        kept = _at_most(user[row], per_user, rng)
        query, row = query[kept], row[kept]
    return NextItemPairs(query, item[row], user[row], time[row], cold)


def _draw_queries(user: Ints, time: Ints, item: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """Return the query's item, and the row of the target, for every row that has a group before it."""
    if not len(user):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    begins = np.append(True, (user[1:] != user[:-1]) | (time[1:] != time[:-1]))
    starts = np.flatnonzero(begins)
    sizes = np.diff(np.append(starts, len(user)))
    follows = np.append(False, user[starts[1:]] == user[starts[:-1]])
    group = np.cumsum(begins) - 1
    row = np.flatnonzero(follows[group])
    before = group[row] - 1
    drawn = rng.integers(0, sizes[before])
    query = item[starts[before] + drawn]
    itself = query == item[row]
    query = np.where(itself, item[starts[before] + (drawn + 1) % sizes[before]], query)
    differs = query != item[row]
    return query[differs], row[differs]


def _at_most(user: Ints, count: int, rng: np.random.Generator) -> Ints:
    """Return the sorted positions of at most ``count`` rows of each user, drawn uniformly."""
    order = np.lexsort((rng.random(len(user)), user))
    ordered = user[order]
    first = np.searchsorted(ordered, ordered)
    return np.sort(order[np.arange(len(user)) - first < count])


@dataclass(frozen=True, eq=False)
class RetrievalScores:
    """Means over each user's pairs, so that users weigh the same and can be resampled; the figures are their means."""

    k: int
    """Length of the list for recall; NDCG is at 10."""
    users: Ints
    """(u,), ascending: positions of the users with pairs."""
    recall: Floats
    """(u,): share of targets among the ``k`` best of all items."""
    ndcg: Floats
    """(u,): mean of 1 / log2(1 + rank) of targets among the 10 best."""
    cold_recall: Floats
    """(u,): recall of cold targets among all items; NaN for a user without one."""
    cold_recall_among_cold: Floats
    """(u,): recall of cold targets among cold items alone; NaN for a user without one."""

    def values(self, metric: Metric) -> Floats:
        """Return a metric of each user, (u,)."""
        found: Floats = getattr(self, metric)
        return found

    def mean(self, metric: Metric) -> float | None:
        """Return the mean of a metric over the users that have it; None where no user does."""
        values = self.values(metric)
        known = values[~np.isnan(values)]
        return float(known.mean()) if len(known) else None

    def interval(self, metric: Metric, *, seed: int = 0) -> Interval | None:
        """Return a metric's mean with its 95% bootstrap interval over users; None where no user has it."""
        values = self.values(metric)
        known = values[~np.isnan(values)]
        if not len(known):
            return None
        return paired_difference(np.zeros(len(known)), known, np.arange(len(known)), seed=seed)

    def name(self, metric: Metric) -> str:
        """Return the metric's name in reports, such as ``recall_at_20``."""
        return f"{metric}_at_{NDCG_K if metric == 'ndcg' else self.k}"

    def as_dict(self) -> dict[str, Any]:
        """Return the means for a report, JSON values."""
        return {self.name(metric): self.mean(metric) for metric in METRICS}


Scorer = Callable[[Ints], npt.NDArray[np.float32]]
"""From positions of query items (q,) to the scores of all items (q, items); higher is better."""


def evaluate_vectors(vectors: npt.NDArray[np.float32], pairs: NextItemPairs, *, k: int = 20) -> RetrievalScores:
    """Rank all items by inner product with the query's vector, and see where the target is.

    Parameters
    ----------
    vectors : float32 (items, dim)
        In the order of the catalogue that ``pairs`` were made with; of length 1 for cosine similarity.

    Raises
    ------
    ModelError
        There are no pairs, the shapes don't fit, or a value is not finite.
    """
    if vectors.ndim != 2 or len(vectors) != len(pairs.cold_items) or not np.isfinite(vectors).all():
        raise ModelError(
            f"vectors: expected finite values of shape ({len(pairs.cold_items)}, dim), one row per item of the "
            f"catalogue; found shape {vectors.shape}, {int((~np.isfinite(vectors)).sum())} values not finite"
        )
    # A matrix product may round equal columns differently; each distinct vector is scored once so that ties are ties.
    rows = np.ascontiguousarray(vectors).view(np.dtype((np.void, vectors.dtype.itemsize * vectors.shape[1]))).ravel()
    _, first, inverse = np.unique(rows, return_index=True, return_inverse=True)
    distinct = vectors[first]
    return evaluate_scores(lambda query: (vectors[query] @ distinct.T)[:, inverse], pairs, k=k)


def evaluate_scores(scorer: Scorer, pairs: NextItemPairs, *, k: int = 20) -> RetrievalScores:
    """Rank all items by any score, and see where the target is.

    The query itself is no candidate. Of items with equal scores the one with the lower position comes first.

    Parameters
    ----------
    scorer
        Called with blocks of distinct queries, so that memory is bounded whatever the catalogue's size.

    Raises
    ------
    ModelError
        There are no pairs.
    """
    if not len(pairs):
        raise ModelError("expected pairs to evaluate, found none; check the period, and that users have two events")
    rank, cold_rank = _ranks(scorer, pairs)
    users, row = np.unique(pairs.user, return_inverse=True)
    count = len(users)
    every = np.ones(len(pairs), np.bool_)
    discounted = np.where(rank < NDCG_K, 1.0 / np.log2(rank + 2.0), 0.0)
    return RetrievalScores(
        k=k,
        users=users,
        recall=_user_means((rank < k).astype(np.float64), every, row, count),
        ndcg=_user_means(discounted, every, row, count),
        cold_recall=_user_means((rank < k).astype(np.float64), pairs.is_cold, row, count),
        cold_recall_among_cold=_user_means((cold_rank < k).astype(np.float64), pairs.is_cold, row, count),
    )


def paired_interval(
    baseline: RetrievalScores, contender: RetrievalScores, metric: Metric = "recall", *, seed: int = 0
) -> Interval | None:
    """Return the mean of ``contender - baseline`` with its 95% bootstrap interval over users; None: no user has it.

    Raises
    ------
    ModelError
        The two were not taken from the same pairs.
    """
    one, other = baseline.values(metric), contender.values(metric)
    if not np.array_equal(baseline.users, contender.users) or not np.array_equal(np.isnan(one), np.isnan(other)):
        raise ModelError("expected scores of the same pairs, found other users; evaluate both with the same pairs")
    known = ~np.isnan(one)
    if not known.any():
        return None
    return paired_difference(one[known], other[known], baseline.users[known], seed=seed)


def _ranks(scorer: Scorer, pairs: NextItemPairs) -> tuple[Ints, Ints]:
    """Return each target's rank from 0 among all items and, if cold, among cold items (else 0), without the query."""
    items = len(pairs.cold_items)
    step = max(1, _CELLS // items)
    cold = np.flatnonzero(pairs.cold_items)
    rank, cold_rank = np.zeros(len(pairs), np.int64), np.zeros(len(pairs), np.int64)
    queries, of = np.unique(pairs.query, return_inverse=True)
    order = np.argsort(of, kind="stable")
    bounds = np.searchsorted(of[order], np.arange(0, len(queries) + step, step))
    for block, (low, high) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        scores = scorer(queries[block * step : (block + 1) * step])
        for begin in range(low, high, step):
            rows = order[begin : min(high, begin + step)]
            query, target = pairs.query[rows], pairs.target[rows]
            own = scores[of[rows] - block * step]
            own[np.arange(len(rows)), query] = -np.inf
            rank[rows] = _rank(own, target, np.arange(items))
            is_cold = pairs.is_cold[rows]
            cold_rank[rows[is_cold]] = _rank(own[is_cold], target[is_cold], cold)
    return rank, cold_rank


def _rank(scores: npt.NDArray[np.float32], target: Ints, candidates: Ints) -> Ints:
    best = scores[np.arange(len(target)), target][:, None]
    among = scores if len(candidates) == scores.shape[1] else scores[:, candidates]
    earlier = candidates[None, :] < target[:, None]
    found: Ints = ((among > best) | ((among == best) & earlier)).sum(axis=1, dtype=np.int64)
    return found


def _user_means(values: Floats, counted: npt.NDArray[np.bool_], row: Ints, users: int) -> Floats:
    number = np.bincount(row, weights=counted, minlength=users)
    total = np.bincount(row, weights=values * counted, minlength=users)
    found: Floats = np.divide(total, number, out=np.full(users, np.nan), where=number > 0)
    return found
