"""Tiny deterministic stand-ins for our own small protocols."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pyarrow as pa

from recsys_llm.producers.base import Due
from recsys_llm.producers.hashing import content_hashes
from recsys_llm.schema import CONTENT_HASH, EMBEDDING, EVENT_TIMESTAMP, ITEM_ID, ROW_ID
from recsys_llm.timestamps import TIMESTAMP

DAY_ONE = datetime(2024, 1, 1, tzinfo=UTC)


class FakeProducer:
    """A producer of 2-d vectors: (length of the text, number of vowels). Counts what it was asked to compute."""

    join_key = ITEM_ID
    unit = "letters"
    features = pa.schema([pa.field(EMBEDDING, pa.list_(pa.float32())), pa.field(ROW_ID, pa.int64())])

    def __init__(self, rows: list[tuple[str, int, str]], *, fingerprint: str = "f1", chunk_rows: int = 2) -> None:
        """Take rows of (item, day, text)."""
        self.rows = sorted(rows)
        self.manifest = {"fingerprint": fingerprint, "dim": "2"}
        self.chunk_rows = chunk_rows
        self.computed: list[str] = []
        self.broken: dict[str, list[float]] = {}
        """Text to the vector that comes out for it instead."""

    def inputs(self, start: datetime, end: datetime) -> Iterator[Due]:
        due = [(item, day_stamp(day), text) for item, day, text in self.rows]
        due = [row for row in due if start < row[1] <= end]
        for first in range(0, len(due), 5):
            some = due[first : first + 5]
            keys = pa.array([row[0] for row in some], pa.string())
            stamps = pa.array([row[1] for row in some], TIMESTAMP)
            texts = pa.array([row[2] for row in some], pa.string())
            hashes = content_hashes(self.manifest["fingerprint"], [keys, stamps, texts])
            names = [ITEM_ID, EVENT_TIMESTAMP, "text", CONTENT_HASH]
            yield Due(pa.RecordBatch.from_arrays([keys, stamps, texts, hashes], names=names))

    def compute(self, rows: pa.RecordBatch, events: pa.RecordBatch | None) -> pa.RecordBatch:
        texts = rows.column("text").to_pylist()
        self.computed.extend(texts)
        vectors = [self.broken.get(text, [float(len(text)), float(sum(c in "aeiou" for c in text))]) for text in texts]
        return pa.RecordBatch.from_arrays([pa.array(vectors, self.features.field(EMBEDDING).type)], names=[EMBEDDING])

    def cost(self, rows: pa.RecordBatch) -> int:
        return sum(len(text) for text in rows.column("text").to_pylist())


def day_stamp(day: int) -> datetime:
    """Return midnight of the ``day``-th day of 2024 (0: 1 January)."""
    return DAY_ONE + timedelta(days=day)
