"""``recsys-llm bench backfill``: what it costs to predict after every event of a history, and that it grows linearly.

All positions of a user's sequence come from one forward pass (:mod:`recsys_llm.seqgan.reading`). The way without that
reads each prefix from its start, so that its cost grows with the square of a history's length.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from recsys_llm.bench.report import report
from recsys_llm.bench.timing import interleaved
from recsys_llm.errors import ModelError
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from recsys_llm.seqgan import Checkpoint, Histories, NextItems, SeqGANConfig, next_items, train
from recsys_llm.timestamps import TIMESTAMP, to_micros

ITEMS, EVENTS_PER_USER, TOP_N = 5_000, 200, 20
USERS = (50, 100, 200)
_PREFIXES = 100
"""Positions that are also predicted by reading their prefix alone."""
_START = datetime(2024, 1, 1, tzinfo=UTC)
_TOLERANCE = 1e-4


def bench_backfill(*, runs: int) -> dict[str, Any]:
    """Time predictions after every event of made-up histories of three sizes, in turns, in CPU seconds.

    Raises
    ------
    ModelError
        A prediction after a prefix alone differs: its time would say nothing.
    """
    checkpoint = _checkpoint()
    worlds = {users: Histories.from_interactions(made_up_events(users)) for users in USERS}
    positions = np.sort(np.random.default_rng(0).choice(worlds[USERS[0]].groups, _PREFIXES, replace=False))
    prefixes = [_prefix(int(position)) for position in positions]
    _check_equal(checkpoint, worlds[USERS[0]], positions, prefixes)
    sides: dict[str, Any] = {
        f"{users * EVENTS_PER_USER}_events": partial(_all, checkpoint, worlds[users]) for users in USERS
    }
    sides["prefixes"] = lambda: [_last(checkpoint, found) for found in prefixes]
    times = interleaved(sides, runs, clock=time.process_time)
    seconds = {name: float(np.median(values)) for name, values in times.items()}
    results = [
        {"name": name, "median": seconds[name], "runs": runs, "rows_per_s": _rows(name) / seconds[name]}
        for name in sides
    ]
    smallest, largest = (seconds[f"{users * EVENTS_PER_USER}_events"] / users for users in (USERS[0], USERS[-1]))
    growth, ratio = largest / smallest, seconds["prefixes"] / _PREFIXES / (largest / EVENTS_PER_USER)
    settings = {"items": ITEMS, "events_per_user": EVENTS_PER_USER, "top_n": TOP_N, "threads": torch.get_num_threads()}
    targets = [
        {"name": "seconds_per_event_growth", "target": "<= 1.2", "value": growth, "met": growth <= 1.2},
        {"name": "ratio_to_prefixes", "target": ">= 1", "value": ratio, "met": ratio >= 1},
    ]
    return report("bench backfill", settings=settings, results=results, targets=targets)


def made_up_events(users: int) -> pa.Table:
    """Return canonical interactions: an event an hour for each user, items drawn by a power law."""
    rng = np.random.default_rng(0)
    share = 1.0 / np.arange(1, ITEMS + 1)
    items = rng.choice(ITEMS, (max(USERS), EVENTS_PER_USER), p=share / share.sum())[:users]
    hours = np.tile(np.arange(EVENTS_PER_USER), users)
    return pa.table(
        {
            USER_ID: pa.array([f"u{user:05d}" for user in range(users) for _ in range(EVENTS_PER_USER)]),
            ITEM_ID: pa.array([f"i{item:05d}" for item in items.ravel()]),
            EVENT_TIMESTAMP: pa.array(to_micros(_START) + hours * 3_600_000_000).cast(TIMESTAMP),
        }
    )


def _checkpoint() -> Checkpoint:
    config = SeqGANConfig(mle_epochs=1, adversarial_epochs=0)
    return train(made_up_events(max(USERS)), config, until=_START + timedelta(days=365), device="cpu")


def _all(checkpoint: Checkpoint, histories: Histories) -> NextItems:
    return next_items(checkpoint, histories, np.arange(histories.groups), TOP_N, device="cpu")


def _last(checkpoint: Checkpoint, histories: Histories) -> NextItems:
    return next_items(checkpoint, histories, np.array([histories.groups - 1]), TOP_N, device="cpu")


def _prefix(position: int) -> Histories:
    """Return the history of one user up to a position."""
    first = position // EVENTS_PER_USER * EVENTS_PER_USER
    return Histories.from_interactions(made_up_events(USERS[0]).slice(first, position - first + 1))


def _check_equal(checkpoint: Checkpoint, whole: Histories, positions: Any, prefixes: list[Histories]) -> None:
    together = next_items(checkpoint, whole, positions, TOP_N, device="cpu").log_probs
    alone = [_last(checkpoint, one).log_probs for one in prefixes]
    difference = float(np.nanmax(np.abs(np.concatenate(alone) - together)))
    if difference > _TOLERANCE:
        raise ModelError(f"bench backfill: a prefix alone gives other log-probabilities ({difference:.2g} apart)")


def _rows(name: str) -> int:
    return _PREFIXES if name == "prefixes" else int(name.split("_")[0])
