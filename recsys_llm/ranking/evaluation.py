"""Judge rankers as they would be used: each test event's item against the whole catalogue of its day."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import numpy as np
import pandas as pd
import pyarrow as pa

from recsys_llm.bootstrap import Interval, paired_difference
from recsys_llm.errors import LeakageError, ModelError
from recsys_llm.ranking.events import (
    Catalogue,
    Events,
    Floats,
    Ints,
    Strings,
    read_catalogue,
    read_events,
    to_datetimes,
)
from recsys_llm.ranking.metrics import hit_rate, ndcg, rank_of, reciprocal_rank
from recsys_llm.ranking.model import one_thread
from recsys_llm.retrieval.blocks import EntityBlock, FeatureBatch
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM, ITEM_ID, USER, USER_ID
from recsys_llm.timestamps import to_micros

DAY = 86_400_000_000
"""Microseconds."""
NDCG, HR, MRR = "ndcg_at_10", "hr_at_10", "mrr"
_PAIRS = 200_000
"""User-item pairs scored at once (at least one event's): some 16 MB of columns."""


class History(Protocol):
    """Features as of given moments; :class:`recsys_llm.retrieval.FeatureClient`."""

    def entity_history(self, entity: str, ids: Strings, timestamps: pd.DatetimeIndex, *, service: str) -> EntityBlock:
        """Return one row for each id and moment, in their order."""
        ...

    def fingerprints(self, service: str) -> Mapping[str, str | None]:
        """Return the fingerprint of the model behind each view."""
        ...

    def bridges(self, service: str) -> Mapping[str, str]:
        """Return the fingerprint that each bridged view stands in for."""
        ...


class Scorer(Protocol):
    """Scores pairs; :class:`recsys_llm.ranking.ranker.Ranker`."""

    @property
    def learned_until(self) -> datetime:
        """Time of the latest event that it can have learned from."""
        ...

    def score(self, batch: FeatureBatch) -> Floats:
        """Return float32 (n,), higher is better."""
        ...


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Metrics of each ranker on the same events and candidates.

    Attributes
    ----------
    events : n rows
        ``user_id``, ``item_id``, ``event_timestamp``, ``candidates`` (how many, the wanted one included).
    metrics
        Ranker's name to a frame of n rows: ``rank`` (int64, from 1), ``ndcg_at_10``, ``hr_at_10``, ``mrr`` (float64).
    period_events
        Events in the test period, of which the n were drawn.
    not_in_catalogue
        Those of them whose item was not in the catalogue before the day; none is drawn, as no ranker could offer it.
    """

    events: pd.DataFrame
    metrics: Mapping[str, pd.DataFrame]
    period_events: int
    not_in_catalogue: int

    def means(self) -> dict[str, dict[str, float]]:
        """Return the mean of each metric for each ranker."""
        return {
            name: {metric: float(frame[metric].mean()) for metric in (NDCG, HR, MRR)}
            for name, frame in self.metrics.items()
        }

    def difference(self, baseline: str, contender: str, metric: str = NDCG, *, seed: int = 0) -> Interval:
        """Return the mean of contender minus baseline, with a paired bootstrap interval clustered by user."""
        before, after = (self.metrics[name][metric].to_numpy() for name in (baseline, contender))
        return paired_difference(before, after, self.events[USER_ID].to_numpy(), seed=seed)


def evaluate_full_catalogue(
    client: History,
    rankers: Mapping[str, Scorer],
    interactions: pa.Table | pd.DataFrame,
    items: pa.Table | pd.DataFrame,
    *,
    service: str,
    start: datetime,
    end: datetime | None = None,
    events: int = 1000,
    drop_seen: bool = False,
    batch_days: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Rank each sampled event's item among all items that were in the catalogue before the event's day.

    Users' features are as of the event (Feast's rows for them are stamped after what they were computed from), items'
    features as of the start of its day (UTC): they change at day ends only, and every event of a day shares them.
    Other items of the event's (user, time) basket are no candidates. Candidates are shuffled for each event, and ties
    broken at random; all rankers get the same candidates and the same luck.

    Parameters
    ----------
    rankers
        Name to ranker. All are given the features of ``service``, and may use fewer.
    interactions, items
        Canonical tables.
    start, end
        Events with ``start < t <= end`` are drawn from; ``end`` None: to the last one.
    events
        How many are drawn without replacement, at least 1; fewer where there are fewer.
    drop_seen
        Remove what the user had before the event (but the wanted item). Off by default: people buy things again.
    batch_days
        Days whose item features are asked for in one call, at least 1.
    seed
        Same seed and tables: same events, candidates, order and luck, whatever ``batch_days`` is.
    progress
        Called with the number of events done and their total.

    Raises
    ------
    ModelError
        No event is left, or a ranker scored NaN or another number of candidates.
    LeakageError
        A ranker has learned from events after ``start``.
    """
    if events < 1 or batch_days < 1 or not rankers:
        raise ModelError(
            f"expected events and batch_days of 1 or more and at least one ranker, found {events}, {batch_days} and "
            f"{len(rankers)}; change them"
        )
    for name, ranker in rankers.items():
        if ranker.learned_until > start:
            raise LeakageError(
                f"ranker {name!r}: expected to have learned from events up to {start}, found up to "
                f"{ranker.learned_until}; evaluate on later events or train on earlier ones"
            )
    history, catalogue = read_events(interactions), read_catalogue(items)
    micros = history.micros
    inside = (micros > to_micros(start)) & (micros <= (to_micros(end) if end is not None else micros.max(initial=0)))
    wanted = catalogue.codes(history.item_ids)[history.items]
    known = (wanted >= 0) & (wanted < catalogue.known_before(micros // DAY * DAY))
    rng = np.random.default_rng(seed)
    eligible = np.flatnonzero(inside & known)
    drawn = np.sort(rng.choice(eligible, min(events, len(eligible)), replace=False))
    missed = int((inside & ~known).sum())
    if not len(drawn):
        raise ModelError(
            f"nothing to evaluate: {int(inside.sum())} events after {start}, {missed} of them with items that were not "
            "in the catalogue before the day; choose another period or check the items' event_timestamp"
        )
    tasks = _Tasks(history, catalogue, wanted, drawn, drop_seen, seed)
    ranks = {name: np.zeros(len(drawn), np.int64) for name in rankers}
    counts = np.zeros(len(drawn), np.int64)
    fingerprints, bridges = client.fingerprints(service), client.bridges(service)
    for positions in tasks.batches(batch_days):
        item, offset = _item_block(client, catalogue, micros[drawn[positions]], service)
        user, user_row = _user_block(client, history, drawn[positions], service)
        for some in _portions(positions, catalogue.known_before(micros[drawn[positions]] // DAY * DAY)):
            candidates = [tasks.candidates(positions[place]) for place in some]
            counts[positions[some]] = lengths = np.array([len(codes) for codes, _ in candidates])
            batch = FeatureBatch(
                service=service,
                user=user,
                item=item,
                user_rows=np.repeat(user_row[some], lengths),
                item_rows=np.concatenate([codes for codes, _ in candidates]) + np.repeat(offset[some], lengths),
                fingerprints=fingerprints,
                bridges=bridges,
            )
            for name, ranker in rankers.items():
                with one_thread():
                    scores = _checked(name, ranker.score(batch), len(batch))
                parts = np.split(scores, np.cumsum(lengths)[:-1])
                for place, part, (_, own) in zip(some, parts, candidates, strict=True):
                    position = positions[place]
                    ranks[name][position] = rank_of(part, own, luck=tasks.luck[position])
            if progress is not None:
                progress(int(positions[some[-1]]) + 1, len(drawn))
    frame = pd.DataFrame(
        {
            USER_ID: history.user_ids[history.users[drawn]],
            ITEM_ID: history.item_ids[history.items[drawn]],
            EVENT_TIMESTAMP: to_datetimes(micros[drawn]),
            "candidates": counts,
        }
    )
    return Evaluation(frame, {name: _metrics(rank) for name, rank in ranks.items()}, int(inside.sum()), missed)


class _Tasks:
    """The drawn events: which candidates each has, in which order, and who wins its ties."""

    def __init__(
        self, history: Events, catalogue: Catalogue, wanted: Ints, drawn: Ints, drop_seen: bool, seed: int
    ) -> None:
        self.history, self.drawn, self.wanted, self.seed, self.drop_seen = history, drawn, wanted, seed, drop_seen
        self.micros = history.micros[drawn]
        self.known = catalogue.known_before(self.micros // DAY * DAY)
        self.luck = np.random.default_rng([seed, 1]).random(len(drawn))
        self.by_user = np.argsort(history.users, kind="stable")  # then in time
        self.begin = np.searchsorted(history.users[self.by_user], np.arange(len(history.user_ids) + 1))

    def batches(self, days: int) -> Iterator[Ints]:
        """Yield positions among the drawn events (in time order) of at most ``days`` distinct days."""
        _, day = np.unique(self.micros // DAY, return_inverse=True)
        yield from np.split(np.arange(len(day)), np.flatnonzero(np.diff(day // days)) + 1)

    def candidates(self, position: int) -> tuple[Ints, int]:
        """Return shuffled catalogue codes, and where the wanted one is among them."""
        row, micros = self.drawn[position], self.micros[position]
        user = self.history.users[row]
        own = self.by_user[self.begin[user] : self.begin[user + 1]]
        times = self.history.micros[own]
        removed = self.wanted[own[(times <= micros) if self.drop_seen else (times == micros)]]
        keep = np.ones(self.known[position], bool)
        keep[removed[(removed >= 0) & (removed < len(keep))]] = False
        keep[self.wanted[row]] = True
        codes = np.random.default_rng([self.seed, 2, position]).permutation(np.flatnonzero(keep))
        return codes, int(np.flatnonzero(codes == self.wanted[row])[0])


def _item_block(client: History, catalogue: Catalogue, micros: Ints, service: str) -> tuple[EntityBlock, Ints]:
    """Return the catalogue of each distinct day as of its start, one after the other, and where each event's begins."""
    days, day = np.unique(micros // DAY * DAY, return_inverse=True)
    known = catalogue.known_before(days)
    ids = np.concatenate([catalogue.item_ids[:count] for count in known])
    block = client.entity_history(ITEM, ids, to_datetimes(np.repeat(days, known)), service=service)
    return block, (np.cumsum(known) - known)[day]


def _user_block(client: History, history: Events, rows: Ints, service: str) -> tuple[EntityBlock, Ints]:
    """Return the distinct (user, time) pairs of the events, and the row of each event's."""
    pairs, row = np.unique(np.stack([history.users[rows], history.micros[rows]]), axis=1, return_inverse=True)
    block = client.entity_history(USER, history.user_ids[pairs[0]], to_datetimes(pairs[1]), service=service)
    return block, row.reshape(-1)


def _portions(positions: Ints, known: Ints) -> list[Ints]:
    """Return places in ``positions``, a few events at a time: at most ``_PAIRS`` candidates together."""
    portion = np.cumsum(known) // _PAIRS
    return np.split(np.arange(len(positions)), np.flatnonzero(np.diff(portion)) + 1)


def _checked(name: str, scores: Floats, count: int) -> Floats:
    if scores.shape != (count,):
        raise ModelError(f"ranker {name!r}: expected {count} scores, found shape {scores.shape}")
    return scores


def _metrics(ranks: Ints) -> pd.DataFrame:
    return pd.DataFrame({"rank": ranks, NDCG: ndcg(ranks, 10), HR: hit_rate(ranks, 10), MRR: reciprocal_rank(ranks)})
