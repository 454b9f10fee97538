"""The item cache: the answers of the store, bounded in age and bytes, and coherent on Redis."""

from __future__ import annotations

import threading
import time
import uuid
from unittest import mock

import numpy as np
import pytest
import redis
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st
from redis.backoff import NoBackoff
from redis.retry import Retry

from recsys_llm import schema
from recsys_llm.errors import ConfigError, StoreError
from recsys_llm.retrieval import CacheSettings, FeatureClient, LookupClient, Status
from recsys_llm.retrieval.feast_layout import redis_layout
from recsys_llm.retrieval.item_cache import Changes, ItemCache
from recsys_llm.retrieval.online import Decoded, Request, StoredRows
from recsys_llm.retrieval.row_table import RowTable, merged
from recsys_llm.retrieval.service import Feature, View
from recsys_llm.retrieval.serving_export import export_serving
from recsys_llm.retrieval.stored import Cells, Kind
from tests.retrieval.feast_repository import DIMENSION, EVERYTHING, PLAIN, Repository, hours, online_config
from tests.retrieval.online_rows import ITEMS, NOW, fill_online
from tests.services import redis_server

CANDIDATES = [f"i{n}" for n in range(ITEMS)] + ["", "ключ", "a\x00b", "unknown", "i3"]
EVENTS = "item_stats__n_events"
DEADLINE = 20.0


def wait_for(condition):
    """Wait until something holds; the assertion that follows says what."""
    deadline = time.monotonic() + DEADLINE
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    return condition()


@pytest.fixture(params=["sqlite", "redis", "generic"])
def repository(request, tmp_path):
    return filled(request.param, request, tmp_path)


@pytest.fixture
def on_redis(request, tmp_path):
    return filled("redis", request, tmp_path)


def filled(kind, request, folder):
    url = request.getfixturevalue("redis_url") if kind == "redis" else None
    project = f"p{uuid.uuid4().hex[:8]}"
    repository = Repository(folder, online=online_config(kind, folder, url), project=project)
    fill_online(repository)
    return repository


def cached(repository, **given):
    return FeatureClient(store=repository.store, now=lambda: NOW, item_cache=CacheSettings(**given))


def same(one, other):
    assert one.pairwise.tobytes() == other.pairwise.tobytes()
    for column in other.columns:
        assert repr(one.to_pylist(column)) == repr(other.to_pylist(column))
    for view in [*other.user.status, *other.item.status]:
        assert one.status(view).tolist() == other.status(view).tolist()


def test_warm_answers_are_those_of_the_store_and_cost_no_read_of_items(repository):
    with FeatureClient(store=repository.store, now=lambda: NOW) as plain, cached(repository) as client:
        expected = plain.lookup("u1", CANDIDATES, service=EVERYTHING)
        same(
            client.lookup("u1", CANDIDATES[:10], service=EVERYTHING),
            plain.lookup("u1", CANDIDATES[:10], service=EVERYTHING),
        )
        same(client.lookup("u1", CANDIDATES, service=EVERYTHING), expected)
        reader = client._online()
        with mock.patch.object(reader, "read", wraps=reader.read) as read:
            same(client.lookup("u1", CANDIDATES, service=EVERYTHING), expected)
            assert [[asked.entity for asked in call.args[0]] for call in read.call_args_list] == [["user"]]
        stats = client.cache_stats(EVERYTHING)
        distinct = len(set(CANDIDATES))
        assert (stats.hits, stats.misses) == (10 + distinct, distinct)
        assert stats.hit_rate == (10 + distinct) / (10 + 2 * distinct)
        assert stats.rows == distinct
        assert client.lookup("u1", [], service=EVERYTHING).pairwise.shape == (0, 5)


def test_what_is_handed_out_is_a_copy(repository):
    with cached(repository) as client:
        column = schema.feature_column(schema.ITEM_TEXT_EMBEDDING, schema.EMBEDDING)
        expected = client.lookup("u1", ["i0", "i1"], service=EVERYTHING).vector(column).copy()
        client.lookup("u1", ["i0", "i1"], service=EVERYTHING).vector(column)[:] = 7
        assert client.lookup("u1", ["i0", "i1"], service=EVERYTHING).vector(column).tobytes() == expected.tobytes()


def test_the_ttl_of_a_view_is_measured_at_each_lookup(tmp_path):
    """A row that is in the cache goes stale as one in the store does."""
    from tests.retrieval import feast_repository

    views = {**feast_repository.VIEWS}
    entity, _, features = views[schema.ITEM_STATS]
    views[schema.ITEM_STATS] = (entity, feast_repository.MOOD_TTL, features)
    repository = Repository(tmp_path, online=online_config("sqlite", tmp_path), views=views)
    repository.write_online(schema.ITEM_STATS, [{"item_id": "i", "at": hours(0), "n_events": 1}])
    moment = [hours(10)]
    with FeatureClient(store=repository.store, now=lambda: moment[0], item_cache=CacheSettings()) as client:
        assert client.lookup("u", ["i"], service=PLAIN).status(schema.ITEM_STATS) == [Status.PRESENT]
        moment[0] = hours(10.1)
        stale = client.lookup("u", ["i"], service=PLAIN)
        assert stale.status(schema.ITEM_STATS) == [Status.STALE]
        assert np.isnan(stale.scalar(EVENTS)).all()
        assert client.cache_stats(PLAIN).hits == 1


class TestRedis:
    """Coherence with other writers."""

    def events(self, client, *items):
        return client.lookup("u1", items, service=PLAIN).scalar(EVENTS).tolist()

    def write(self, repository, item, number, hour):
        repository.write_online(schema.ITEM_STATS, [{"item_id": item, "at": hours(hour), "n_events": number}])

    def test_a_write_is_seen_at_once(self, on_redis):
        with cached(on_redis, ttl=3600, max_staleness=3600) as client:
            assert self.events(client, "i0", "i3") == [0, 7]
            self.write(on_redis, "i3", 70, 50)
            assert wait_for(lambda: self.events(client, "i0", "i3") == [0, 70])
            self.write(on_redis, "new", 1, 1)
            assert self.events(client, "new") == [1]
            stats = client.cache_stats(PLAIN)
            assert stats.invalidated >= 1
            assert stats.flushes == 0

    def test_a_row_that_was_missing_comes(self, on_redis):
        with cached(on_redis) as client:
            assert client.lookup("u1", ["later"], service=PLAIN).status(schema.ITEM_STATS) == [Status.MISSING]
            self.write(on_redis, "later", 5, 1)
            assert wait_for(lambda: self.events(client, "later") == [5])

    @pytest.mark.parametrize("hiredis", [True, False])
    def test_concurrent_writers(self, on_redis, redis_url, hiredis, monkeypatch):
        """Values never go back, and the last write of each item is seen once the writers are done."""
        if not hiredis:
            monkeypatch.setattr("recsys_llm.retrieval.redis_tracking.parses_pushes", lambda: False)
        items, writes = [f"w{n}" for n in range(8)], 150
        with cached(on_redis, ttl=3600, max_staleness=3600) as client:
            view = client.resolve(PLAIN).of(schema.ITEM)[0]
            layout = redis_layout(on_redis.store.config, view)
            stamp = Timestamp(seconds=int(hours(5).timestamp())).SerializeToString()

            def write(some):
                with redis.Redis.from_url(redis_url) as connection:
                    for number in range(1, writes + 1):
                        for item in some:
                            fields = {layout.fields[0]: ValueProto(int64_val=number).SerializeToString()}
                            connection.hset(layout.key.key(item), mapping={**fields, layout.stamp: stamp})

            went_back = []

            def read():
                last = np.zeros(len(items))
                while any(writer.is_alive() for writer in writers):
                    found = np.nan_to_num(np.array(self.events(client, *items)))
                    went_back.extend(found[found < last].tolist())
                    last = found

            writers = [threading.Thread(target=write, args=(items[place::2],)) for place in range(2)]
            readers = [threading.Thread(target=read) for _ in range(2)]
            for thread in [*writers, *readers]:
                thread.start()
            for thread in [*writers, *readers]:
                thread.join()
            assert not went_back
            assert wait_for(lambda: self.events(client, *items) == [writes] * len(items))
            before = client.cache_stats(PLAIN)
            assert before.invalidated > 0
            assert self.events(client, *items) == [writes] * len(items)
            assert client.cache_stats(PLAIN).misses == before.misses

    def test_a_lost_connection_loses_all_rows(self, on_redis, redis_url):
        with cached(on_redis, ttl=3600, max_staleness=3600) as client, redis.Redis.from_url(redis_url) as other:
            assert self.events(client, "i0", "i3") == [0, 7]
            tracking = max(int(found["id"]) for found in other.client_list() if "t" in found["flags"])
            other.client_kill_filter(_id=tracking)
            self.write(on_redis, "i3", 70, 50)
            assert wait_for(lambda: self.events(client, "i0", "i3") == [0, 70])
            assert client.cache_stats(PLAIN).flushes == 1
            hits = client.cache_stats(PLAIN).hits
            self.write(on_redis, "i3", 71, 51)  # the new connection is told of writes as well
            assert wait_for(lambda: self.events(client, "i0", "i3") == [0, 71])
            assert client.cache_stats(PLAIN).hits > hits

    def test_a_flushed_server(self, tmp_path):
        with redis_server() as server:
            online = {"type": "redis", "connection_string": f"127.0.0.1:{server.port},db=0"}
            repository = Repository(tmp_path, online=online)
            fill_online(repository)
            with cached(repository) as client, redis.Redis.from_url(server.url) as other:
                assert self.events(client, "i3") == [7]
                other.flushall()
                assert wait_for(
                    lambda: client.lookup("u1", ["i3"], service=PLAIN).status(schema.ITEM_STATS) == [Status.MISSING]
                )

    def test_a_redis_that_went_away_is_an_error_and_not_an_old_answer(self, tmp_path):
        with redis_server() as server:
            online = {"type": "redis", "connection_string": f"127.0.0.1:{server.port},db=0"}
            repository = Repository(tmp_path, online=online)
            fill_online(repository)
            pool = repository.store.provider.online_store._get_client(repository.store.config.online_store)
            pool.connection_pool.connection_kwargs.update(retry=Retry(NoBackoff(), 0))
            pool.connection_pool.reset()
            client = cached(repository)
            assert self.events(client, "i3") == [7]
        with client, pytest.raises(StoreError, match="Redis: ConnectionError"):
            self.events(client, "i3")

    def test_without_being_told(self, on_redis):
        with cached(on_redis, coherent=False, ttl=3600, max_staleness=3600) as client:
            assert self.events(client, "i3") == [7]
            self.write(on_redis, "i3", 70, 50)
            assert self.events(client, "i3") == [7]

    def test_the_client_of_a_manifest(self, on_redis, tmp_path):
        with FeatureClient(store=on_redis.store) as client:
            export_serving(client, PLAIN, tmp_path / "serving.json")
        with LookupClient(tmp_path / "serving.json", now=lambda: NOW, item_cache=CacheSettings()) as client:
            assert self.events(client, "i3") == self.events(client, "i3") == [7]
            self.write(on_redis, "i3", 70, 50)
            assert wait_for(lambda: self.events(client, "i3") == [70])
            assert client.cache_stats().invalidated == 1


def test_another_model_starts_with_an_empty_cache(repository):
    with cached(repository) as client:
        client.lookup("u1", ["i0"], service=EVERYTHING)
        client.refresh()
        client.lookup("u1", ["i0"], service=EVERYTHING)
        assert client.cache_stats(EVERYTHING).hits == 1  # nothing has changed
        repository.write(
            schema.ITEM_TEXT_EMBEDDING,
            [{"item_id": "i0", "at": hours(0), "embedding": [1.0] * DIMENSION, "row_id": 1}],
            fingerprint="another",
        )
        client.refresh()
        client.lookup("u1", ["i0"], service=EVERYTHING)
        assert (client.cache_stats(EVERYTHING).hits, client.cache_stats(EVERYTHING).misses) == (0, 1)


def test_closing_ends_the_background_thread(repository):
    before = set(threading.enumerate())
    with cached(repository) as client:
        client.lookup("u1", ["i0"], service=EVERYTHING)
        assert [thread.name for thread in set(threading.enumerate()) - before] == ["recsys_llm item cache"]
    assert set(threading.enumerate()) <= before


FEATURE = Feature("f", "v__f", Kind.SCALAR)
VIEW = View("v", "item", 0, (FEATURE,), False, None, None)


class Numbers:
    """A source whose values are set by the test."""

    def __init__(self):
        self.value, self.reads, self.told, self.fails = 1.0, [], Changes(), False

    def changes(self, request):
        told, self.told = self.told, Changes()
        return told

    def read(self, request):
        if self.fails:
            raise StoreError("down")
        self.reads.append(request.ids)
        stored = ValueProto(float_val=self.value).SerializeToString()
        return [StoredRows(np.ones(len(request.ids), np.int64), {"f": [stored] * len(request.ids)})]

    def close(self):
        pass


class TestTimes:
    """What is handed out when, by a clock that the test moves."""

    @pytest.fixture
    def source(self):
        return Numbers()

    @pytest.fixture
    def cache(self, source):
        self.time = 0.0
        # The background thread would look at the clock at its own times.
        with mock.patch.object(ItemCache, "_run"):
            cache = ItemCache(CacheSettings(ttl=10, max_staleness=30), source, {}, clock=lambda: self.time)
            yield cache
            cache.close()

    def values(self, cache, *ids):
        return cache.read(Request("item", (VIEW,), ids)).columns["v__f"].tolist()

    def test_rows_are_read_again_in_the_background_after_their_ttl(self, cache, source):
        self.values(cache, "a", "b")
        self.values(cache, "a")
        source.value = 2.0
        self.time = 10.0
        cache.refresh()
        assert self.values(cache, "a", "b") == [1, 1]
        self.time = 10.1
        assert self.values(cache, "a") == [1]  # nobody waits
        cache.refresh()
        assert source.reads == [("a", "b"), ("a", "b")]
        assert self.values(cache, "a", "b") == [2, 2]
        assert cache.stats().refreshed == 2

    def test_what_nobody_asks_for_is_not_read_again_and_dropped_in_the_end(self, cache, source):
        self.values(cache, "a")
        self.time = 29.0
        cache.refresh()
        assert len(source.reads) == 1
        assert cache.stats().rows == 1
        self.time = 31.0
        cache.refresh()
        assert cache.stats().rows == 0

    def test_nothing_is_handed_out_past_the_bound(self, cache, source):
        assert self.values(cache, "a") == self.values(cache, "a") == [1]
        source.value, source.fails = 2.0, True
        self.time = 30.0
        with pytest.raises(StoreError):
            cache.refresh()
        assert self.values(cache, "a") == [1]
        self.time = 30.1
        with pytest.raises(StoreError, match="down"):
            self.values(cache, "a")
        source.fails = False
        assert self.values(cache, "a") == [2]

    def test_what_was_written_while_it_was_read_is_not_kept(self, cache, source):
        original = source.read

        def overtaken(request):
            rows = original(request)
            source.told = Changes(frozenset({"a"}))
            return rows

        source.read = overtaken
        self.values(cache, "a", "b")
        source.read = original
        source.value = 2.0
        assert self.values(cache, "a", "b") == [2, 1]

    def test_a_connection_lost_while_reading_keeps_nothing(self, cache, source):
        original = source.read

        def broken(request):
            rows = original(request)
            source.told = Changes(lost=True)
            return rows

        source.read = broken
        self.values(cache, "a")
        source.read = original
        source.value = 2.0
        assert self.values(cache, "a") == [2]


def test_a_failure_in_the_background_is_counted_and_the_thread_goes_on():
    source = Numbers()
    cache = ItemCache(CacheSettings(ttl=0.05, max_staleness=3600), source, {})
    request = Request("item", (VIEW,), ("a",))
    cache.read(request)
    source.fails = True
    assert wait_for(lambda: cache.read(request) and cache.stats().failures > 1)
    source.fails, source.value = False, 2.0
    assert wait_for(lambda: cache.read(request).columns["v__f"].tolist() == [2])
    cache.close()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_bytes": 5}, "max_bytes: expected at least 1048576"),
        ({"ttl": 0}, "ttl: expected seconds above 0, found 0"),
        ({"ttl": float("nan")}, "ttl: expected seconds above 0, found nan"),
        ({"ttl": 10, "max_staleness": 5}, r"max_staleness: expected at least ttl \(10\), found 5"),
    ],
)
def test_settings_out_of_range(given, message):
    with pytest.raises(ConfigError, match=message):
        CacheSettings(**given)


def table_rows(ids, version):
    n = len(ids)
    return Decoded(
        {
            "vector": np.arange(n * 3, dtype=np.float32).reshape(n, 3) + version,
            "number": np.full(n, version, dtype=np.float32),
            "words": Cells.of(Kind.STRINGS, [(id_, str(version)) * (version % 5) or None for id_ in ids]),
        },
        {"v": np.full(n, version, dtype=np.int64)},
    )


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "drop"]), st.sets(st.integers(0, 40), min_size=1, max_size=25)), max_size=30
    ),
    st.integers(1_500, 12_000),
)
def test_a_table_holds_what_was_last_put_within_its_bytes(operations, max_bytes):
    table, model = RowTable(table_rows(["a"], 0), max_bytes), {}
    for version, (operation, numbers) in enumerate(operations):
        ids = [f"id{number}" for number in numbers]
        if operation == "drop":
            table.drop(ids)
            for id_ in ids:
                model.pop(id_, None)
            continue
        rows = table_rows(ids, version)
        table.put(ids, rows, range(len(ids)), float(version))
        for place, id_ in enumerate(ids):
            model[id_] = (rows.columns["vector"][place].tolist(), version, rows.columns["words"].values[place])
        assert table.bytes <= max_bytes
        assert len(table) <= table.capacity
        asked = [f"id{number}" for number in range(41)]
        slots = table.find(asked)
        held = np.flatnonzero(slots >= 0)
        assert len(held) == len(table)
        found = table.gather(slots[held])
        for row, place in enumerate(held.tolist()):
            vector, number, words = model[asked[place]]
            assert found.columns["vector"][row].tolist() == vector
            assert found.columns["number"][row] == number == found.timestamps["v"][row]
            assert found.columns["words"].values[row] == words
        assert set(table.ids_at(table.used())) == {asked[place] for place in held.tolist()}


def test_rows_of_a_large_request_fill_the_table_and_no_more(on_redis):
    with cached(on_redis, max_bytes=2**20) as client:
        many = [f"none{n}" for n in range(12_000)]
        for _ in range(2):
            batch = client.lookup("u1", many, service=PLAIN)
            assert (batch.status(schema.ITEM_STATS) == Status.MISSING).all()
        stats = client.cache_stats(PLAIN)
        assert 1000 < stats.rows < 12_000
        assert stats.bytes <= 2**20
        assert stats.evicted > 0


def test_two_blocks_make_one():
    first, second = table_rows(["a", "b"], 1), table_rows(["c"], 2)
    found = merged(3, first, np.array([2, 0]), second, np.array([1]))
    assert found.columns["vector"].tolist() == [[4, 5, 6], [2, 3, 4], [1, 2, 3]]
    assert found.columns["words"].values.tolist() == [("b", "1"), ("c", "2", "c", "2"), ("a", "1")]
    assert found.timestamps["v"].tolist() == [1, 2, 1]
