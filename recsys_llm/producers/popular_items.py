"""The most liked items of each segment of users and of everyone, night by night: what is known of a cold user.

A row is stamped at the end of a day (UTC) in which somebody liked something, and counts likes in the days before its
stamp. Until the next such day it stands. A segment in which too few users liked something has no row, since it would
show what they like. Of two items with as many likes the smaller id comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys_llm.config import Config
from recsys_llm.producers.timeline import Timeline
from recsys_llm.schema import EVENT_TIMESTAMP, GLOBAL, GLOBAL_USER, ITEM_ID, LIKED, SEGMENT, USER_ID, segment_user
from recsys_llm.sources import tables
from recsys_llm.timestamps import from_micros, to_micros, valid_from

DAY = 86_400_000_000
_BATCH_ROWS = 262_144

IntArray = npt.NDArray[np.int64]
Segments = Callable[[pa.RecordBatch], pa.Array]


class Popular(NamedTuple):
    """One row."""

    user: str
    """Reserved user id."""
    stamp: int
    """Microseconds since the epoch; all likes that count are earlier."""
    items: list[str]
    """Most liked first."""
    shares: list[float]
    """Of all likes that count, those of each item."""
    entropy: float
    """Of the likes over items, nats."""
    provenance: str
    """``segment`` or ``global``."""


def popular_items(
    config: Config,
    *,
    days: int,
    count: int,
    least_users: int = 1,
    start: datetime,
    end: datetime,
    not_before: datetime | None = None,
) -> Iterator[Popular]:
    """Yield the rows stamped in (start, end], ordered by time.

    Parameters
    ----------
    days
        Likes count for so many days; 0: there are no rows.
    count
        Items in a row at most.
    least_users
        A segment's row needs likes of so many users.
    not_before
        A model's training cut-off. No row is stamped earlier; at it, each segment with likes in the days before has
        one.
    """
    if not days:
        return
    likes = _Likes(days * DAY, count, least_users)
    cutoff = None if not_before is None else to_micros(not_before)
    done, last = to_micros(start), to_micros(end)
    if cutoff is not None:
        done = max(done, cutoff - 1)
    segments = _segments(config, end)
    for batch in tables.interactions(
        config, start=_earlier(done, days + 1), end=end, order_by="time", batch_rows=_BATCH_ROWS, segments=True
    ):
        likes.add(batch, segments(batch))
        # An event at the newest time may still come, so rows up to that time are complete.
        newest = min(to_micros(batch.column(EVENT_TIMESTAMP)[-1].as_py()), last)
        yield from likes.rows(done, newest, cutoff)
        done = max(done, newest)
        likes.forget(done)
    yield from likes.rows(done, last, cutoff)


class _Likes:
    """Likes in order of time, as numbers."""

    def __init__(self, window: int, count: int, least_users: int) -> None:
        self.window = window
        self.count = count
        self.least_users = least_users
        self._items, self._segments, self._users = _Names(), _Names(), _Names()
        self._held: IntArray = np.empty((4, 0), np.int64)  # times, items, segments (-1: none), users

    def add(self, batch: pa.RecordBatch, segments: pa.Array) -> None:
        """Take the likes among newer events."""
        liked = batch.column(LIKED)
        times = batch.column(EVENT_TIMESTAMP).filter(liked).cast(pa.int64()).to_numpy()
        items = self._items.numbers(batch.column(ITEM_ID).filter(liked))
        users = self._users.numbers(batch.column(USER_ID).filter(liked))
        fresh = np.stack([times, items, self._segments.numbers(segments.filter(liked)), users])
        self._held = np.concatenate([self._held, fresh], axis=1)

    def forget(self, done: int) -> None:
        """Drop what no row stamped after ``done`` counts."""
        self._held = self._held[:, np.searchsorted(self._held[0], done - self.window) :]

    def rows(self, after: int, upto: int, cutoff: int | None) -> Iterator[Popular]:
        """Yield the rows stamped in (after, upto]."""
        ends = np.unique(valid_from(self._held[0], DAY))
        if cutoff is not None:
            ends = np.union1d(ends, [cutoff])
        for stamp in ends[(ends > after) & (ends <= upto)].tolist():
            yield from self._at(stamp, is_cutoff=stamp == cutoff)

    def _at(self, stamp: int, *, is_cutoff: bool) -> Iterator[Popular]:
        times = self._held[0]
        low, day, high = np.searchsorted(times, [stamp - self.window, stamp - DAY, stamp])
        _, items, segments, users = self._held[:, low:high]
        if not len(items):
            return
        yield Popular(GLOBAL_USER, stamp, *self._top(items), GLOBAL)
        changed = np.unique(segments if is_cutoff else self._held[2, day:high])
        names = sorted((self._segments.known[number], number) for number in changed.tolist() if number >= 0)
        for name, number in names:
            inside = segments == number
            if len(np.unique(users[inside])) >= self.least_users:
                yield Popular(segment_user(name), stamp, *self._top(items[inside]), SEGMENT)

    def _top(self, items: IntArray) -> tuple[list[str], list[float], float]:
        """Return the most frequent items, their shares, and the entropy of all."""
        found, counts = np.unique(items, return_counts=True)
        every = counts / len(items)
        if len(found) > self.count:
            enough = counts >= np.partition(counts, -self.count)[-self.count]
            found, counts = found[enough], counts[enough]
        ranked = sorted((-likes, self._items.known[item]) for item, likes in zip(found, counts, strict=True))
        best = ranked[: self.count]
        return [name for _, name in best], [-likes / len(items) for likes, _ in best], float(-(every @ np.log(every)))


class _Names:
    """Strings as numbers, in order of their first use."""

    def __init__(self) -> None:
        self.known: list[str] = []
        self._numbers: dict[str, int] = {}

    def numbers(self, names: pa.Array) -> IntArray:
        """Return int64 (n,); -1 for a null or empty name."""
        encoded = names.dictionary_encode()
        codes = np.asarray([self._number(name) for name in encoded.dictionary.to_pylist()] + [-1], np.int64)
        places: IntArray = encoded.indices.fill_null(len(codes) - 1).to_numpy(zero_copy_only=False)
        return codes[places]

    def _number(self, name: str) -> int:
        if not name:
            return -1
        if name not in self._numbers:
            self._numbers[name] = len(self.known)
            self.known.append(name)
        return self._numbers[name]


def _segments(config: Config, end: datetime) -> Segments:
    """Return how to tell the segment of each event's user: the event's own, or the one in the profile of that time."""
    users = config.sources.users
    if users is None or users.segment is None:
        return lambda batch: batch.column(SEGMENT)
    profiles = Timeline.read(
        tables.users(config, end=end), USER_ID, lambda batch: [name or "" for name in batch.column(SEGMENT).to_pylist()]
    )

    def at_events(batch: pa.RecordBatch) -> pa.Array:
        times = batch.column(EVENT_TIMESTAMP).cast(pa.int64()).to_pylist()
        known = zip(batch.column(USER_ID).to_pylist(), times, strict=True)
        return pa.array([profiles.before(user, time + 1) for user, time in known], pa.string())

    return at_events


def _earlier(micros: int, days: int) -> datetime | None:
    """Return a time ``days`` earlier; None, since ever, where the calendar doesn't reach."""
    moment = from_micros(micros)
    return moment - timedelta(days=days) if moment.year > days // 365 + 2 else None
