"""A connection that Postgres ends in the middle of a sorted read: every row once, in order."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from recsys_llm.errors import DataError
from recsys_llm.sources import SqlSource, sql
from recsys_llm.sources.keyset import KeyGroups, after

pytestmark = pytest.mark.faults

T = datetime(2024, 5, 1, tzinfo=UTC)
APPLICATION = "recsys_llm_test_lost_connection"


@pytest.fixture
def events(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[SqlSource]:
    """3,000 rows with ties, duplicates, null keys and null times, fetched 50 at a time."""
    monkeypatch.setattr(sql, "FETCH_ROWS", 50)
    monkeypatch.setattr(sql, "PAUSE_SECONDS", 0.01)
    chance = random.Random(3)
    rows = [
        (
            f"u{chance.randrange(200):03d}",
            chance.choice([None, "DE", "FR", "é"]),
            None if chance.random() < 0.02 else T + timedelta(hours=chance.randrange(20)),
        )
        for _ in range(3000)
    ]
    with psycopg.connect(postgres_url.replace("+psycopg", "", 1), autocommit=True) as connection:
        connection.execute("create table lost (k text, s text, t timestamptz, n serial)")
        with connection.cursor() as cursor:
            cursor.executemany("insert into lost (k, s, t) values (%s, %s, %s)", rows)
        yield SqlSource(
            f"{postgres_url}?application_name={APPLICATION}", "select * from lost", timestamp="t", name="events"
        )
        connection.execute("drop table lost")


@contextmanager
def admin(postgres_url: str) -> Iterator[Any]:
    with psycopg.connect(postgres_url.replace("+psycopg", "", 1), autocommit=True) as connection:

        def end_connections() -> int:
            found = connection.execute(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity where application_name = %s",
                [APPLICATION],
            ).fetchone()
            return int(found[0]) if found else 0

        yield end_connections


def read(source: SqlSource, **options: Any) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for batch in source.batches(batch_rows=50, **options) for row in batch.to_pylist()]


@pytest.mark.parametrize("order_by", [["k", "t"], ["t", "k"], ["k", "s", "t"], ["s"]], ids="-".join)
def test_every_row_comes_once_and_in_order(events: SqlSource, postgres_url: str, order_by: list[str]) -> None:
    expected = read(events, order_by=order_by)
    chance, found, ended = random.Random(str(order_by)), [], 0
    with admin(postgres_url) as end_connections:
        for batch in events.batches(batch_rows=50, order_by=order_by):
            found += [tuple(row.values()) for row in batch.to_pylist()]
            if chance.random() < 0.2:
                ended += end_connections()
    names = events.schema().names
    places = [names.index(name) for name in order_by]
    assert [[row[place] for place in places] for row in found] == [[row[place] for place in places] for row in expected]
    number = names.index("n")
    assert sorted(row[number] for row in found) == sorted(row[number] for row in expected)
    assert ended > 2


def test_a_bounded_read_goes_on_within_its_bounds(events: SqlSource, postgres_url: str) -> None:
    bounds = {"start": T + timedelta(hours=3), "end": T + timedelta(hours=15), "order_by": ["k", "t"]}
    expected = read(events, **bounds)
    with admin(postgres_url) as end_connections:
        batches = events.batches(batch_rows=50, **bounds)
        found = [tuple(row.values()) for row in next(batches).to_pylist()]
        assert end_connections() == 1
        found += [tuple(row.values()) for batch in batches for row in batch.to_pylist()]
    assert sorted(found, key=repr) == sorted(expected, key=repr)


def test_without_an_order_there_is_nothing_to_go_on_from(events: SqlSource, postgres_url: str) -> None:
    with admin(postgres_url) as end_connections:
        batches = events.batches(batch_rows=50)
        next(batches)
        assert end_connections() == 1
        with pytest.raises(DataError, match="events .*the connection was lost: .*; run the command again"):
            list(batches)


def test_a_server_that_stays_away_is_given_up(
    events: SqlSource, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with admin(postgres_url) as end_connections:
        batches = events.batches(batch_rows=50, order_by=["k"])
        next(batches)
        assert end_connections() == 1
        events._url = events._url.set(port=1)
        with pytest.raises(DataError, match="the connection was lost"):
            list(batches)


ROWS = [(a, b) for a in (None, "a", "b") for b in (None, 1, 2)] * 2


@pytest.mark.parametrize("nulls_last", [True, False])
def test_after_is_the_rest_of_the_order(nulls_last: bool, postgres_url: str, tmp_path: Any) -> None:
    engine = sa.create_engine(postgres_url if nulls_last else f"sqlite:///{tmp_path}/rows.db")
    table = sa.Table(
        "after_rows", sa.MetaData(), sa.Column("n", sa.Integer), sa.Column("a", sa.Text), sa.Column("b", sa.Integer)
    )
    keys = [table.c.a, table.c.b]
    with engine.begin() as connection:
        table.create(connection)
        connection.execute(table.insert(), [{"n": n, "a": a, "b": b} for n, (a, b) in enumerate(ROWS)])
        ordered = [tuple(row) for row in connection.execute(sa.select(*keys).order_by(*keys))]
        for position in set(ROWS):
            rest = sa.select(*keys).where(after(keys, position, nulls_last=nulls_last)).order_by(*keys)
            last = len(ordered) - ordered[::-1].index(position)
            assert [tuple(row) for row in connection.execute(rest)] == ordered[last:], position
        table.drop(connection)
    engine.dispose()


def test_a_group_over_several_fetches_is_held_back_whole() -> None:
    groups = KeyGroups(1)
    assert groups.add([("x", 1), ("y", 1)]) == []
    assert groups.add([("z", 1)]) == []
    assert groups.add([("w", 2)]) == [("x", 1), ("y", 1), ("z", 1)]
    groups.forget()
    assert groups.rest() == [] and groups.position == (1,)
