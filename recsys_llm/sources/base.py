"""What every source of raw rows offers, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Any, Protocol

import pyarrow as pa

from recsys_llm.errors import SchemaError, did_you_mean

BATCH_ROWS = 65_536
"""Rows per record batch, unless asked otherwise."""

BATCH_BYTES = 64 * 2**20
"""A batch is closed at this size even when it has fewer rows, so that long texts don't fill the memory."""

Predicate = Callable[[Any], Any]
"""From a record batch to a boolean array: which of its rows are meant."""


class Source(Protocol):
    """A raw table, read as Arrow record batches in constant memory.

    The contract that every source keeps (tests/sources/test_source_contract.py runs it over all of them):

    - ``start < timestamp <= end``, exact to the microsecond; None is unbounded.
    - ``order_by`` sorts the timestamp column by time and any other column by the bytes of its text (so that the ids 10
      and 9 come in this order whether they are integers or strings). A null timestamp sorts as
      :data:`recsys_llm.timestamps.BEGINNING`.
    - A batch has at most ``batch_rows`` rows and about :data:`BATCH_BYTES` bytes; no batch is empty.
    - Reading may stop at any batch: closing the iterator frees connections and temporary files.
    """

    @property
    def name(self) -> str:
        """Name for messages, such as ``interactions (/data/interactions.parquet)``; never holds a password."""
        ...

    @property
    def timestamp(self) -> str:
        """The column that ``start`` and ``end`` are about."""
        ...

    def schema(self) -> Any:
        """Return the Arrow schema of the raw columns; a column without any value may have type null."""
        ...

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
        """Yield the rows with ``start < timestamp <= end``.

        Parameters
        ----------
        columns
            Columns to read, in this order; None: all.
        start, end
            tz-aware; None is unbounded.
        order_by
            Columns to sort by, ascending.
        batch_rows
            Most rows per batch.
        null_timestamps
            Whether rows without a timestamp pass; None: only if ``start`` is None.

        Raises
        ------
        SchemaError
            A column is missing, or the timestamp is no tz-aware timestamp.
        RowError
            A value can't be read: invalid UTF-8, a timestamp finer than a microsecond.
        DataError
            The file or the database can't be read.
        """
        ...

    def rows(self, columns: Sequence[str], predicate: Predicate, *, limit: int = 2) -> list[str]:
        """Return where the first rows that meet ``predicate`` are, for messages: ``events.parquet row 17``.

        Reads the table in its own order until ``limit`` rows are found; rows count from 0.
        """
        ...


def require_columns(schema: Any, columns: Sequence[str], *, name: str) -> None:
    """Refuse a column that the source doesn't have, with the nearest name.

    Raises
    ------
    SchemaError
        A column is missing.

    Examples
    --------
    >>> require_columns(pa.schema([("user", pa.string())]), ["users"], name="events")
    Traceback (most recent call last):
    recsys_llm.errors.SchemaError: events: column 'users' is missing; did you mean 'user'? Known: user
    """
    for column in columns:
        if column not in schema.names:
            raise SchemaError(f"{name}: column {column!r} is missing; {did_you_mean(column, schema.names)}")


def require_timestamp(schema: Any, column: str, *, name: str) -> None:
    """Refuse a timestamp column whose instants are not known.

    Raises
    ------
    SchemaError
        The column is missing, is naive, or is no timestamp at all.
    """
    require_columns(schema, [column], name=name)
    found = schema.field(column).type
    if pa.types.is_null(found) or (pa.types.is_timestamp(found) and found.tz is not None):
        return
    if pa.types.is_timestamp(found):
        raise SchemaError(
            f"{name}: column {column!r}: expected a timestamp with a time zone, found {found} without one, which could "
            "mean any instant; write it as UTC (pandas: .dt.tz_localize('UTC'), Postgres: ... AT TIME ZONE 'UTC')"
        )
    raise SchemaError(
        f"{name}: column {column!r}: expected timestamp[us, tz=UTC], found {found}; convert it "
        "(pandas: pd.to_datetime(..., utc=True).dt.as_unit('us'), Postgres: ...::timestamptz)"
    )


def rechunk(batches: Iterator[Any], batch_rows: int) -> Iterator[Any]:
    """Regroup batches into ones of ``batch_rows`` rows, or fewer where they would exceed :data:`BATCH_BYTES`.

    Examples
    --------
    >>> parts = [pa.record_batch({"x": [1]}), pa.record_batch({"x": [2, 3]}), pa.record_batch({"x": [4]})]
    >>> [batch["x"].to_pylist() for batch in rechunk(iter(parts), 2)]
    [[1, 2], [3, 4]]
    """
    if batch_rows < 1:
        raise ValueError(f"batch_rows: expected at least 1, found {batch_rows}")
    held: list[Any] = []
    rows = size = 0
    for batch in batches:
        offset = 0
        while offset < batch.num_rows:
            row_bytes = max(batch.nbytes // batch.num_rows, 1)
            fitting = max((BATCH_BYTES - size) // row_bytes, 1)
            piece = batch.slice(offset, min(batch_rows - rows, fitting))
            held.append(piece)
            offset += piece.num_rows
            rows += piece.num_rows
            size += piece.nbytes
            if rows == batch_rows or size + row_bytes > BATCH_BYTES:
                yield _join(held)
                held, rows, size = [], 0, 0
    if held:
        yield _join(held)


def _join(batches: list[Any]) -> Any:
    return batches[0] if len(batches) == 1 else pa.concat_batches(batches)
