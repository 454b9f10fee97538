"""Interactions as arrays, for training and evaluating an encoder on what follows what."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recsys_llm.schema import EVENT_TIMESTAMP, ITEM_ID, LIKED, USER_ID
from recsys_llm.timestamps import TIMESTAMP

Ints = npt.NDArray[np.int64]

_SCHEMA = pa.schema([(USER_ID, pa.string()), (EVENT_TIMESTAMP, TIMESTAMP), (ITEM_ID, pa.string()), (LIKED, pa.bool_())])


class Events(NamedTuple):
    """Events with known items, ordered by user, time and item id; all of length n."""

    user: Ints
    """Position among all users of the interactions, sorted by id."""
    time: Ints
    """Microseconds since the epoch."""
    item: Ints
    """Position in the catalogue."""
    liked: npt.NDArray[np.bool_]

    def where(self, kept: npt.NDArray[np.bool_]) -> Events:
        """Return some of the events, in the same order."""
        return Events(self.user[kept], self.time[kept], self.item[kept], self.liked[kept])


def event_table(interactions: pa.Table | Iterable[pa.RecordBatch]) -> pa.Table:
    """Return the columns that are needed of canonical interactions, ordered by user, time and item."""
    if isinstance(interactions, pa.Table):
        table = interactions.select(_SCHEMA.names)
    else:
        parts = [pa.Table.from_batches([batch]).select(_SCHEMA.names) for batch in interactions]
        table = pa.concat_tables([_SCHEMA.empty_table(), *parts])
    return table.sort_by([(name, "ascending") for name in (USER_ID, EVENT_TIMESTAMP, ITEM_ID)])


def read_events(interactions: pa.Table | Iterable[pa.RecordBatch], item_ids: Sequence[str]) -> Events:
    """Return the events of the items of a catalogue; those of other items are left out.

    Examples
    --------
    >>> rows = {"user_id": ["u", "u"], "item_id": ["b", "x"], "event_timestamp": [0, 1], "liked": [True, True]}
    >>> read_events(pa.table(rows), ["a", "b"]).item.tolist()
    [1]
    """
    table = event_table(interactions)
    users = table[USER_ID].combine_chunks()
    user = pc.index_in(users, value_set=pc.unique(users)).to_numpy().astype(np.int64)
    time = table[EVENT_TIMESTAMP].cast(pa.int64()).to_numpy().astype(np.int64)
    found = pc.index_in(table[ITEM_ID], value_set=pa.array(item_ids, pa.string()))
    item = pc.fill_null(found, -1).to_numpy().astype(np.int64)
    return Events(user, time, item, table[LIKED].to_numpy().astype(np.bool_)).where(item >= 0)
