"""What was known of an item at a time: one text per item and version of it."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable
from datetime import datetime

import pyarrow as pa

from recsys_llm.config import Config
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM_ID
from recsys_llm.sources import tables


class Catalogue:
    """A short text of each item, as it was at any time.

    Held in memory: about 100 bytes and the text for each version of each item.
    """

    def __init__(self) -> None:
        self._times: dict[str, list[int]] = {}
        self._texts: dict[str, list[str]] = {}

    @classmethod
    def read(cls, config: Config, render: Callable[[pa.RecordBatch], Iterable[str]], *, end: datetime) -> Catalogue:
        """Read all items up to ``end``; ``render`` gives the text of each row of a batch."""
        catalogue = cls()
        for batch in tables.items(config, end=end):
            times = batch.column(EVENT_TIMESTAMP).cast(pa.int64()).to_pylist()
            for item, time, text in zip(batch.column(ITEM_ID).to_pylist(), times, render(batch), strict=True):
                catalogue._times.setdefault(item, []).append(time)
                catalogue._texts.setdefault(item, []).append(text)
        return catalogue

    def before(self, item: str, micros: int) -> str | None:
        """Return the text of ``item`` from strictly before a time (microseconds since the epoch), or None."""
        times = self._times.get(item)
        if times is None:
            return None
        version = bisect_left(times, micros)
        return self._texts[item][version - 1] if version else None
