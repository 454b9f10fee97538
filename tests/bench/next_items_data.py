"""A small world for the next-item contest: a planted chain, and one item that becomes known after the cut-off."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa

from recsys_llm.bench.next_items_world import ALWAYS, Split, World, make_world
from recsys_llm.timestamps import to_micros
from tests.seqgan.seqgan_data import ITEMS, START, chain, table

CUT = START + timedelta(days=15)
NEW, LATE = "new", START + timedelta(days=17)


def tiny_events(users: int = 12, days: int = 20) -> pa.Table:
    events = chain(users=users, days=days)
    rows = [tuple(row.values()) for row in events.to_pylist()]
    rows += [(f"u{user:02}", NEW, LATE + timedelta(days=1, seconds=user)) for user in range(0, users, 3)]
    rows += [("first", "i03", CUT + timedelta(hours=1))]
    return table(rows)


def tiny_world(events: pa.Table | None = None, *, cut: datetime = CUT, split: Split = "global-time") -> World:
    events = tiny_events() if events is None else events
    ids = [f"i{item:02}" for item in range(ITEMS + 1)] + [NEW]
    vectors = np.random.default_rng(1).normal(size=(len(ids), 6)).astype(np.float32)
    known = np.full(len(ids), ALWAYS)
    known[-1] = to_micros(LATE)
    return make_world(events, cut, (ids, vectors, "encoder-1"), known, split=split)
