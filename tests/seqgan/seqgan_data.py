"""Interactions with a planted chain, for tests of the sequence model."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa

from recsys_llm.seqgan import ItemVectors, SeqGANConfig
from recsys_llm.timestamps import TIMESTAMP

START = datetime(2024, 1, 1, tzinfo=UTC)
UNTIL = START + timedelta(days=60)
ITEMS = 20
SMALL = SeqGANConfig(
    embedding_dim=16,
    hidden_dim=16,
    dropout=0.1,
    item_dropout=0.0,
    max_groups=10,
    batch_steps=128,
    learning_rate=0.02,
    weight_decay=0.0,
    mle_epochs=4,
    discriminator_dim=8,
    discriminator_steps=3,
    horizon=3,
    continuations=8,
    rollouts=2,
    adversarial_epochs=1,
    generator_steps=3,
)


def table(rows: list[tuple[str, str, datetime]]) -> pa.Table:
    """Canonical interactions of (user, item, time), sorted."""
    users, items, times = zip(*sorted(rows, key=lambda row: (row[0], row[2], row[1])), strict=True)
    columns = {"user_id": pa.array(users), "item_id": pa.array(items), "event_timestamp": pa.array(times, TIMESTAMP)}
    return pa.table(columns)


def chain(users: int = 50, days: int = 80, seed: int = 0) -> pa.Table:
    """Every day each user goes on from item i to i + 1 with probability 0.9, else anywhere."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        item = int(rng.integers(ITEMS))
        for day in range(days):
            rows.append((f"u{user:02}", f"i{item:02}", START + timedelta(days=day, seconds=user)))
            item = (item + 1) % ITEMS if rng.random() < 0.9 else int(rng.integers(ITEMS))
    return table(rows)


def vectors(seed: int = 0) -> ItemVectors:
    drawn = np.random.default_rng(seed).normal(size=(ITEMS + 2, 6)).astype(np.float32)
    return ItemVectors(tuple(f"i{item:02}" for item in range(ITEMS + 2)), drawn, "encoder-1")
