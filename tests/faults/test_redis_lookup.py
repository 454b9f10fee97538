"""A lookup from a Redis that is killed, frozen, slow, cut off, emptied, evicting: typed errors or flagged defaults."""

from __future__ import annotations

import signal
import threading
import uuid

import numpy as np
import pytest
import redis

from recsys_llm import schema
from recsys_llm.errors import EmptiedStoreError, EvictingStoreError, SchemaError, StoreError
from recsys_llm.retrieval import FeatureClient, LookupClient, Status
from recsys_llm.retrieval.serving_export import export_serving
from tests.faults.proxy import proxied
from tests.faults.servers import kill, restarted
from tests.retrieval.feast_repository import PLAIN, Repository, hours
from tests.services import redis_server

pytestmark = pytest.mark.faults

TAGS = {schema.ITEM_STATS: schema.producer_tag("item_statistics", source="interactions")}
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
N_EVENTS = schema.feature_column(schema.ITEM_STATS, "n_events")


@pytest.fixture
def server():
    with redis_server(*DURABLE) as server:
        yield server


def make_client(folder, port: int, **settings) -> FeatureClient:
    """Write two items to Redis as a finished run, and return a client over ``port``.

    Its patience is four times the default: what has to succeed must not fail because this machine is busy.
    """
    online = {"type": "recsys_llm.stores.RedisOnlineStore", "connection_string": f"127.0.0.1:{port}"}
    online |= {"timeout_ms": 400, "breaker_failures": 3} | settings
    repository = Repository(folder, online=online, project=f"p{uuid.uuid4().hex[:8]}", tags=TAGS)
    store = repository.store
    run = store.provider.online_store.begin_run(store.config, schema.ITEM_STATS)
    rows = [{"item_id": item, "at": hours(1), "n_events": number} for number, item in enumerate(["i0", "i1"], 1)]
    repository.write_online(schema.ITEM_STATS, rows)
    store.provider.online_store.end_run(store.config, schema.ITEM_STATS, run)
    return FeatureClient(store=store, now=lambda: hours(2))


@pytest.fixture
def client(tmp_path, server):
    with make_client(tmp_path, server.port) as client:
        yield client


def ask(client, **options) -> list[float]:
    return client.lookup("u", ["i0", "i1"], service=PLAIN, **options).scalar(N_EVENTS).tolist()


def assert_fails(client, match: str, error: type[StoreError] = StoreError) -> None:
    """Look up with both policies."""
    with pytest.raises(error, match=match):
        ask(client)
    batch = client.lookup("u", ["i0", "i1"], service=PLAIN, on_store_error="defaults")
    assert np.isnan(batch.scalar(N_EVENTS)).all()
    assert batch.status(schema.ITEM_STATS).tolist() == [Status.UNAVAILABLE] * 2
    assert batch.store_error is not None


def test_killed(client, server):
    assert ask(client) == [1, 2]
    kill(server)
    for _ in range(5):  # the breaker opens on the way
        assert_fails(client, "check that it is up")
    with restarted(server):
        assert ask(client) == [1, 2]


def test_frozen(client, server):
    assert ask(client) == [1, 2]
    server.process.send_signal(signal.SIGSTOP)
    for _ in range(2):
        assert_fails(client, "Timeout")
    assert client.store.provider.online_store.breaker_state == "open"
    server.process.send_signal(signal.SIGCONT)
    assert ask(client) == [1, 2]
    assert client.store.provider.online_store.breaker_state == "closed"


def test_killed_or_frozen_behind_a_lookup_client(client, server, tmp_path):
    export_serving(client, PLAIN, tmp_path / "serving.json")
    with LookupClient(tmp_path / "serving.json", now=lambda: hours(2)) as light:
        assert ask(light) == [1, 2]
        server.process.send_signal(signal.SIGSTOP)
        for _ in range(2):
            assert_fails(light, "Timeout")
        server.process.send_signal(signal.SIGCONT)
        assert ask(light) == [1, 2]
        kill(server)
        assert_fails(light, "check that it is up")
        with restarted(server):
            assert ask(light) == [1, 2]


def test_when_it_is_lost_one_thread_tries_and_the_others_fail_at_once(client, server):
    ask(client)
    server.process.send_signal(signal.SIGSTOP)
    for _ in range(3):
        with pytest.raises(StoreError):
            ask(client)
    messages = []
    start = threading.Barrier(4)

    def one():
        start.wait()
        with pytest.raises(StoreError) as failure:
            ask(client)
        messages.append(str(failure.value))

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert any("another one is trying" in message for message in messages)
    assert any("another one is trying" not in message for message in messages)


@pytest.mark.parametrize("spoilt", [{"delay": 30.0}, {"delay": 0.1, "piece": 1}], ids=["late", "in drops"])
def test_slow(tmp_path, server, spoilt):
    with proxied(server.port) as proxy, make_client(tmp_path, proxy.port) as client:
        assert ask(client) == [1, 2]
        proxy.delay, proxy.piece = spoilt["delay"], spoilt.get("piece", proxy.piece)
        assert_fails(client, "Timeout")
        proxy.delay, proxy.piece = 0.0, 65_536
        assert ask(client) == [1, 2]


@pytest.mark.parametrize("length", [0, 1, 7, 20])
def test_reset_in_the_middle_of_an_answer(tmp_path, server, length):
    with proxied(server.port) as proxy, make_client(tmp_path, proxy.port) as client:
        assert ask(client) == [1, 2]
        proxy.reset_after = length
        assert_fails(client, "Redis: ConnectionError")
        proxy.reset_after = None
        assert ask(client) == [1, 2]


def test_one_reset_is_healed_by_the_retry(tmp_path, server):
    with proxied(server.port) as proxy, make_client(tmp_path, proxy.port) as client:
        assert ask(client) == [1, 2]
        before = proxy.connections
        for task in list(proxy.tasks):
            task.get_loop().call_soon_threadsafe(task.cancel)
        assert ask(client) == [1, 2]
        assert proxy.connections > before


def test_emptied_and_restarted_empty(client, server):
    with redis.Redis.from_url(server.url) as admin:
        admin.flushall()
    for _ in range(2):
        assert_fails(client, "holds no finished run of item_stats", EmptiedStoreError)


def test_unknown_keys_of_a_filled_store_are_only_missing(client):
    batch = client.lookup("nobody", ["unknown"], service=PLAIN, on_store_error="defaults")
    assert batch.status(schema.ITEM_STATS).tolist() == [Status.MISSING]
    assert batch.store_error is None


def test_an_evicting_server_is_refused_at_the_next_connection(client, server):
    ask(client)
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
        admin.client_kill_filter(_type="normal", skipme=True)
    for _ in range(2):
        assert_fails(client, "expected maxmemory-policy noeviction, found allkeys-lru", EvictingStoreError)
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory-policy", "noeviction")
    assert ask(client) == [1, 2]


def test_an_evicting_server_may_be_allowed(tmp_path):
    with (
        redis_server("--maxmemory-policy", "allkeys-lfu") as server,
        make_client(tmp_path, server.port, allow_eviction=True) as client,
    ):
        assert ask(client) == [1, 2]


def test_an_unknown_policy_is_refused(client):
    with pytest.raises(SchemaError, match="on_store_error: unknown 'default'; did you mean 'defaults'"):
        ask(client, on_store_error="default")
