"""What every source must do, run over parquet, sqlite and a real Postgres."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from itertools import product
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa

from recsys_llm.errors import DataError, SchemaError
from recsys_llm.sources import ParquetSource, Source, SqlSource

Make = Callable[..., Source]
T = datetime(2024, 5, 1, 12, tzinfo=UTC)
US = timedelta(microseconds=1)


def values(batches: Iterator[Any], column: str) -> list[Any]:
    return [value for batch in batches for value in batch.column(column).to_pylist()]


def test_every_row_comes_once_with_its_values(make_source: Make) -> None:
    columns = {"user": ["a", "b", None], "n": [1, 2, 3], "x": [0.5, None, 1.5], "t": [T, T + US, None]}
    source = make_source(columns)
    assert source.schema().names == ["user", "n", "x", "t"]
    table = pa.Table.from_batches(list(source.batches(order_by=["n"])))
    assert table.to_pydict() == columns
    assert table.schema.field("t").type == pa.timestamp("us", "UTC")


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, [None, -1, 0, 1, 2]),
        (None, T, [None, -1, 0]),
        (T, None, [1, 2]),
        (T, T + US, [1]),
        (T - US, T + US, [0, 1]),
        (T, T, []),
        (T + 2 * US, None, []),
    ],
)
def test_start_is_open_and_end_is_closed_to_the_microsecond(
    make_source: Make, start: datetime | None, end: datetime | None, expected: list[int | None]
) -> None:
    offsets = [None, -1, 0, 1, 2]
    source = make_source({"k": [-9, -1, 0, 1, 2], "t": [None if o is None else T + o * US for o in offsets]})
    found = values(source.batches(["k"], start=start, end=end, order_by=["t"]), "k")
    assert sorted(found) == sorted(-9 if o is None else o for o in expected)


def test_bounds_in_another_zone_mean_the_same_instant(make_source: Make) -> None:
    tokyo = timezone(timedelta(hours=9))
    source = make_source({"k": [0, 1], "t": [T, (T + US).astimezone(tokyo)]})
    assert values(source.batches(["k"], start=T.astimezone(tokyo)), "k") == [1]
    assert values(source.batches(["t"], start=T), "t") == [T + US]


@pytest.mark.parametrize("start", [None, T])
def test_rows_without_a_time_can_be_asked_for(make_source: Make, start: datetime | None) -> None:
    source = make_source({"k": [0, 1], "t": [T + US, None]})
    assert values(source.batches(["k"], start=start, null_timestamps=True, order_by=["k"]), "k") == [0, 1]
    assert values(source.batches(["k"], start=start, null_timestamps=False), "k") == [0]


def test_a_row_without_a_time_sorts_as_the_beginning(make_source: Make) -> None:
    source = make_source({"k": [0, 1, 2], "t": [T, None, datetime(1950, 1, 1, tzinfo=UTC)]})
    assert values(source.batches(["k"], order_by=["t"]), "k") == [2, 1, 0]


def test_texts_sort_by_code_point(make_source: Make) -> None:
    ids = ["b", "B", "a", "A", "_", "é", "z", "10", "9", "a b", "a-b", "ab", "\uffee", "😀", "א"]
    source = make_source({"k": ids, "t": [T] * len(ids)})
    assert values(source.batches(["k"], order_by=["k"]), "k") == sorted(ids)


def test_numbers_sort_as_texts(make_source: Make) -> None:
    source = make_source({"k": [9, 10, 100, -1], "t": [T] * 4})
    assert values(source.batches(["k"], order_by=["k"]), "k") == [-1, 10, 100, 9]


def test_a_later_key_breaks_ties(make_source: Make) -> None:
    rows = list(product(["b", "a"], [T + US, T], [9, 10]))
    users, times, items = zip(*rows, strict=True)
    source = make_source({"u": users, "t": times, "i": items})
    batches = list(source.batches(order_by=["u", "t", "i"]))
    found = list(zip(*(values(iter(batches), name) for name in "uti"), strict=True))
    assert found == sorted(rows, key=lambda row: (row[0], row[1], str(row[2])))


@pytest.mark.parametrize("batch_rows", [1, 7, 2048, 3000, 100_000])
def test_batches_are_full_and_none_is_empty(make_source: Make, batch_rows: int) -> None:
    rows = 5000
    source = make_source({"k": list(range(rows)), "t": [T] * rows})
    sizes = [batch.num_rows for batch in source.batches(["k"], order_by=["k"], batch_rows=batch_rows)]
    assert sizes == [min(batch_rows, rows - done) for done in range(0, rows, batch_rows)]


def test_columns_come_as_asked(make_source: Make) -> None:
    source = make_source({"a": ["x"], "b": [1], "t": [T]})
    assert next(source.batches(["b", "a"])).schema.names == ["b", "a"]


def test_an_empty_range_yields_no_batch(make_source: Make) -> None:
    source = make_source({"a": ["x"], "t": [T]})
    assert list(source.batches(start=T)) == []


@pytest.mark.parametrize("asked", [{"columns": ["usr"]}, {"order_by": ["usr"]}])
def test_a_missing_column_is_refused_with_the_nearest(make_source: Make, asked: dict[str, list[str]]) -> None:
    source = make_source({"user": ["a"], "t": [T]})
    with pytest.raises(SchemaError, match=r"events \(.*column 'usr' is missing; did you mean 'user'\?"):
        source.batches(**asked)


def test_a_missing_timestamp_is_refused(make_source: Make) -> None:
    source = make_source({"user": ["a"], "event_time": [T]}, timestamp="event_tim")
    with pytest.raises(SchemaError, match="did you mean 'event_time'"):
        source.batches()


def test_a_naive_bound_is_refused(make_source: Make) -> None:
    source = make_source({"user": ["a"], "t": [T]})
    with pytest.raises(SchemaError, match="tz-aware"):
        list(source.batches(start=T.replace(tzinfo=None)))


@pytest.mark.parametrize("column", ['we"ird; drop table events --', "a%b", "%(c)s", "d:e", "sel ect", "é😀", "'q'"])
def test_hostile_column_names_are_only_names(make_source: Make, column: str) -> None:
    source = make_source({column: ["b", "a"], "t": [T, T]})
    assert values(source.batches([column], start=T - US, order_by=[column]), column) == ["a", "b"]


def test_texts_survive(make_source: Make, kind: str) -> None:
    texts = [
        "",
        " ",
        "😀👩‍👩‍👧",
        "שלום עולם",
        "a\u0301",
        "line\nbreak\ttab",
        "'; drop table events; --",
        "x" * 2_000_000,
    ]
    texts += [] if kind == "postgres" else ["nul\0inside"]  # Postgres has no NUL in texts
    source = make_source({"k": list(range(len(texts))), "text": texts, "t": [T] * len(texts)})
    assert values(source.batches(["k", "text"], order_by=["k"]), "text") == texts


def test_rows_are_located_in_the_order_of_the_table(make_source: Make) -> None:
    source = make_source({"k": [5, None, 7, None, None], "t": [T] * 5})
    where = source.rows(["k"], lambda batch: pc.is_null(batch.column("k")))
    assert [place.rpartition("row ")[2] for place in where] == ["1", "3"]
    assert source.rows(["k"], lambda batch: pc.equal(batch.column("k"), 8)) == []


def test_reading_twice_gives_the_same(make_source: Make) -> None:
    source = make_source({"k": list(range(100)), "t": [T] * 100})
    first, second = (values(source.batches(order_by=["k"]), "k") for _ in range(2))
    assert first == second and len(first) == 100


def test_a_table_that_is_gone_is_a_data_error(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if kind == "parquet":
        source: Source = ParquetSource(tmp_path / "gone.parquet", timestamp="t", name="events")
    else:
        url = f"sqlite:///{tmp_path}/gone.db" if kind == "sqlite" else request.getfixturevalue("postgres_url")
        source = SqlSource(url, "select * from gone", timestamp="t", name="events")
    with pytest.raises(DataError, match=r"^events \("):
        source.schema()
    assert list(tmp_path.iterdir()) == []


def big_source(kind: str, folder: Path, request: pytest.FixtureRequest) -> Source:
    """Return a source of 150,000 rows with texts of 1,000 characters each: 150 MB."""
    if kind == "parquet":
        part = pa.table({"t": [T] * 10_000, "text": ["x" * 1000] * 10_000})
        with pq.ParquetWriter(folder / "big.parquet", part.schema) as writer:
            for _ in range(15):
                writer.write_table(part)
        return ParquetSource(folder / "big.parquet", timestamp="t", name="big")
    if kind == "sqlite":
        (folder / "big.db").touch()
        query = (
            "with recursive n(i) as (select 1 union all select i + 1 from n where i < 150000) "
            "select '2024-05-01 12:00:00+00:00' as t, hex(zeroblob(500)) as text from n"
        )
        return SqlSource(f"sqlite:///{folder}/big.db", query, timestamp="t", name="big")
    query = (
        "select timestamptz '2024-05-01 12:00:00+00' as t, repeat('x', 1000) as text from generate_series(1, 150000)"
    )
    url = sa.make_url(request.getfixturevalue("postgres_url")).update_query_dict({"application_name": "big_source"})
    return SqlSource(url.render_as_string(hide_password=False), query, timestamp="t", name="big")


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc, Linux only")
def test_memory_does_not_grow_with_the_table(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = big_source(kind, tmp_path, request)
    reading = source.batches(batch_rows=4096)
    next(reading)
    before, peak, rows = resident_mib(), 0.0, 4096
    for batch in reading:
        rows += batch.num_rows
        peak = max(peak, resident_mib())
    assert rows == 150_000
    assert peak - before < 60, "150 MB went through"


def test_closing_early_frees_everything(kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = big_source(kind, tmp_path, request)
    reading = source.batches(batch_rows=100)
    next(reading)
    reading.close()  # type: ignore[attr-defined]
    if kind == "postgres":
        assert connections_left(request.getfixturevalue("postgres_url"), "big_source") == 0
    else:
        links = (f"/proc/self/fd/{number}" for number in os.listdir("/proc/self/fd"))
        assert not [link for link in links if os.path.lexists(link) and str(tmp_path) in os.readlink(link)]


def connections_left(url: str, application: str) -> int:
    """Return how many connections ``application`` still has, once the server has had time to see them close."""
    left = -1
    with psycopg.connect(url.replace("+psycopg", "", 1), autocommit=True) as connection:
        for _ in range(50):
            sql = "select count(*) from pg_stat_activity where application_name = %s"
            (left,) = connection.execute(sql, [application]).fetchone() or (-1,)
            if left == 0:
                break
            connection.execute("select pg_sleep(0.05)")
    return left


def test_a_batch_of_long_texts_is_closed_at_its_size(make_source: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys_llm.sources.base.BATCH_BYTES", 10_000)
    source = make_source({"k": list(range(150)), "text": ["x" * 1000] * 150, "t": [T] * 150})
    batches = list(source.batches(["k", "text"], order_by=["k"], batch_rows=100))
    assert max(batch.num_rows for batch in batches) == 9
    assert values(iter(batches), "k") == sorted(range(150), key=str)
