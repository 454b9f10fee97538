"""A source in memory: property tests write and read hundreds of tables, and opening a file takes 20 ms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from unittest import mock

import pyarrow as pa
import pyarrow.compute as pc

from recsys_llm.timestamps import BEGINNING, TIMESTAMP


class MemorySource:
    """Keeps the contract of a source (see :class:`recsys_llm.sources.base.Source`), for batches of any size."""

    def __init__(self, table: pa.Table, timestamp: str, name: str) -> None:
        self.table, self.timestamp, self.name = table, timestamp, name

    def schema(self) -> pa.Schema:
        return self.table.schema

    def batches(
        self, columns=None, *, start=None, end=None, order_by=(), batch_rows=3, null_timestamps=None
    ) -> Iterator[pa.RecordBatch]:
        times = self.table.column(self.timestamp)
        kept = pa.array([True] * len(times), pa.bool_())
        if start is not None:
            kept = pc.and_(kept, pc.greater(times, pa.scalar(start, TIMESTAMP)).combine_chunks())
        if end is not None:
            kept = pc.and_(kept, pc.less_equal(times, pa.scalar(end, TIMESTAMP)).combine_chunks())
        table = self.table.filter(pc.fill_null(kept, start is None if null_timestamps is None else null_timestamps))
        place = table.column_names.index(self.timestamp)
        filled = table.set_column(place, self.timestamp, pc.fill_null(table[self.timestamp], BEGINNING))
        table = table.take(pc.sort_indices(filled, [(name, "ascending") for name in order_by]))
        if table.num_rows:
            yield from table.select(columns or table.column_names).combine_chunks().to_batches(min(batch_rows, 3))

    def rows(self, columns, predicate, *, limit=2) -> list[str]:
        return []


@contextmanager
def in_memory(tables: Mapping[str, pa.Table]) -> Iterator[None]:
    """Read ``tables`` (by the path in the configuration) wherever a source is opened."""

    def opened(table, root, *, name):
        return MemorySource(tables[table.parquet], table.timestamp, name)

    with mock.patch("recsys_llm.sources.tables.open_source", opened):
        yield
