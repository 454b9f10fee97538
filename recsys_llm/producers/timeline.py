"""What was known of an item or a user at a time: texts in the order of their times."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from datetime import datetime

import pyarrow as pa

from recsys_llm.config import Config
from recsys_llm.schema import CATEGORY, EVENT_TIMESTAMP, ITEM_ID
from recsys_llm.sources import tables


class Timeline:
    """Short texts of each key, as they were at any time.

    Held in memory: about 100 bytes and the text for each row.
    """

    def __init__(self) -> None:
        self._times: dict[str, list[int]] = {}
        self._texts: dict[str, list[str]] = {}

    @classmethod
    def read(
        cls, batches: Iterable[pa.RecordBatch], key: str, texts: Callable[[pa.RecordBatch], Iterable[str]]
    ) -> Timeline:
        """Read all of ``batches``, which are ordered by ``key`` and time; ``texts`` gives the text of each row."""
        timeline = cls()
        for batch in batches:
            times = batch.column(EVENT_TIMESTAMP).cast(pa.int64()).to_pylist()
            for name, time, text in zip(batch.column(key).to_pylist(), times, texts(batch), strict=True):
                timeline._times.setdefault(name, []).append(time)
                timeline._texts.setdefault(name, []).append(text)
        return timeline

    def times(self) -> dict[str, list[int]]:
        """Return the times of each key, in microseconds since the epoch."""
        return dict(self._times)

    def changes(self, keys: Iterable[str]) -> tuple[list[str], list[int]]:
        """Return each time of each of ``keys``, with the key repeated; unknown keys have none."""
        found = [(key, time) for key in keys for time in self._times.get(key, ())]
        return [key for key, _ in found], [time for _, time in found]

    def before(self, key: str, micros: int) -> str | None:
        """Return the newest text from strictly before a time (microseconds since the epoch), or None."""
        return next(iter(self.newest_before(key, micros, 1)), None)

    def newest_before(self, key: str, micros: int, count: int) -> list[str]:
        """Return up to ``count`` texts from strictly before a time, newest first."""
        if key not in self._times:
            return []
        stop = bisect_left(self._times[key], micros)
        return self._texts[key][max(0, stop - count) : stop][::-1]


def item_categories(config: Config, *, end: datetime) -> Timeline:
    """Return the category text of each item, version by version; empty where it has none."""

    def texts(batch: pa.RecordBatch) -> list[str]:
        return [value or "" for value in batch.column(CATEGORY).to_pylist()]

    return Timeline.read(tables.items(config, end=end), ITEM_ID, texts)
