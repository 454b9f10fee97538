"""A table in parquet: one file, a directory of files, or a glob.

DuckDB reads, filters and sorts out of core: it holds no more than one of :data:`MEMORY_LIMITS`, spills to a private
directory, and hands the rows over as a stream.
"""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_llm.errors import DataError, RowError, SchemaError
from recsys_llm.sources.base import BATCH_ROWS, Predicate, rechunk, require_columns, require_timestamp
from recsys_llm.sources.connection import open_duckdb, quoted
from recsys_llm.timestamps import BEGINNING, as_utc

MEMORY_LIMITS = (("512MB", 4), ("512MB", 1), ("2GB", 1))
"""Most memory that one read may use for sorting (the rest goes to the spill directory), and most threads.

The first entry sorts tens of millions of events. Several threads need more for gigabytes of long texts, so a sort that
runs out of memory before its first row starts again with the next entry.
"""

FETCH_ROWS = 2048
"""Rows fetched from DuckDB at a time, its vector size."""


class ParquetSource:
    """A :class:`recsys_llm.sources.Source` over parquet files.

    Parameters
    ----------
    path
        A file; a directory, read with all ``*.parquet`` below it except hidden ones and ``_``-ones; or a glob.
    timestamp
        Column with the rows' time, ``timestamp[us, tz]`` or another unit with a time zone. Nanoseconds are accepted
        where every value is a whole microsecond.
    name
        Name of the table in messages.
    """

    def __init__(self, path: Path | str, *, timestamp: str, name: str) -> None:
        self.path = str(path)
        self.timestamp = timestamp
        self.name = f"{name} ({path})"

    def schema(self) -> Any:
        """Return the Arrow schema that all files share.

        Raises
        ------
        DataError
            There is no such file, or one is no parquet file.
        SchemaError
            Two files differ, or two columns differ only in case.
        """
        return self._schema

    def batches(
        self,
        columns: Sequence[str] | None = None,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        order_by: Sequence[str] = (),
        batch_rows: int = BATCH_ROWS,
        null_timestamps: bool | None = None,
    ) -> Iterator[Any]:
        """Yield the rows with ``start < timestamp <= end``; see :class:`recsys_llm.sources.Source`."""
        wanted = list(self._schema.names if columns is None else columns)
        require_columns(self._schema, [*wanted, *order_by], name=self.name)
        require_timestamp(self._schema, self.timestamp, name=self.name)
        self._require_whole_microseconds()
        where, parameters = self._where(start, end, start is None if null_timestamps is None else null_timestamps)
        order = ", ".join(self._sort_key(column) for column in order_by)
        select = ", ".join(f"{self._value(column)} AS {quoted(column)}" for column in wanted)
        sql = f"SELECT {select} FROM read_parquet(?, hive_partitioning = false) WHERE {where}"
        return self._read(f"{sql} ORDER BY {order}" if order else sql, parameters, wanted, batch_rows)

    def rows(self, columns: Sequence[str], predicate: Predicate, *, limit: int = 2) -> list[str]:
        """Return where the first rows that meet ``predicate`` are, as ``file row number``."""
        found: list[str] = []
        for file, offset, batch in self._unordered(list(columns)):
            for index in pc.indices_nonzero(predicate(batch)).to_pylist():
                found.append(f"{file.name} row {offset + index}")
                if len(found) == limit:
                    return found
        return found

    def _unordered(self, columns: list[str]) -> Iterator[tuple[Path, int, Any]]:
        """Yield (file, number of the first row, batch) in the files' own order, without checking texts."""
        for file in self._files:
            offset = 0
            try:
                for batch in pq.ParquetFile(file).iter_batches(BATCH_ROWS, columns=columns):
                    yield file, offset, batch
                    offset += batch.num_rows
            except (pa.ArrowException, OSError) as error:
                raise DataError(f"{self.name}: {file.name} can't be read: {error}") from error

    @cached_property
    def _files(self) -> list[Path]:
        path = Path(self.path)
        if path.is_file():
            return [path]
        if path.is_dir():
            below = (file for file in path.rglob("*.parquet") if file.is_file())
            files = [file for file in below if not any(p[0] in "._" for p in file.relative_to(path).parts)]
        else:
            files = [Path(file) for file in glob.glob(self.path, recursive=True) if Path(file).is_file()]
        if not files:
            raise DataError(
                f"{self.name}: no parquet file found; check the path, which may be a file, directory or glob"
            )
        return sorted(files)

    @cached_property
    def _schema(self) -> Any:
        first, *others = self._files
        schema = self._read_schema(first)
        for file in others:
            other = self._read_schema(file)
            if other.equals(schema):
                continue
            differing = sorted({f.name for f in set(schema) ^ set(other)}) or ["(order of columns)"]
            raise SchemaError(
                f"{self.name}: {file.name} and {first.name} have different columns or types: {', '.join(differing)}; "
                "write all files with one schema"
            )
        return schema

    def _read_schema(self, file: Path) -> Any:
        try:
            schema = pq.read_schema(file).remove_metadata()
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.name}: {file.name} can't be read as parquet: {error}") from error
        folded = [column.lower() for column in schema.names]
        for column in schema.names:
            if folded.count(column.lower()) > 1:
                raise SchemaError(f"{self.name}: two columns are called {column!r} but for case; rename one")
        return schema

    def _where(self, start: datetime | None, end: datetime | None, nulls: bool) -> tuple[str, list[datetime]]:
        column = self._value(self.timestamp)
        bounds = [(">", start), ("<=", end)]
        conditions = [f"{column} {operator} ?" for operator, bound in bounds if bound is not None]
        parameters = [as_utc(bound) for _, bound in bounds if bound is not None]
        if not conditions:
            return ("true" if nulls else f"{column} IS NOT NULL"), []
        inside = " AND ".join(conditions)
        return (f"(({inside}) OR {column} IS NULL)" if nulls else inside), parameters

    def _sort_key(self, column: str) -> str:
        if column == self.timestamp:
            return f"coalesce({self._value(column)}, TIMESTAMPTZ '{BEGINNING.isoformat()}')"
        return f"CAST({self._value(column)} AS VARCHAR)"

    def _value(self, column: str) -> str:
        """Return the expression of ``column``; DuckDB would read one of nothing but null as integers."""
        if pa.types.is_null(self._schema.field(column).type):
            return f"CAST(NULL AS {'TIMESTAMPTZ' if column == self.timestamp else 'VARCHAR'})"
        return quoted(column)

    def _read(self, sql: str, bounds: list[datetime], columns: list[str], batch_rows: int) -> Iterator[Any]:
        parameters = [[glob.escape(str(file)) for file in self._files], *bounds]
        for limit, threads in MEMORY_LIMITS:
            begun = False
            try:
                for batch in rechunk(_stream(sql, parameters, limit, threads), batch_rows):
                    begun = True
                    yield batch
                return
            except duckdb.OutOfMemoryException as error:
                if begun or (limit, threads) == MEMORY_LIMITS[-1]:
                    raise DataError(f"{self.name}: sorting needs more than {limit}; write smaller rows") from error
            except (duckdb.Error, pa.ArrowException, OSError) as error:
                if "UTF8" in str(error):
                    self._explain_bad_text(columns)
                raise DataError(f"{self.name}: reading failed: {str(error).splitlines()[0]}") from error

    def _explain_bad_text(self, columns: list[str]) -> None:
        """Raise a RowError that names the first text that is not UTF-8, if that is why reading failed."""
        texts = [c for c in columns if pa.types.is_string(self._schema.field(c).type)]
        for column in texts:
            where = self.rows([column], lambda batch: pa.array([not _is_utf8(v) for v in _as_bytes(batch)]), limit=1)
            if where:
                raise RowError(
                    f"{self.name}: {where[0]}, column {column!r}: the text is not valid UTF-8 (a lone surrogate, or "
                    "another encoding); decode it with its own encoding before writing parquet"
                )

    def _require_whole_microseconds(self) -> None:
        """Refuse nanosecond stamps that microseconds can't hold; DuckDB would cut them silently."""
        if self._exact:
            return
        where = self.rows([self.timestamp], lambda batch: _finer_than_micros(batch[0]), limit=1)
        if where:
            raise RowError(
                f"{self.name}: {where[0]}, column {self.timestamp!r}: expected whole microseconds, found nanoseconds; "
                "round the column (pandas: .dt.floor('us').dt.as_unit('us'))"
            )
        self._exact = True

    @cached_property
    def _exact(self) -> bool:
        found = self._schema.field(self.timestamp).type
        return bool(pa.types.is_null(found) or found.unit != "ns")


def _stream(sql: str, parameters: list[Any], memory_limit: str, threads: int) -> Iterator[Any]:
    """Run ``sql`` in a DuckDB of its own: bounded memory, private spill directory, no extension from the network."""
    with tempfile.TemporaryDirectory(prefix="recsys_llm_spill_") as spill:
        settings = {
            "memory_limit": memory_limit,
            "threads": min(os.cpu_count() or 1, threads),
            "temp_directory": spill,
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
        }
        with open_duckdb(settings) as connection:
            yield from connection.execute(sql, parameters).to_arrow_reader(FETCH_ROWS)


def _as_bytes(batch: Any) -> list[bytes | None]:
    return list(batch.column(0).cast(pa.binary()).to_pylist())


def _is_utf8(value: bytes | None) -> bool:
    try:
        return value is None or value.decode("utf-8") is not None
    except UnicodeDecodeError:
        return False


def _finer_than_micros(array: Any) -> Any:
    nanos = array.cast(pa.int64()).fill_null(0)
    return pc.not_equal(pc.subtract(nanos, pc.multiply(pc.divide(nanos, 1000), 1000)), 0)
