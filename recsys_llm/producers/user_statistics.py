"""What a user did up to a time: how much, at which prices, which items last, which categories most."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice

import numpy as np
import pyarrow as pa

from recsys_llm.config import Config
from recsys_llm.producers.base import Due
from recsys_llm.producers.hashing import content_hashes, fingerprint_of
from recsys_llm.producers.item_statistics import CHUNK_ROWS
from recsys_llm.producers.timeline import Timeline, item_categories
from recsys_llm.producers.user_rows import UserRows, new_events, user_rows, whole_users
from recsys_llm.schema import (
    CATEGORIES,
    CATEGORY_SHARES,
    CONTENT_HASH,
    EVENT_TIMESTAMP,
    ITEM_ID,
    LAST_GROUP_SIZE,
    MEAN_PRICE,
    MEAN_RATING,
    N_EVENTS,
    PRICE,
    RATING,
    RECENT_ITEMS,
    ROW_ID,
    USER_ID,
)
from recsys_llm.timestamps import TIMESTAMP, parse_granularity

FEATURES = pa.schema(
    [
        pa.field(N_EVENTS, pa.int64()),
        pa.field(MEAN_RATING, pa.float32()),
        pa.field(MEAN_PRICE, pa.float32()),
        pa.field(RECENT_ITEMS, pa.list_(pa.string())),
        pa.field(LAST_GROUP_SIZE, pa.int64()),
        pa.field(CATEGORIES, pa.list_(pa.string())),
        pa.field(CATEGORY_SHARES, pa.list_(pa.float32())),
        pa.field(ROW_ID, pa.int64()),
    ]
)


class UserStatistics:
    """A user's history in numbers, after each group of tied events.

    ``recent_items`` is newest first (ties by item id, descending) and its first ``last_group_size`` entries are the
    newest group. ``category_shares`` are shares of the user's events in the most frequent categories; an event counts
    for each category of its item, as the catalogue had it at the event.
    """

    join_key = USER_ID
    features = FEATURES
    chunk_rows = CHUNK_ROWS
    unit = "rows"

    def __init__(self, config: Config) -> None:
        self.config = config
        settings = config.statistics
        self._period = parse_granularity(settings.user_granularity)
        self.manifest = {
            "fingerprint": fingerprint_of(
                {
                    "producer": "user_statistics",
                    "period": settings.user_granularity,
                    "recent_items": settings.recent_items,
                    "categories": settings.categories,
                }
            )
        }

    def inputs(self, start: datetime, end: datetime) -> Iterator[Due]:
        """Yield the statistics due in (start, end]; they are so cheap that they are their own input."""
        categories = item_categories(self.config, end=end)
        for events in whole_users(self.config, end):
            rows = user_rows(events, period=self._period, start=start, end=end)
            if len(rows.stamp):
                yield Due(self._batch(events, rows, categories))

    def compute(self, rows: pa.RecordBatch, events: pa.RecordBatch | None) -> pa.RecordBatch:
        """Return the feature columns of ``rows``."""
        return rows.select([name for name in self.features.names if name != ROW_ID])

    def cost(self, rows: pa.RecordBatch) -> int:
        """Return the number of rows."""
        return int(rows.num_rows)

    def _batch(self, events: pa.RecordBatch, rows: UserRows, categories: Timeline) -> pa.RecordBatch:
        reader = _EventReader(events, categories)
        settings = self.config.statistics
        table: dict[str, list[object]] = {name: [] for name in self.features.names if name != ROW_ID}
        state = _State(settings.recent_items)
        for is_new_user, events_since in new_events(rows):
            if is_new_user:
                state = _State(settings.recent_items)
            for event in events_since:
                state.add(*reader.event(event))
            for name, value in state.row(settings.categories).items():
                table[name].append(value)
        keys = events.column(USER_ID).take(pa.array(rows.first))
        stamps = pa.array(rows.stamp, pa.int64()).cast(TIMESTAMP)
        features = [pa.array(table[name], self.features.field(name).type) for name in table]
        hashes = content_hashes(self.manifest["fingerprint"], [keys, stamps, *features])
        return pa.RecordBatch.from_arrays(
            [keys, stamps, *features, hashes], names=[USER_ID, EVENT_TIMESTAMP, *table, CONTENT_HASH]
        )


class _EventReader:
    """Plain Python values of events, by position."""

    def __init__(self, events: pa.RecordBatch, categories: Timeline) -> None:
        self._items = events.column(ITEM_ID).to_pylist()
        self._times = events.column(EVENT_TIMESTAMP).cast(pa.int64()).to_pylist()
        self._ratings = events.column(RATING).to_pylist()
        self._prices = events.column(PRICE).to_pylist()
        self._categories = categories

    def event(self, position: int) -> tuple[str, int, float | None, float | None, list[str]]:
        item, time = self._items[position], self._times[position]
        # The event itself shows that the item was in the catalogue by then, so a version of the same instant counts.
        names = (self._categories.before(item, time + 1) or "").split(",")
        known = [name for name in (text.strip() for text in names) if name]
        return item, time, self._ratings[position], self._prices[position], known


@dataclass
class _State:
    """Running statistics of one user."""

    recent_length: int
    recent: deque[str] = field(init=False)
    categories: Counter[str] = field(default_factory=Counter)
    events: int = 0
    group_time: int = -1
    group_size: int = 0
    rating_sum: float = 0.0
    rating_count: int = 0
    price_sum: float = 0.0
    price_count: int = 0

    def __post_init__(self) -> None:
        self.recent = deque(maxlen=self.recent_length)

    def add(self, item: str, time: int, rating: float | None, price: float | None, categories: list[str]) -> None:
        self.events += 1
        self.recent.appendleft(item)
        self.categories.update(categories)
        self.group_size = self.group_size + 1 if time == self.group_time else 1
        self.group_time = time
        if rating is not None:
            self.rating_sum += rating
            self.rating_count += 1
        if price is not None:
            self.price_sum += price
            self.price_count += 1

    def row(self, count: int) -> dict[str, object]:
        # By count, then by name: Counter.most_common alone would order ties by insertion.
        favourites = list(islice(sorted(self.categories.items(), key=lambda pair: (-pair[1], pair[0])), count))
        return {
            N_EVENTS: self.events,
            MEAN_RATING: self.rating_sum / self.rating_count if self.rating_count else None,
            MEAN_PRICE: self.price_sum / self.price_count if self.price_count else None,
            RECENT_ITEMS: list(self.recent),
            LAST_GROUP_SIZE: self.group_size,
            CATEGORIES: [name for name, _ in favourites],
            CATEGORY_SHARES: [float(np.float32(number / self.events)) for _, number in favourites],
        }
