"""Bulk writers against Feast's ``online_write_batch``, on real stores: the same bytes, and newer rows stay."""

from __future__ import annotations

import sqlite3
import threading
import time
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pytest
import redis
from feast import ValueType
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys_llm import schema
from recsys_llm.engine import write_sqlite
from recsys_llm.engine.rows import Rows, Written
from recsys_llm.engine.write_redis import RedisWriter
from recsys_llm.engine.write_sqlite import SqliteWriter
from recsys_llm.errors import RowError, StoreError
from recsys_llm.stores.compare_and_set import CALLS_PER_TRIP, ROWS_PER_CALL
from tests.engine.online_places import ALL, PAIR, Place, columns_of, pair, table
from tests.retrieval.feast_repository import STAMP, T0, hours
from tests.services import redis_cluster, redis_server


@pytest.mark.parametrize("rows", [20, 2 * CALLS_PER_TRIP * ROWS_PER_CALL + 3])
def test_every_byte_is_what_feast_writes(places, kind, rows):
    ours, feasts = places(kind), places(kind)
    times = [T0 + timedelta(seconds=row, microseconds=row * 7) for row in range(rows)]
    written = table(columns_of(rows), times)
    assert ours.publish(written, ALL) == Written(newer=rows)
    feasts.publish_as_feast(written, ALL)
    assert len(ours.dump(ALL)) >= rows
    assert ours.dump(ALL) == feasts.dump(ALL)
    ids = [f"i{row}" for row in range(rows)] + ["unknown"]
    found, expected = ours.read(ids, ALL), feasts.read(ids, ALL)
    assert repr(found) == repr(expected)  # NaN is not equal to itself
    assert found["f32"][1] == pytest.approx(0.1)


def test_every_byte_in_another_time_zone(places, monkeypatch):
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        ours, feasts = places("sqlite"), places("sqlite")
        # Half an hour apart, over the two days on which clocks are changed; and before 1970.
        times = [T0.replace(month=3, day=10) + timedelta(minutes=30 * step) for step in range(48)]
        times += [T0.replace(month=11, day=3) + timedelta(minutes=30 * step) for step in range(48)]
        times += [T0.replace(year=1930, microsecond=5), T0.replace(year=1969, month=12, day=31, microsecond=999_999)]
        written = table(columns_of(len(times)), times)
        ours.publish(written, ALL)
        feasts.publish_as_feast(written, ALL)
        assert ours.dump(ALL) == feasts.dump(ALL)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_newer_wins_and_equal_is_replaced(places, kind):
    place = places(kind)
    assert place.publish(pair(1, hours(5))) == Written(newer=1)
    assert place.publish(pair(2, hours(4))) == Written(older=1)
    assert place.read()["number"] == [1]
    assert place.publish(pair(3, hours(5))) == Written(equal=1)
    assert place.read()["number"] == [3]
    assert place.publish(pair(4, hours(6), ids=("i0", "i1"))) == Written(newer=2)
    assert place.publish(pair(5, hours(6), ids=("i0", "i2"))) == Written(newer=1, equal=1)
    assert place.read(["i0", "i1", "i2"]) == {
        schema.ITEM_ID: ["i0", "i1", "i2"], "number": [5, 4, 5], "vector": [[5.0] * 3, [4.0] * 3, [5.0] * 3]
    }  # fmt: skip


def test_rows_that_feast_wrote_are_compared_too(places, kind):
    place = places(kind)
    place.publish_as_feast(pair(1, hours(5)), PAIR)
    assert place.publish(pair(2, hours(4))) == Written(older=1)
    assert place.publish(pair(3, hours(7))) == Written(newer=1)
    if kind == "redis":  # Feast's sqlite store compares nothing
        place.publish_as_feast(pair(4, hours(6)), PAIR)
    assert place.read()["number"] == [3]


MICROS = st.sampled_from([-(2**50), -1_000_001, -1_000_000, -1, 0, 1, 999_999, 1_000_000, 127_000_000, 128_000_001]) | (
    st.integers(-(2**52), 2**52)
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(held=MICROS, asked=MICROS)
def test_redis_compares_times_to_the_microsecond(compared, held, asked):
    place, writer, view = compared

    def write(micros, number):
        batch = pair(number, T0, ids=(f"{held} {asked}",)).drop_columns([schema.CONTENT_HASH]).to_batches()[0]
        place_of_time = batch.schema.get_field_index(schema.EVENT_TIMESTAMP)
        batch = batch.set_column(place_of_time, schema.EVENT_TIMESTAMP, pa.array([micros], STAMP))
        return writer.write(Rows(view, batch, {schema.ITEM_ID: ValueType.STRING}, place.store.config))

    write(held, 1)
    expected = Written(newer=asked > held, equal=asked == held, older=asked < held)
    # A second draw of the same pair finds the row that the first one left.
    again = write(asked, 2)
    assert again == expected or (again.equal and asked >= held)


@pytest.fixture
def compared(places):
    place = places("redis")
    view = place.store.get_feature_view(PAIR)
    return place, RedisWriter(place.store.config, place.store.provider.online_store, view), view


def test_many_writers_at_once_leave_the_newest_row(places, kind):
    place = places(kind)
    ids = tuple(f"i{number}" for number in range(40))
    rng = np.random.default_rng(0)
    orders = [rng.permutation(24) + 24 * writer for writer in range(4)]
    errors = []

    def write(order):
        try:
            publisher = place.publisher()
            for number in order.tolist():
                publisher(pair(number, hours(number), ids))
        except Exception as error:  # noqa: BLE001  threads don't raise to the test by themselves
            errors.append(error)

    def read():
        seen = {}
        while any(thread.is_alive() for thread in threads):
            found = place.read(ids)
            for id_, number, vector in zip(ids, found["number"], found["vector"], strict=True):
                if number is None:
                    continue
                if vector != [float(number)] * 3 or number < seen.get(id_, 0):
                    errors.append(f"{id_}: number {number}, vector {vector}, after {seen.get(id_)}")
                seen[id_] = number

    threads = [threading.Thread(target=write, args=(order,)) for order in orders]
    for thread in threads:
        thread.start()
    read()
    for thread in threads:
        thread.join()
    assert errors == []
    assert place.read(ids)["number"] == [4 * 24 - 1] * len(ids)


def test_expiry_on_redis(places):
    place = places("redis", key_ttl_seconds=500)

    def seconds_left():
        with redis.Redis.from_url(place.url) as client:
            (key,) = (key for key in client.scan_iter("*") if key.endswith(place.project.encode()))
            left = client.ttl(key)
            client.expire(key, 100)
            return left

    place.publish(pair(1, hours(5)))
    assert 400 < seconds_left() <= 500
    place.publish(pair(2, hours(4)))  # an older row changes nothing
    assert 0 < seconds_left() <= 100
    place.publish(pair(3, hours(5)))
    assert 400 < seconds_left() <= 500


def test_a_server_that_has_forgotten_the_script_is_taught_it(places):
    place = places("redis")
    publisher = place.publisher()
    publisher(pair(1, hours(1)))
    with redis.Redis.from_url(place.url) as client:
        client.script_flush()
    publisher(pair(2, hours(2)))
    assert place.read()["number"] == [2]


@pytest.mark.parametrize("type_", ["redis", "recsys_llm.stores.RedisOnlineStore"])
def test_a_cluster_says_what_became_of_rows(tmp_path, type_):
    rows = 2 * CALLS_PER_TRIP * ROWS_PER_CALL + 3
    ids = tuple(f"i{row}" for row in range(rows))
    with redis_cluster() as server:
        online = {"type": type_, "redis_type": "redis_cluster", "connection_string": f"127.0.0.1:{server.port}"}
        place = Place("redis", tmp_path, server.url, {}, **online)
        assert place.publish(pair(1, hours(5), ids)) == Written(newer=rows)
        assert place.publish(pair(2, hours(4), ids)) == Written(older=rows)
        assert place.publish(pair(3, hours(5), ids[:2])) == Written(equal=2)
        assert place.publish(pair(4, hours(6), ids[1:3])) == Written(newer=2)
        assert place.read(("i0", "i1", "i2", "i3"))["number"] == [3, 4, 4, 1]


def test_a_full_redis_is_an_error(tmp_path):
    with redis_server("--maxmemory", "100kb", "--maxmemory-policy", "noeviction") as server:
        place = Place("redis", tmp_path, server.url, {})
        with pytest.raises(StoreError, match="view pair: Redis: .*OOM.*has memory left"):
            place.publish(pair(1, hours(1)))


def test_a_sqlite_store_without_the_table_is_an_error(places):
    place = places("sqlite")
    with sqlite3.connect(place.repository.folder / "data/online.db") as connection:
        connection.execute(f"DROP TABLE {place.project}_{PAIR}")
    connection.close()
    with pytest.raises(StoreError, match=f"view pair: online store .*no such table: {place.project}_pair; run `feast"):
        place.publish(pair(1, hours(1)))


def test_a_time_that_feast_cannot_read_is_named(places):
    place = places("sqlite")
    place.publish(pair(1, hours(1)))
    with sqlite3.connect(place.repository.folder / "data/online.db") as connection:
        connection.execute(f"UPDATE {place.project}_{PAIR} SET event_ts = '2024-01-01 00:00:00'")
    connection.close()
    with pytest.raises(StoreError, match="view pair: expected times in whole seconds .* found '2024-01-01 00:00:00'"):
        place.publish(pair(2, hours(2)))


def test_a_locked_sqlite_store_is_waited_for_and_then_an_error(places, monkeypatch):
    place = places("sqlite")
    monkeypatch.setattr(write_sqlite, "WAIT_SECONDS", 0.05)
    connection = sqlite3.connect(place.repository.folder / "data/online.db", isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="database is locked"):
        place.publish(pair(1, hours(1)))
    connection.execute("ROLLBACK")
    connection.close()
    assert place.publish(pair(1, hours(1))) == Written(newer=1)


def test_another_store_is_written_by_feast(places):
    place = places("generic")
    assert place.publish(pair(1, hours(5))) == Written(newer=1)
    assert place.read()["vector"] == [[1.0] * 3]


def test_which_writer(places):
    place = places("sqlite")
    assert type(place.publisher()._writer) is SqliteWriter
    place.store.config.online_store.enable_openai_compatible_store = True
    assert type(place.publisher()._writer).__name__ == "FeastWriter"


@pytest.mark.parametrize("column", [schema.ITEM_ID, schema.EVENT_TIMESTAMP])
def test_a_row_without_key_or_time_is_refused(places, kind, column):
    rows = pair(1, hours(5), ids=("i0", "i1"))
    place_of = rows.schema.get_field_index(column)
    broken = pa.array([rows.column(column)[0].as_py(), None], rows.schema.field(column).type)
    with pytest.raises(RowError, match=f"view pair, column '{column}', row 1: null"):
        places(kind).publish(rows.set_column(place_of, column, broken))


def test_keys_of_other_types_and_of_several_columns():
    batch = pa.record_batch({"number": pa.array([5, -1], pa.int64()), "text": pa.array(["a", "ß"], pa.string())})
    kinds = {"text": ValueType.STRING, "number": ValueType.INT64}

    class Config:
        entity_key_serialization_version = 3

    for names in (["number"], ["text"], ["text", "number"], []):
        rows = Rows(None, batch, {name: kinds[name] for name in names}, Config)
        for row, (number, text) in enumerate([(5, "a"), (-1, "ß")]):
            values = {"number": Value(int64_val=number), "text": Value(string_val=text)}
            key = EntityKey(join_keys=names, entity_values=[values[name] for name in names])
            assert rows.keys[row] == serialize_entity_key(key, entity_key_serialization_version=3)
