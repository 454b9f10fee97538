"""``recsys-llm bench advance``: what a new event costs, from the stored state to the stored list, against reading the
user's whole history again.
"""

from __future__ import annotations

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from recsys_llm.bench.backfill import EVENTS_PER_USER, ITEMS, TOP_N, USERS, made_up_events
from recsys_llm.bench.report import report
from recsys_llm.bench.timing import interleaved
from recsys_llm.config import load_config
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM_ID, NEXT_QUERY, USER_ID, USER_NEXT_ITEMS
from recsys_llm.seqgan import Checkpoint, Histories, next_items
from recsys_llm.seqgan.histories import sorted_interactions
from recsys_llm.seqgan.states import advance, next_items_of, states_after
from recsys_llm.streaming import NextItemsStream
from recsys_llm.timestamps import TIMESTAMP, as_utc

TEXT_DIM = 384
"""Of the items' text vectors."""
BATCH = 100
"""Users whose events come together."""
TOLERANCE = 1e-5


def bench_advance(repository: Path, *, runs: int) -> dict[str, Any]:
    """Time new events of users with histories of 200 events, in turns, in CPU seconds.

    Parameters
    ----------
    repository
        Holds :func:`~recsys_llm.bench.backfill.made_up_events` of ``max(USERS)`` users, a model of them with text
        vectors, and both views materialised.
    runs
        Of each side.
    """
    config = load_config(repository)
    checkpoint = Checkpoint.load(config.path(config.sequence_models["seqgan_v1"].checkpoint))
    past = made_up_events(max(USERS))
    events = _NewEvents(past)
    stream = NextItemsStream(repository, device="cpu")
    histories = Histories.from_interactions(past)
    newest = histories.user_offsets[1 : BATCH + 1] - 1
    states = states_after(checkpoint, histories, newest, device="cpu")
    following = Histories.from_interactions(events.batch(BATCH))
    sides: dict[str, Any] = {
        "stream_1": lambda: stream.advance_many(events.to_send(1)),
        f"stream_{BATCH}": lambda: stream.advance_many(events.to_send(BATCH)),
        f"model_{BATCH}": lambda: next_items_of(
            checkpoint, advance(checkpoint, states, following, device="cpu"), TOP_N, device="cpu"
        ),
        f"again_{BATCH}": lambda: next_items(checkpoint, histories, newest, TOP_N, device="cpu"),
    }
    stream.advance_many(events.to_send(BATCH))  # what is loaded at first use
    times = interleaved(sides, runs, clock=time.process_time)
    seconds = {name: float(np.median(values)) for name, values in times.items()}
    results = [
        {"name": name, "median": seconds[name], "runs": runs, "events_per_s": int(name.split("_")[1]) / seconds[name]}
        for name in sides
    ]
    difference = _difference(stream, checkpoint, sorted_interactions(pa.concat_tables([past, *events.sent])))
    ratio = seconds[f"again_{BATCH}"] / seconds[f"model_{BATCH}"]
    settings = {
        "items": ITEMS,
        "events_per_user": EVENTS_PER_USER,
        "text_dim": checkpoint.manifest["text"]["dim"],
        "batch": BATCH,
        "top_n": TOP_N,
        "threads": torch.get_num_threads(),
        "online_store": "sqlite",
    }
    targets = [
        {"name": "difference", "target": "<= 1e-5", "value": difference, "met": difference <= TOLERANCE},
        {"name": "model_ratio_to_reading_again", "target": ">= 1", "value": ratio, "met": ratio >= 1},
    ]
    return report("bench advance", settings=settings, results=results, targets=targets)


class _NewEvents:
    """Events later than all before."""

    def __init__(self, past: pa.Table) -> None:
        self.users = past[USER_ID].unique().to_pylist()
        self.items = past[ITEM_ID].unique().to_pylist()
        self.moment = as_utc(max(past[EVENT_TIMESTAMP].to_pylist()))
        self.rng = np.random.default_rng(1)
        self.sent: list[pa.Table] = []

    def batch(self, users: int) -> pa.Table:
        """Return an event of each of the first ``users`` users, an hour after the last batch."""
        self.moment += timedelta(hours=1)
        columns = {
            USER_ID: pa.array(self.users[:users]),
            ITEM_ID: pa.array(self.rng.choice(self.items, users).tolist()),
            EVENT_TIMESTAMP: pa.array([self.moment] * users, TIMESTAMP),
        }
        return pa.table(columns)

    def to_send(self, users: int) -> pa.Table:
        """Return :meth:`batch`, and remember it."""
        self.sent.append(self.batch(users))
        return self.sent[-1]


def _difference(stream: NextItemsStream, checkpoint: Checkpoint, everything: pa.Table) -> float:
    """Return how far the stored queries, the log of the sum included, are from those of the whole histories."""
    histories = Histories.from_interactions(everything)
    users = histories.user_ids.to_pylist()[:BATCH]
    expected = next_items(checkpoint, histories, histories.user_offsets[1 : BATCH + 1] - 1, TOP_N, device="cpu").queries
    rows = [{USER_ID: user} for user in users]
    stored = stream.store.get_online_features([f"{USER_NEXT_ITEMS}:{NEXT_QUERY}"], rows).to_dict()
    return float(np.abs(np.array(stored[NEXT_QUERY]) - expected).max())
