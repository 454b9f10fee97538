"""The item cache: the answers of the store, bounded in age and bytes, and coherent on Redis."""

from __future__ import annotations

import threading
import uuid
from unittest import mock

import numpy as np
import pytest
import redis
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from google.protobuf.timestamp_pb2 import Timestamp
from redis.backoff import NoBackoff
from redis.retry import Retry

from recsys_llm import schema
from recsys_llm.errors import StoreError
from recsys_llm.retrieval import CacheSettings, FeatureClient, LookupClient, Status
from recsys_llm.retrieval.feast_layout import redis_layout
from recsys_llm.retrieval.serving_export import export_serving
from tests.retrieval.feast_repository import DIMENSION, EVERYTHING, PLAIN, Repository, hours, online_config
from tests.retrieval.online_rows import ITEMS, NOW, fill_online
from tests.retrieval.waiting import wait_for
from tests.services import redis_server

CANDIDATES = [f"i{n}" for n in range(ITEMS)] + ["", "ключ", "a\x00b", "unknown", "i3"]
EVENTS = "item_stats__n_events"


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
