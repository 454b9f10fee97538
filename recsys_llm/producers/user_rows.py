"""Which rows a user's events give, and when each may first be seen.

A user's events are walked in time. Events at one time are one group, and a row stands for everything up to the end of
a group. With a granularity coarser than ``event``, only the last group of a period gives a row, stamped at the
period's end.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys_llm.config import Config
from recsys_llm.schema import EVENT_TIMESTAMP, USER_ID
from recsys_llm.sources import tables, whole_keys
from recsys_llm.timestamps import to_micros, valid_from

BATCH_ROWS = 65_536

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class UserRows:
    """Rows due, as positions in a batch of whole users' events.

    All arrays are int64 (n,), ordered by user and time.
    """

    first: IntArray
    """Position of the user's first event."""
    end: IntArray
    """One past the position of the row's newest event: the row was computed from events ``first:end``."""
    stamp: IntArray
    """When the row may first be seen, microseconds since the epoch; strictly later than its newest event."""


def whole_users(config: Config, end: datetime) -> Iterator[pa.RecordBatch]:
    """Yield all events up to ``end``, ordered by user, time and item, no user split over two batches."""
    events = tables.interactions(config, end=end, order_by="user", batch_rows=BATCH_ROWS)
    return whole_keys(events, USER_ID, batch_rows=BATCH_ROWS)


def user_rows(
    events: pa.RecordBatch, *, period: int, start: datetime, end: datetime, not_before: datetime | None = None
) -> UserRows:
    """Return the rows stamped in (start, end].

    Parameters
    ----------
    events
        All events of some users, ordered by user, time and item.
    period
        Microseconds, from :func:`recsys_llm.timestamps.parse_granularity`.
    not_before
        A model's training cut-off: rows that would be stamped earlier are stamped at it, and of those of one user
        only the newest is kept. So each user has a row from the moment on at which the model may be used.
    """
    if events.num_rows == 0:
        empty = np.empty(0, np.int64)
        return UserRows(empty, empty, empty)
    users = events.column(USER_ID).dictionary_encode().indices.to_numpy()
    times = events.column(EVENT_TIMESTAMP).cast(pa.int64()).to_numpy()
    stamps = valid_from(times, period)
    if not_before is not None:
        stamps = np.maximum(stamps, to_micros(not_before))
    # An event ends a row where the next event is another user's or has a later stamp.
    is_end = np.append((users[1:] != users[:-1]) | (stamps[1:] != stamps[:-1]), True)
    is_first = np.append(True, users[1:] != users[:-1])
    first = np.maximum.accumulate(np.where(is_first, np.arange(len(users)), 0))
    due = is_end & (stamps > to_micros(start)) & (stamps <= to_micros(end))
    positions = np.flatnonzero(due)
    return UserRows(first[positions], positions + 1, stamps[positions])


def new_events(rows: UserRows) -> Iterator[tuple[bool, range]]:
    """Yield for each row whether it is its user's first, and the positions of the events since the user's row before.

    So a running state of each user sees every event once.
    """
    user_first, position = -1, 0
    for first, end in zip(rows.first.tolist(), rows.end.tolist(), strict=True):
        is_new_user = first != user_first
        if is_new_user:
            user_first, position = first, first
        yield is_new_user, range(position, end)
        position = end
