"""What is particular to SQL: the query as written, types, sqlite's texts for time, messages without passwords."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
import sqlalchemy as sa

from recsys_llm.errors import ConfigError, DataError, RowError, SchemaError
from recsys_llm.sources import SqlSource

T = datetime(2024, 5, 1, 12, tzinfo=UTC)
NOW = "'2024-05-01 12:00:00+00:00'"


def sqlite_source(folder: Path, query: str) -> SqlSource:
    """Return a source over an empty sqlite file, for queries that need no table."""
    (folder / "events.db").touch()
    return SqlSource(f"sqlite:///{folder}/events.db", query, timestamp="t", name="events")


def read(source: SqlSource, **options: Any) -> dict[str, list[Any]]:
    return dict(pa.Table.from_batches(list(source.batches(**options)), source.schema()).to_pydict())


@pytest.mark.parametrize(
    "query",
    [
        f"select 'a:b' as k, {NOW} as t",
        f"select 'a:b' as k, {NOW} as t;",
        f"select 'a:b' as k, {NOW} as t  -- :not_a_parameter",
        f"select 'a:b' /* 100% of :them */ as k, {NOW} as t where 'x%' like '%'",
        f"with w as (select 'a:b' as k) select k, {NOW} as t from w",
        f"select 'a:b' as k, {NOW} as t union select 'a:b', {NOW} order by 1 limit 5",
    ],
)
def test_the_query_runs_as_written(tmp_path: Path, query: str) -> None:
    assert read(sqlite_source(tmp_path, query)) == {"k": ["a:b"], "t": [T]}


def test_colons_in_a_literal_are_no_parameters(tmp_path: Path) -> None:
    assert read(sqlite_source(tmp_path, f"select ' :x' as k, {NOW} as t"))["k"] == [" :x"]


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2024-05-01 12:00:00+00:00", 0),
        ("2024-05-01T12:00:00Z", 0),
        ("2024-05-01T14:00:00.000001+02:00", 1),
        ("2024-05-01T06:30:00.123456-05:30", 123_456),
        ("2024-05-01 12:00:00.5000000000+00:00", 500_000),
    ],
)
def test_sqlite_iso_texts_are_instants(tmp_path: Path, text: str, micros: int) -> None:
    source = sqlite_source(tmp_path, f"select '{text}' as t")
    instant = T + timedelta(microseconds=micros)
    assert read(source) == {"t": [instant]}
    assert read(source, start=instant - timedelta(microseconds=1), end=instant) == {"t": [instant]}
    assert read(source, start=instant) == {"t": []}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("'2024-05-01 12:00:00'", r"without one; if the values are UTC, append '\+00:00'"),
        ("'2024-05-01'", "without one"),
        ("'yesterday'", "expected ISO 8601 text"),
        ("1714564800", "found 1714564800; in the query, convert Unix seconds"),
        ("'2024-05-01 12:00:00.0000001+00:00'", "expected whole microseconds"),
        ("x'00'", "expected ISO 8601 text"),
    ],
)
def test_sqlite_values_that_are_no_instants_are_refused(tmp_path: Path, value: str, message: str) -> None:
    with pytest.raises(RowError, match=rf"events \(.*column 't'.*{message}"):
        read(sqlite_source(tmp_path, f"select {value} as t"))


def test_a_bad_instant_after_the_sample_is_refused_too(tmp_path: Path) -> None:
    numbers = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 3000) "
    source = sqlite_source(tmp_path, f"{numbers} select case i when 2500 then 'never' else {NOW} end as t from n")
    source.schema()
    for options in ({}, {"start": T - timedelta(days=1)}, {"order_by": ["t"]}):
        with pytest.raises(RowError, match="found 'never'"):
            read(source, **options)


def test_a_value_of_another_type_than_the_sample_is_named(tmp_path: Path) -> None:
    numbers = "with recursive n(i) as (select 0 union all select i + 1 from n where i < 3000) "
    source = sqlite_source(tmp_path, f"{numbers} select case i when 2500 then 'A1' else i end as k, {NOW} as t from n")
    with pytest.raises(RowError, match=r"row 2500 as read, column 'k': expected int64.*found 'A1'; cast"):
        read(source)


def test_types_that_no_column_holds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SchemaError, match=r"column 'k': expected values of one type, found int, str; cast it"):
        sqlite_source(tmp_path, f"select 1 as k, {NOW} as t union all select 'a', {NOW}").schema()


def test_integers_and_floats_are_floats(tmp_path: Path) -> None:
    query = f"select 4 as k, {NOW} as t union all select 4.5, {NOW}"
    assert read(sqlite_source(tmp_path, query), order_by=["k"])["k"] == [4.0, 4.5]


def test_a_column_that_starts_with_nulls_gets_its_type_from_later(tmp_path: Path) -> None:
    numbers = "with recursive n(i) as (select 1 union all select i + 1 from n where i < 2500) "
    source = sqlite_source(
        tmp_path, f"{numbers} select case when i > 2000 then i end as k, null as e, {NOW} as t from n"
    )
    assert [field.type for field in source.schema()][:2] == [pa.int64(), pa.null()]
    table = read(source)
    assert table["k"][1999:2001] == [None, 2001] and set(table["e"]) == {None}


def test_two_columns_of_one_name_are_refused(postgres_url: str) -> None:
    query = "select 1 as k, 2 as k, now() as t"
    with pytest.raises(SchemaError, match="two columns 'k'"):
        SqlSource(postgres_url, query, timestamp="t", name="events").schema()


def test_an_empty_query_has_columns_and_no_rows(tmp_path: Path) -> None:
    source = sqlite_source(tmp_path, f"select 'a' as k, {NOW} as t where 1 = 0")
    assert source.schema().names == ["k", "t"]
    assert list(source.batches(start=T, order_by=["t", "k"])) == []


def test_sqlite_text_that_is_no_utf8_is_a_row_error(tmp_path: Path) -> None:
    with pytest.raises(RowError, match="not valid UTF-8"):
        read(sqlite_source(tmp_path, f"select cast(x'ff41' as text) as k, {NOW} as t"))


def test_a_collation_of_the_column_does_not_change_the_order(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "events.db")) as connection, connection:
        connection.execute("create table events (k text collate nocase, t text)")
        connection.executemany(
            "insert into events values (?, ?)", [("b", NOW[1:-1]), ("B", NOW[1:-1]), ("a", NOW[1:-1])]
        )
    assert read(sqlite_source(tmp_path, "select * from events"), order_by=["k"])["k"] == ["B", "a", "b"]


@pytest.mark.parametrize("query", ["select * from missing", "selec 1", "", "select 1 as t; drop table x"])
def test_a_wrong_query_is_a_data_error(tmp_path: Path, query: str) -> None:
    with pytest.raises(DataError, match=r"the database answered: .*; check 'sql' and 'query'"):
        sqlite_source(tmp_path, query).schema()


def test_a_wrong_url_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="no SQLAlchemy URL"):
        SqlSource("no url", "select 1", timestamp="t", name="events")
    with pytest.raises(ConfigError, match="nosuchdatabase"):
        SqlSource("nosuchdatabase://host/db", "select 1", timestamp="t", name="events")
    with pytest.raises(ConfigError, match="driver 'pg8000' is not installed"):
        SqlSource("postgresql+pg8000://host/db", "select 1", timestamp="t", name="events").schema()


def test_postgres_types(postgres_url: str) -> None:
    query = (
        "select 1::smallint as i, 1.25::numeric as n, true as b, date '2024-05-01' as d, 'x'::varchar as v, "
        "'00000000-0000-0000-0000-000000000001'::uuid as u, '{\"a\": [1]}'::jsonb as j, "
        "timestamptz '2024-05-01 14:00:00.000001+02' as t"
    )
    (row,) = pa.Table.from_pydict(read(SqlSource(postgres_url, query, timestamp="t", name="events"))).to_pylist()
    assert row.pop("t") == T + timedelta(microseconds=1)
    assert json.loads(row.pop("j")) == {"a": [1]}
    identifier = "00000000-0000-0000-0000-000000000001"
    assert row == {"i": 1, "n": 1.25, "b": True, "d": date(2024, 5, 1), "v": "x", "u": identifier}


def test_a_naive_postgres_timestamp_is_refused(postgres_url: str) -> None:
    source = SqlSource(postgres_url, "select timestamp '2024-05-01 12:00' as t", timestamp="t", name="events")
    with pytest.raises(SchemaError, match="expected a timestamp with a time zone.*AT TIME ZONE 'UTC'"):
        source.batches()


def test_rows_come_through_a_server_side_cursor(postgres_url: str) -> None:
    cursors = []

    def remember(_connection: Any, cursor: Any, *_rest: Any) -> None:
        cursors.append(type(cursor))

    source = SqlSource(
        postgres_url, f"select generate_series(1, 10) as k, {NOW}::timestamptz as t", timestamp="t", name="events"
    )
    source.schema()
    sa.event.listen(sa.Engine, "before_cursor_execute", remember)
    try:
        next(source.batches(start=T - timedelta(days=1), order_by=["t", "k"]))
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", remember)
    assert [kind for kind in cursors if issubclass(kind, psycopg.ServerCursor)]


def test_no_message_holds_the_password(postgres_url: str) -> None:
    url = sa.make_url(postgres_url).set(password="hunter2-secret", database="nowhere")
    source = SqlSource(url.render_as_string(hide_password=False), "select 1", timestamp="t", name="events")
    assert "hunter2" not in source.name
    with pytest.raises(DataError) as caught:
        source.schema()
    shown = [str(caught.value), repr(caught.value.__cause__), source.name]
    assert caught.value.__suppress_context__ and not any("hunter2" in text for text in shown)


def test_values_of_a_bound_are_bound(postgres_url: str) -> None:
    statements: list[tuple[str, Any]] = []

    def remember(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_rest: Any) -> None:
        statements.append((statement, parameters))

    source = SqlSource(postgres_url, f"select {NOW}::timestamptz as t", timestamp="t", name="events")
    sa.event.listen(sa.Engine, "before_cursor_execute", remember)
    try:
        list(source.batches(start=T, end=T))
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", remember)
    statement, parameters = statements[-1]
    assert "2024-05-01 12:00:00+00:00" in statement, "the query's own"
    assert statement.count("2024-05-01") == 1 and list(dict(parameters).values()) == [T, T]
