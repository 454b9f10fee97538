"""Which rows a user's events give, and when each may first be seen.

A user's events are walked in time. Events at one time are one group, and a row stands for everything up to the end of
a group. With a granularity coarser than ``event``, only the last group of a period gives a row, stamped at the
period's end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys_llm.config import Config
from recsys_llm.errors import RowError
from recsys_llm.schema import EVENT_TIMESTAMP, GLOBAL_USER, SEGMENT_USER, USER_ID
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
    positions, stamps = _due(users, times, period, start, end, not_before)
    return UserRows(_firsts(users)[positions], positions + 1, stamps)


def text_rows(
    events: pa.RecordBatch,
    others: pa.RecordBatch,
    *,
    period: int,
    start: datetime,
    end: datetime,
    not_before: datetime | None = None,
) -> tuple[pa.Array, UserRows]:
    """Return the rows stamped in (start, end] of users who change in more ways than by events, and their users.

    A row stands for everything strictly before its stamp.

    Parameters
    ----------
    events
        All events of some users, ordered by user and time.
    others
        ``user_id`` and ``event_timestamp`` of what else they did, in any order; also users without events.
    period, start, end, not_before
        As for :func:`user_rows`.

    Returns
    -------
    strings (n,), UserRows
        A user without events so far has the empty range ``first == end``.
    """
    users = pa.concat_arrays([events.column(USER_ID), others.column(USER_ID)])
    stamped = pa.concat_arrays([events.column(EVENT_TIMESTAMP), others.column(EVENT_TIMESTAMP)])
    changes = pa.record_batch({USER_ID: users, EVENT_TIMESTAMP: stamped})
    order = pc.sort_indices(changes, sort_keys=[(USER_ID, "ascending"), (EVENT_TIMESTAMP, "ascending")])
    users, is_event = users.take(order), order.to_numpy() < events.num_rows
    codes = users.dictionary_encode().indices.to_numpy()
    times = stamped.take(order).cast(pa.int64()).to_numpy()
    positions, stamps = _due(codes, times, period, start, end, not_before)
    counts = np.cumsum(is_event)
    firsts = _firsts(codes)[positions]
    upto = positions if not_before is None else _before(codes, times, positions, stamps, to_micros(not_before))
    return users.take(pa.array(positions)), UserRows((counts - is_event)[firsts], counts[upto], stamps)


def _due(
    users: IntArray, times: IntArray, period: int, start: datetime, end: datetime, not_before: datetime | None
) -> tuple[IntArray, IntArray]:
    """Return the position of each due row's newest event, and the stamps."""
    stamps = valid_from(times, period)
    if not_before is not None:
        stamps = np.maximum(stamps, to_micros(not_before))
    # An event ends a row where the next event is another user's or has a later stamp.
    is_end = np.append((users[1:] != users[:-1]) | (stamps[1:] != stamps[:-1]), True)[: len(users)]
    positions = np.flatnonzero(is_end & (stamps > to_micros(start)) & (stamps <= to_micros(end)))
    return positions, stamps[positions]


def _firsts(users: IntArray) -> IntArray:
    """Return the position of the first event of each event's user."""
    is_first = np.append(True, users[1:] != users[:-1])[: len(users)]
    firsts: IntArray = np.maximum.accumulate(np.where(is_first, np.arange(len(users)), 0))
    return firsts


def _before(users: IntArray, times: IntArray, positions: IntArray, stamps: IntArray, cutoff: int) -> IntArray:
    """Return the position of each row's newest change before its stamp.

    A row that was moved to the cut-off also holds what came after its period, which wasn't over at the cut-off.
    """
    is_last = np.append((users[1:] != users[:-1]) | (times[1:] >= cutoff), True)[: len(users)]
    lasts = np.flatnonzero(is_last)
    moved = stamps == cutoff
    found = positions.copy()
    found[moved] = lasts[np.searchsorted(lasts, positions[moved])]
    return found


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


def refuse_reserved(users: Iterable[str], source: str) -> None:
    """Refuse users whose ids are kept for the rows of cold users.

    Raises
    ------
    RowError
        The message names the user and ``source``.
    """
    for user in users:
        if user == GLOBAL_USER or user.startswith(SEGMENT_USER):
            raise RowError(
                f"{source}: user {user!r} has an id that is reserved for rows of cold users ({GLOBAL_USER!r}, "
                f"{SEGMENT_USER!r}...); give that user another id in the source"
            )
