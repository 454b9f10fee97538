"""How popular an item was at a time: counts, mean rating, last price, categories."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recsys_llm.config import Config
from recsys_llm.producers.base import Due
from recsys_llm.producers.hashing import content_hashes, fingerprint_of
from recsys_llm.producers.timeline import Timeline, item_categories
from recsys_llm.schema import (
    CATEGORY,
    CONTENT_HASH,
    EVENT_TIMESTAMP,
    ITEM_ID,
    MEAN_RATING,
    N_EVENTS,
    N_EVENTS_30D,
    PRICE,
    RATING,
)
from recsys_llm.sources import tables, whole_keys
from recsys_llm.timestamps import TIMESTAMP, parse_granularity, to_micros, valid_from

WINDOW = 30 * 86_400_000_000
"""Microseconds of the recent count."""

CHUNK_ROWS = 65_536
"""Nothing here is dear, so large parts; the ledger and the join like them better."""

FEATURES = pa.schema(
    [
        pa.field(N_EVENTS, pa.int64()),
        pa.field(N_EVENTS_30D, pa.int64()),
        pa.field(MEAN_RATING, pa.float32()),
        pa.field(PRICE, pa.float32()),
        pa.field(CATEGORY, pa.string()),
    ]
)


class ItemStatistics:
    """Counts of events strictly before each row's stamp.

    An item has a row where something changes: when it (or a new version of its text) enters the catalogue, at the end
    of each period in which it had events, and at the end of the period in which such events leave the 30-day window.
    """

    join_key = ITEM_ID
    features = FEATURES
    chunk_rows = CHUNK_ROWS
    unit = "rows"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.manifest = {
            "fingerprint": fingerprint_of(
                {"producer": "item_statistics", "window": WINDOW, "period": config.statistics.item_granularity}
            )
        }

    def inputs(self, start: datetime, end: datetime) -> Iterator[Due]:
        """Yield the statistics due in (start, end]; they are so cheap that they are their own input."""
        period = parse_granularity(self.config.statistics.item_granularity)
        categories = item_categories(self.config, end=end)
        entered = categories.times()
        low, high = to_micros(start), to_micros(end)
        stream = tables.interactions(self.config, end=end, order_by="item", batch_rows=CHUNK_ROWS)
        for events in whole_keys(stream, ITEM_ID, batch_rows=CHUNK_ROWS):
            columns = _Columns()
            for item, first, stop in _runs(events.column(ITEM_ID)):
                history = _History.of(events, first, stop)
                stamps = history.stamps(period, entered.pop(item, []))
                columns.add(item, history, stamps[(stamps > low) & (stamps <= high)], categories)
            yield Due(self._batch(columns))
        columns = _Columns()
        for item, times in entered.items():
            stamps = np.asarray([time for time in times if low < time <= high], np.int64)
            columns.add(item, _History.empty(), stamps, categories)
        yield Due(self._batch(columns))

    def compute(self, rows: pa.RecordBatch, events: pa.RecordBatch | None) -> pa.RecordBatch:
        """Return the feature columns of ``rows``."""
        return rows.select(self.features.names)

    def cost(self, rows: pa.RecordBatch) -> int:
        """Return the number of rows."""
        return int(rows.num_rows)

    def _batch(self, columns: _Columns) -> pa.RecordBatch:
        keys, stamps, features = columns.arrays()
        hashes = content_hashes(self.manifest["fingerprint"], [keys, stamps, *features])
        return pa.RecordBatch.from_arrays(
            [keys, stamps, *features, hashes], names=[ITEM_ID, EVENT_TIMESTAMP, *self.features.names, CONTENT_HASH]
        )


class _History:
    """Events of one item in time, and their running sums."""

    def __init__(
        self,
        times: npt.NDArray[np.int64],
        ratings: npt.NDArray[np.float64],
        prices: npt.NDArray[np.float64],
    ) -> None:
        self.times = times
        rated = ~np.isnan(ratings)
        self.rating_sums = np.append(0.0, np.cumsum(np.where(rated, ratings, 0.0)))
        self.rating_counts = np.append(0, np.cumsum(rated))
        # Position + 1 of the newest priced event among the first k events.
        priced = np.where(~np.isnan(prices), np.arange(1, len(prices) + 1), 0)
        self.last_priced = np.append(0, np.maximum.accumulate(priced)) if len(prices) else np.zeros(1, np.int64)
        self.prices = np.append(np.nan, prices)

    @classmethod
    def of(cls, events: pa.RecordBatch, first: int, stop: int) -> _History:
        part = events.slice(first, stop - first)
        return cls(
            part.column(EVENT_TIMESTAMP).cast(pa.int64()).to_numpy(),
            part.column(RATING).cast(pa.float64()).to_numpy(zero_copy_only=False),
            part.column(PRICE).cast(pa.float64()).to_numpy(zero_copy_only=False),
        )

    @classmethod
    def empty(cls) -> _History:
        return cls(np.empty(0, np.int64), np.empty(0), np.empty(0))

    def stamps(self, period: int, entered: list[int]) -> npt.NDArray[np.int64]:
        """Return, sorted, the times at which the item's row changes."""
        ends = valid_from(self.times, period)
        leaves = valid_from(self.times + WINDOW, period)
        return np.unique(np.concatenate([ends, leaves, np.asarray(entered, np.int64)]))


class _Columns:
    def __init__(self) -> None:
        self._keys: list[str] = []
        self._categories: list[str | None] = []
        self._stamps: list[npt.NDArray[np.int64]] = []
        self._numbers: list[npt.NDArray[np.float64]] = []

    def add(self, item: str, history: _History, stamps: npt.NDArray[np.int64], categories: Timeline) -> None:
        """Add one item's rows at ``stamps``."""
        before = np.searchsorted(history.times, stamps, side="left")
        recent = before - np.searchsorted(history.times, stamps - WINDOW, side="left")
        rated = history.rating_counts[before]
        with np.errstate(invalid="ignore"):
            mean = history.rating_sums[before] / np.where(rated > 0, rated, np.nan)
        price = history.prices[history.last_priced[before]]
        self._keys.extend([item] * len(stamps))
        # A version that enters at the stamp itself belongs to the row: it is catalogue data, known from then on.
        self._categories.extend(categories.before(item, stamp + 1) for stamp in stamps.tolist())
        self._stamps.append(stamps)
        self._numbers.append(np.stack([before, recent, mean, price]))

    def arrays(self) -> tuple[pa.Array, pa.Array, list[pa.Array]]:
        """Return keys, stamps and feature columns."""
        stamps = np.concatenate([np.empty(0, np.int64), *self._stamps])
        events, recent, mean, price = np.concatenate([np.empty((4, 0)), *self._numbers], axis=1)
        features = [
            pa.array(events.astype(np.int64)),
            pa.array(recent.astype(np.int64)),
            pa.array(mean.astype(np.float32), from_pandas=True),
            pa.array(price.astype(np.float32), from_pandas=True),
            pa.array(self._categories, pa.string()),
        ]
        return pa.array(self._keys, pa.string()), pa.array(stamps).cast(TIMESTAMP), features


def _runs(keys: pa.Array) -> Iterator[tuple[str, int, int]]:
    """Yield (key, first, stop) of each run of equal keys."""
    codes = keys.dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.append(True, codes[1:] != codes[:-1])) if len(codes) else np.empty(0, np.int64)
    for first, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(codes)], strict=True):
        yield keys[first].as_py(), first, stop
