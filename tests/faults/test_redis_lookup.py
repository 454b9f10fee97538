"""A lookup from a Redis that is killed, frozen, slow, cut off, emptied, evicting: typed errors or flagged defaults."""

from __future__ import annotations

import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pytest
import redis

from recsys_llm import schema
from recsys_llm.errors import EmptiedStoreError, EvictingStoreError, SchemaError, StoreError
from recsys_llm.retrieval import CacheSettings, FeatureClient, LookupClient, Status
from recsys_llm.retrieval.serving_export import export_serving
from recsys_llm.stores.redis_connection import POLICY_SECONDS, TIMEOUT_MS
from tests.faults.proxy import proxied
from tests.faults.servers import kill, restarted
from tests.retrieval.feast_repository import PLAIN, Repository, hours
from tests.retrieval.waiting import wait_for
from tests.services import redis_server

pytestmark = pytest.mark.faults

TAGS = {schema.ITEM_STATS: schema.producer_tag("item_statistics", source="interactions")}
DURABLE = ("--appendonly", "yes", "--appendfsync", "always")
N_EVENTS = schema.feature_column(schema.ITEM_STATS, "n_events")


LIMIT_SECONDS = 0.3
"""What a lookup may take while the store fails, with the default timeout."""
HANGS_SECONDS = 120
Clients = Callable[..., FeatureClient | LookupClient]


@pytest.fixture(autouse=True)
def hanging_fails() -> Iterator[None]:
    """End a test that waits without end."""

    def late(*_: Any) -> None:
        raise AssertionError(f"no end after {HANGS_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANGS_SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


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


@pytest.fixture(params=[FeatureClient, LookupClient], ids=lambda kind: kind.__name__)
def clients(request, tmp_path) -> Iterator[Clients]:
    """Fill a Redis over a port, and return a client of either kind over that port: of the store, or of its manifest."""
    with ExitStack() as stack:

        def opened(port: int, *, item_cache: CacheSettings | None = None, **settings) -> FeatureClient | LookupClient:
            full = stack.enter_context(make_client(tmp_path, port, **settings))
            if request.param is FeatureClient:
                return stack.enter_context(FeatureClient(store=full.store, now=full._now, item_cache=item_cache))
            export_serving(full, PLAIN, tmp_path / "serving.json")
            made = LookupClient(tmp_path / "serving.json", now=full._now, item_cache=item_cache)
            return stack.enter_context(made)

        yield opened


@pytest.fixture
def client(clients, server):
    return clients(server.port)


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


def assert_fails_in_time(client, match: str) -> None:
    """Fail within the limit with both policies; the best of five counts, since this machine may be busy."""
    for policy in ("raise", "defaults"):
        times = []
        for _ in range(5):
            started = time.perf_counter()
            try:
                failure = client.lookup("u", ["i0", "i1"], service=PLAIN, on_store_error=policy).store_error
            except StoreError as error:
                failure = str(error)
            times.append(time.perf_counter() - started)
            assert re.search(match, str(failure))
            if times[-1] < LIMIT_SECONDS:
                break
            time.sleep(0.2 * len(times))  # so that one stall of the machine isn't all five
        assert min(times) < LIMIT_SECONDS, f"on_store_error={policy}: {times}"


def eventually(client, **options) -> None:
    """Wait for an answer: with the default timeout it may take this machine several requests."""
    until = time.monotonic() + HANGS_SECONDS / 4
    while True:
        try:
            assert ask(client, **options) == [1, 2]
            return
        except StoreError:
            if time.monotonic() > until:
                raise


@pytest.mark.parametrize("fault", ["killed", "frozen", "late", "in drops", "reset"])
def test_by_default_a_failure_is_told_within_300_ms(clients, server, fault):
    with proxied(server.port) as proxy:
        # Behind an open breaker requests are shorter still.
        client = clients(proxy.port, timeout_ms=TIMEOUT_MS, breaker_failures=1_000)
        eventually(client)
        if fault == "killed":
            kill(server)
        elif fault == "frozen":
            server.process.send_signal(signal.SIGSTOP)
        elif fault == "late":
            proxy.delay = 30.0
        elif fault == "in drops":  # each in time for one wait
            proxy.delay, proxy.piece = 0.08, 1
        else:
            proxy.reset_after = 7
        assert_fails_in_time(client, "Timeout|Redis: ConnectionError")


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
    assert client.breaker_state == "open"
    server.process.send_signal(signal.SIGCONT)
    assert ask(client) == [1, 2]
    assert client.breaker_state == "closed"


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
def test_slow(clients, server, spoilt):
    with proxied(server.port) as proxy:
        client = clients(proxy.port)
        assert ask(client) == [1, 2]
        proxy.delay, proxy.piece = spoilt["delay"], spoilt.get("piece", proxy.piece)
        assert_fails(client, "Timeout")
        proxy.delay, proxy.piece = 0.0, 65_536
        assert ask(client) == [1, 2]


@pytest.mark.parametrize("length", [0, 1, 7, 20])
def test_reset_in_the_middle_of_an_answer(clients, server, length):
    with proxied(server.port) as proxy:
        client = clients(proxy.port)
        assert ask(client) == [1, 2]
        proxy.reset_after = length
        assert_fails(client, "Redis: ConnectionError")
        proxy.reset_after = None
        assert ask(client) == [1, 2]


def test_one_reset_is_healed_by_the_retry(clients, server):
    with proxied(server.port) as proxy:
        client = clients(proxy.port)
        assert ask(client) == [1, 2]
        before = proxy.connections
        for task in list(proxy.tasks):
            task.get_loop().call_soon_threadsafe(task.cancel)
        assert ask(client) == [1, 2]
        assert proxy.connections > before


def empty(server, kept: str = "") -> None:
    """Flush a server; the row of one item is put back, as a stream would write it."""
    with redis.Redis.from_url(server.url) as admin:
        rows = {key: admin.dump(key) for key in admin.keys("*") if kept and kept.encode() in key}
        assert len(rows) == bool(kept)
        admin.flushall()
        for key, row in rows.items():
            admin.restore(key, 0, row)


@pytest.mark.parametrize("kept", ["", "i0"])
def test_emptied(client, server, kept):
    assert ask(client) == [1, 2]
    empty(server, kept)
    for _ in range(2):
        assert_fails(client, "holds no finished run of item_stats", EmptiedStoreError)


def test_restarted_empty(clients):
    with redis_server() as server:
        client = clients(server.port)
        assert ask(client) == [1, 2]
        kill(server)
        with restarted(server):
            for _ in range(2):
                assert_fails(client, "holds no finished run of item_stats", EmptiedStoreError)


@pytest.mark.parametrize("coherent", [True, False])
def test_emptied_behind_an_item_cache(clients, server, coherent):
    client = clients(server.port, item_cache=CacheSettings(coherent=coherent, ttl=0.2, max_staleness=60))
    for _ in range(2):
        assert client.lookup("u", ["i0", "unknown"], service=PLAIN).status(schema.ITEM_STATS).tolist() == [
            Status.PRESENT,
            Status.MISSING,
        ]
    empty(server, "i0")

    def noticed() -> bool:
        try:
            client.lookup("u", ["i0", "unknown"], service=PLAIN)
        except EmptiedStoreError:
            return True
        return False

    assert wait_for(noticed)
    assert noticed()


def test_unknown_keys_of_a_filled_store_are_only_missing(client):
    batch = client.lookup("nobody", ["unknown"], service=PLAIN, on_store_error="defaults")
    assert batch.status(schema.ITEM_STATS).tolist() == [Status.MISSING]
    assert batch.store_error is None


def test_a_server_that_begins_to_evict_is_noticed_over_a_connection_that_is_open(client, server):
    ask(client)
    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
        known = len(admin.client_list())
        time.sleep(POLICY_SECONDS)
        for _ in range(2):
            assert_fails(client, "expected maxmemory-policy noeviction, found allkeys-lru", EvictingStoreError)
        admin.config_set("maxmemory-policy", "noeviction")
        assert ask(client) == [1, 2]
        assert len(admin.client_list()) <= known


def test_the_policy_is_asked_for_now_and_then_and_no_more(client, server):
    with redis.Redis.from_url(server.url) as admin:
        ask(client)
        before, started = calls(admin), time.monotonic()
        for _ in range(50):
            ask(client)
        after, seconds = calls(admin), time.monotonic() - started
    assert after["hmget"] - before["hmget"] == 50 * 4  # a user, two items, and the marks
    assert after["info"] - before["info"] - 1 <= seconds / POLICY_SECONDS + 1  # one is the admin's


def calls(admin: redis.Redis) -> dict[str, int]:
    return {name.removeprefix("cmdstat_"): each["calls"] for name, each in admin.info("commandstats").items()}


def test_an_evicting_server_may_be_allowed(clients):
    with redis_server("--maxmemory-policy", "allkeys-lfu") as server:
        assert ask(clients(server.port, allow_eviction=True)) == [1, 2]


def test_an_unknown_policy_is_refused(client):
    with pytest.raises(SchemaError, match="on_store_error: unknown 'default'; did you mean 'defaults'"):
        ask(client, on_store_error="default")
