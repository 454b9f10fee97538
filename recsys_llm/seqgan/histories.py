"""Interactions as sequences: tied events (one user, one timestamp) are one group, a group is one step.

::

    user  time  item          group_offsets  0     2  3     5
    u1    10    a        ->   item_ids       a  b  c  a  d
    u1    10    b             timestamps     10    20 10
    u1    20    c             user_offsets   0        2  3
    u2    10    a, d          user_ids       u1       u2
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys_llm.errors import RowError, SchemaError
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from recsys_llm.timestamps import TIMESTAMP

Ints = npt.NDArray[np.int64]
_COLUMNS = {USER_ID: pa.string(), ITEM_ID: pa.string(), EVENT_TIMESTAMP: TIMESTAMP}


@dataclass(frozen=True, eq=False)
class Histories:
    """All users' groups in flat arrays; users as they come, groups in time order, items of a group in string order."""

    user_ids: pa.StringArray
    """(users,)."""
    item_ids: pa.StringArray
    """(events,)."""
    group_offsets: Ints
    """(groups + 1,) into ``item_ids``."""
    user_offsets: Ints
    """(users + 1,) into groups."""
    timestamps: Ints
    """(groups,) microseconds since the epoch."""

    @property
    def groups(self) -> int:
        """Number of groups of all users."""
        return len(self.timestamps)

    @property
    def group_users(self) -> Ints:
        """(groups,) place of each group's user in ``user_ids``."""
        return np.repeat(np.arange(len(self.user_ids)), np.diff(self.user_offsets))

    @classmethod
    def from_interactions(cls, table: pa.Table) -> Histories:
        """Group canonical interactions, sorted by user, time and item.

        Parameters
        ----------
        table
            ``user_id`` and ``item_id`` (string), ``event_timestamp`` (timestamp[us, UTC]), no nulls; other columns
            are not read. Exact duplicates of a row are one event.

        Raises
        ------
        SchemaError
            A column is missing or has another type.
        RowError
            A value is null, or a row is out of order; the message names the row.

        Examples
        --------
        >>> from datetime import UTC, datetime
        >>> day = [datetime(2024, 1, n, tzinfo=UTC) for n in (1, 1, 2)]
        >>> rows = {"user_id": ["u"] * 3, "item_id": ["a", "b", "a"], "event_timestamp": pa.array(day, TIMESTAMP)}
        >>> Histories.from_interactions(pa.table(rows)).group_offsets.tolist()
        [0, 2, 3]
        """
        users, items, times = _columns(table)
        if len(users) == 0:
            empty = np.zeros(1, np.int64)
            return cls(users, items, empty, empty, np.zeros(0, np.int64))
        new_user, new_group, repeated = _boundaries(users, items, times)
        keep = ~repeated
        events_before = np.concatenate([[0], np.cumsum(keep)])
        group_starts, user_starts = np.flatnonzero(new_group), np.flatnonzero(new_user)
        groups_before = np.concatenate([[0], np.cumsum(new_group)])
        return cls(
            user_ids=users.take(pa.array(user_starts)),
            item_ids=items.filter(pa.array(keep)),
            group_offsets=np.append(events_before[group_starts], events_before[-1]),
            user_offsets=np.append(groups_before[user_starts], groups_before[-1]),
            timestamps=times[group_starts],
        )


def sorted_interactions(interactions: pa.Table | Iterable[pa.RecordBatch]) -> pa.Table:
    """Return user, item and time of interactions as one table, sorted by user, time and item.

    Raises
    ------
    SchemaError
        A column is missing or has another type.
    """
    if isinstance(interactions, pa.Table):
        table = _selected(interactions)
    else:
        batches = [_selected(pa.Table.from_batches([batch])) for batch in interactions]
        table = pa.concat_tables(batches) if batches else pa.schema(_COLUMNS.items()).empty_table()
    return table.sort_by([(USER_ID, "ascending"), (EVENT_TIMESTAMP, "ascending"), (ITEM_ID, "ascending")])


def _selected(table: pa.Table) -> pa.Table:
    for name, kind in _COLUMNS.items():
        if name not in table.column_names:
            raise SchemaError(f"interactions: column {name!r} is missing; found {', '.join(table.column_names)}")
        if table.schema.field(name).type != kind:
            found = table.schema.field(name).type
            raise SchemaError(f"interactions: column {name!r}: expected {kind}, found {found}; cast it first")
    return table.select(list(_COLUMNS))


def _columns(table: pa.Table) -> tuple[pa.StringArray, pa.StringArray, Ints]:
    table = _selected(table)
    for name in _COLUMNS:
        if table[name].null_count:
            row = pc.index(table[name].is_null(), True).as_py()
            raise RowError(f"interactions: row {row}: column {name!r} is null; drop the row or give it a value")
    users, items = (_one_array(table[name]) for name in (USER_ID, ITEM_ID))
    return users, items, _one_array(table[EVENT_TIMESTAMP].cast(pa.int64())).to_numpy()


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _boundaries(
    users: pa.StringArray, items: pa.StringArray, times: Ints
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return, bool (n,) each: a user begins here, a group begins here, this row repeats the one before."""
    same_user = pc.equal(users.slice(1), users.slice(0, len(users) - 1)).to_numpy(zero_copy_only=False)
    later = np.diff(times)
    tied = same_user & (later == 0)
    same_item = pc.equal(items.slice(1), items.slice(0, len(items) - 1)).to_numpy(zero_copy_only=False)
    unsorted = pc.less(items.slice(1), items.slice(0, len(items) - 1)).to_numpy(zero_copy_only=False)
    bad = np.flatnonzero((same_user & (later < 0)) | (tied & unsorted))
    if bad.size:
        raise RowError(
            f"interactions: row {bad[0] + 1} is out of order; sort by {USER_ID}, {EVENT_TIMESTAMP}, {ITEM_ID}"
        )
    new_user = np.append(True, ~same_user)
    if new_user.sum() != pc.count_distinct(users).as_py():
        raise RowError(f"interactions: a user's rows are not together; sort by {USER_ID}, {EVENT_TIMESTAMP}, {ITEM_ID}")
    return new_user, np.append(True, ~tied), np.append(False, tied & same_item)
