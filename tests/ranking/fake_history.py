"""Features of a tiny world, recomputed by plain loops for each question: slow, and easy to see that it is right."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pyarrow as pa

from recsys_llm.retrieval.blocks import EntityBlock
from recsys_llm.retrieval.training import TrainingSet

T0 = datetime(2024, 1, 1, tzinfo=UTC)
VIEWS = {"item_stats": "fi", "user_stats": "fu"}


def hour(count: float) -> datetime:
    return T0 + timedelta(hours=count)


def world(seed: int = 0, users: int = 12, items: int = 15, events: int = 240) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Interactions over 40 days with ties, repeats and baskets; items of which some enter late."""
    rng = np.random.default_rng(seed)
    rows = pd.DataFrame(
        {
            "user_id": [f"u{n}" for n in rng.integers(0, users, events)],
            "item_id": [f"i{n}" for n in rng.integers(0, items, events)],
            # Multiples of 6 hours: many ties, and events at midnight exactly.
            "event_timestamp": [hour(6 * int(n)) for n in rng.integers(4, 160, events)],
        }
    ).drop_duplicates()
    entered = [hour(0) if n % 3 else hour(48 * n) for n in range(items)]
    catalogue = pd.DataFrame(
        {
            "item_id": [f"i{n}" for n in range(items)],
            "event_timestamp": entered,
            "category": [("A", "B", "A,B", "")[n % 4] for n in range(items)],
        }
    )
    for table in (rows, catalogue):
        table["event_timestamp"] = pd.DatetimeIndex(table["event_timestamp"]).as_unit("us")
    return rows.reset_index(drop=True), catalogue


class FakeHistory:
    """What a FeatureClient answers, from raw tables."""

    def __init__(self, interactions: pd.DataFrame, items: pd.DataFrame) -> None:
        self.events = list(
            zip(interactions["user_id"], interactions["item_id"], interactions["event_timestamp"], strict=True)
        )
        self.category = dict(zip(items["item_id"], items["category"], strict=True))
        self.calls: list[tuple[str, int]] = []

    def bridges(self, service: str) -> dict[str, str]:
        return {}

    def fingerprints(self, service: str) -> dict[str, str | None]:
        return dict(VIEWS)

    def entity_history(self, entity, ids, timestamps, *, service):
        assert len(ids) == len(timestamps)
        assert len(set(zip(ids, timestamps, strict=True))) == len(ids)
        self.calls.append((entity, len(ids)))
        make = self._item if entity == "item" else self._user
        return block(entity, list(ids), [make(key, at) for key, at in zip(ids, timestamps, strict=True)])

    def training_set(self, examples: pd.DataFrame, *, service: str) -> TrainingSet:
        sides = {}
        for entity in ("user", "item"):
            keys = list(zip(examples[f"{entity}_id"], examples["event_timestamp"], strict=True))
            distinct = {key: row for row, key in enumerate(dict.fromkeys(keys))}
            ids, times = zip(*distinct, strict=True)
            side = self.entity_history(entity, ids, times, service=service)
            sides[entity] = (side, np.array([distinct[key] for key in keys]))
        return TrainingSet(
            service=service,
            user=sides["user"][0],
            item=sides["item"][0],
            user_rows=sides["user"][1],
            item_rows=sides["item"][1],
            fingerprints=self.fingerprints(service),
            examples=examples,
        )

    def _item(self, item: str, at: datetime) -> dict[str, object]:
        day = at.replace(hour=0, minute=0, second=0, microsecond=0)
        times = [t for _, i, t in self.events if i == item and t < day]
        return {
            "n_events": len(times),
            "n_events_30d": sum(t >= day - timedelta(days=30) for t in times),
            "mean_rating": None,
            "price": None,
            "category": self.category[item],
        }

    def _user(self, user: str, at: datetime) -> dict[str, object]:
        mine = sorted(((t, i) for u, i, t in self.events if u == user and t < at), reverse=True)
        if not mine:
            return {name: None for name in (*NUMBERS["user"], *LISTS)}
        counts = Counter(name for _, i in mine for name in self.category[i].split(",") if name)
        return {
            "n_events": len(mine),
            "mean_rating": None,
            "mean_price": None,
            "last_group_size": sum(t == mine[0][0] for t, _ in mine),
            "recent_items": [i for _, i in mine][:50],
            "categories": list(counts),
            "category_shares": [count / len(mine) for count in counts.values()],
        }


NUMBERS = {
    "item": ("n_events", "n_events_30d", "mean_rating", "price"),
    "user": ("n_events", "mean_rating", "mean_price", "last_group_size"),
}
LISTS = {"recent_items": pa.string(), "categories": pa.string(), "category_shares": pa.float32()}


def block(entity: str, ids: list[str], rows: list[dict[str, object]]) -> EntityBlock:
    """Return a block of plain rows; None is missing."""
    view = f"{entity}_stats"
    columns = {
        f"{view}__{name}": np.array([np.nan if row[name] is None else row[name] for row in rows], np.float32)
        for name in NUMBERS[entity]
    }
    if entity == "item":
        columns[f"{view}__category"] = pa.array([row["category"] for row in rows], pa.string())
    else:
        for name, kind in LISTS.items():
            columns[f"{view}__{name}"] = pa.array([row[name] for row in rows], pa.list_(kind))
    return EntityBlock(entity, tuple(ids), columns)
