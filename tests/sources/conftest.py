"""Tables of given rows in every kind of source, and data folders with a configuration."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from psycopg import sql

from recsys_llm.config import Config, InteractionsConfig, ItemsConfig, SourcesConfig, UserWordsConfig
from recsys_llm.sources import ParquetSource, Source, SqlSource
from tests.sources.http_site import Site, running_site

Columns = Mapping[str, Sequence[Any]]
Make = Callable[..., Source]

POSTGRES_TYPES = {str: "text", int: "bigint", float: "double precision", datetime: "timestamptz"}
ARROW_TYPES = {str: pa.string(), int: pa.int64(), float: pa.float64(), datetime: pa.timestamp("us", "UTC")}


def kind_of(values: Sequence[Any]) -> type:
    """Return the type of the first value that is not None; str where there is none."""
    return next((type(value) for value in values if value is not None), str)


@pytest.fixture(params=["parquet", "sqlite", "postgres"])
def kind(request: pytest.FixtureRequest) -> str:
    """Kind of source; a test that uses ``make_source`` runs once per kind."""
    return str(request.param)


@pytest.fixture
def make_source(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Function from columns (name -> Python values) to a source of this kind that holds them as table ``events``."""
    numbers = count()
    if kind == "postgres":
        url = request.getfixturevalue("postgres_url")
        with psycopg.connect(url.replace("+psycopg", "", 1), autocommit=True) as connection:
            made: list[str] = []

            def in_postgres(columns: Columns, *, timestamp: str = "t") -> Source:
                table = f"events_{next(numbers)}"
                made.append(table)
                _fill_postgres(connection, table, columns)
                return SqlSource(url, f"select * from {table}", timestamp=timestamp, name="events")

            yield in_postgres
            for table in made:
                connection.execute(sql.SQL("drop table {}").format(sql.Identifier(table)))
        return

    def in_file(columns: Columns, *, timestamp: str = "t") -> Source:
        file = tmp_path / f"events_{next(numbers)}.{kind}"
        if kind == "sqlite":
            _fill_sqlite(file, columns)
            return SqlSource(f"sqlite:///{file}", "select * from events", timestamp=timestamp, name="events")
        arrays = {name: pa.array(values, ARROW_TYPES[kind_of(values)]) for name, values in columns.items()}
        pq.write_table(pa.table(arrays), file)
        return ParquetSource(file, timestamp=timestamp, name="events")

    yield in_file


def _fill_postgres(connection: Any, table: str, columns: Columns) -> None:
    types = [
        sql.SQL("{} {}").format(sql.Identifier(name), sql.SQL(POSTGRES_TYPES[kind_of(values)]))
        for name, values in columns.items()
    ]
    name = sql.Identifier(table)
    connection.execute(sql.SQL("create table {} ({})").format(name, sql.SQL(", ").join(types)))
    marks = sql.SQL(", ").join(sql.Placeholder() * len(columns))
    insert = sql.SQL("insert into {} values ({})").format(name, marks)
    with connection.cursor() as cursor:
        cursor.executemany(insert, list(zip(*columns.values(), strict=True)))


def _fill_sqlite(file: Path, columns: Columns) -> None:
    quoted = ", ".join('"' + name.replace('"', '""') + '"' for name in columns)
    rows = zip(*([_iso(value) for value in values] for values in columns.values()), strict=True)
    with sqlite3.connect(file) as connection:
        connection.execute(f"create table events ({quoted})")
        connection.executemany(f"insert into events values ({', '.join('?' * len(columns))})", rows)
    connection.close()


def _iso(value: Any) -> Any:
    return value.isoformat(" ") if isinstance(value, datetime) else value


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A local HTTP server; attempts follow each other without waiting, and a cut loses at most 100 bytes."""
    monkeypatch.setattr("recsys_llm.sources.download.FIRST_WAIT_S", 0.0)
    monkeypatch.setattr("recsys_llm.sources.download.CHUNK_BYTES", 100)
    with running_site() as served:
        yield served


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """Function from Arrow tables (and keys of the sections) to a configuration of a folder that holds them."""

    def make(
        *,
        items: Any = None,
        interactions: Any = None,
        user_words: Any = None,
        items_keys: Mapping[str, Any] | None = None,
        interactions_keys: Mapping[str, Any] | None = None,
    ) -> Config:
        for name, table in (("items", items), ("interactions", interactions), ("user_words", user_words)):
            if table is not None:
                pq.write_table(table, tmp_path / f"{name}.parquet")
        words = None if user_words is None else UserWordsConfig(parquet="user_words.parquet")
        sources = SourcesConfig(
            items=ItemsConfig(parquet="items.parquet", **(items_keys or {})),
            interactions=InteractionsConfig(parquet="interactions.parquet", **(interactions_keys or {})),
            user_words=words,
        )
        return Config(sources=sources, root=tmp_path)

    return make
