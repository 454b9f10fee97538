"""From a table's configuration to its source."""

from __future__ import annotations

from pathlib import Path

from recsys_llm.config import TableConfig, absolute_sqlite_url
from recsys_llm.sources.base import Source
from recsys_llm.sources.parquet import ParquetSource
from recsys_llm.sources.sql import SqlSource


def open_source(table: TableConfig, root: Path, *, name: str) -> Source:
    """Return the source of ``table``; nothing is read yet.

    Parameters
    ----------
    table
        With ``parquet``, or with ``sql`` and ``query``.
    root
        Where relative paths start.
    name
        Name of the table in messages.
    """
    if table.parquet is not None:
        return ParquetSource(root / table.parquet, timestamp=table.timestamp, name=name)
    if table.sql is None or table.query is None:
        raise AssertionError("TableConfig checks that 'sql' and 'query' are set where 'parquet' is not")
    return SqlSource(absolute_sqlite_url(table.sql, root), table.query, timestamp=table.timestamp, name=name)
