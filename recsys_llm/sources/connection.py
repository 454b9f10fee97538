"""A DuckDB of one's own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import duckdb


@contextmanager
def open_duckdb(config: Mapping[str, object] | None = None) -> Iterator[duckdb.DuckDBPyConnection]:
    """Hand out a DuckDB in memory that reads times as UTC and draws nothing on stdout."""
    with duckdb.connect(":memory:", config=dict(config or {})) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("SET enable_progress_bar = false")
        yield connection


def quoted(identifier: str) -> str:
    """Return a column or table as SQL takes it, whatever its name is.

    Examples
    --------
    >>> quoted('user_id"; drop table users')
    '"user_id""; drop table users"'
    """
    return '"' + identifier.replace('"', '""') + '"'
