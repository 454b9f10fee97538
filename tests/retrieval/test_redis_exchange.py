"""Hand-packed commands on redis-py's connections: every parser, faults, a cluster."""

from __future__ import annotations

import signal
import threading
import uuid

import pytest
import redis
from redis._parsers import _HiredisParser, _RESP2Parser, _RESP3Parser
from redis.backoff import NoBackoff
from redis.retry import Retry

from recsys_llm import schema
from recsys_llm.errors import StoreError
from recsys_llm.retrieval import FeatureClient
from recsys_llm.retrieval.online_redis import Commands
from recsys_llm.retrieval.redis_exchange import exchange, exchange_alike, send_and_read
from recsys_llm.stores import RedisOnlineStore, RedisOnlineStoreConfig
from tests.retrieval.feast_repository import EVERYTHING, PLAIN, Repository
from tests.retrieval.online_rows import NOW, fill_online
from tests.services import redis_cluster, redis_server


def hmget(key, *fields):
    parts = [b"HMGET", key, *fields]
    return b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)


@pytest.mark.parametrize(
    ("parser", "protocol"), [(_HiredisParser, 2), (_HiredisParser, 3), (_RESP2Parser, 2), (_RESP3Parser, 3)]
)
def test_every_parser_gives_the_same_replies(redis_url, parser, protocol):
    prefix = uuid.uuid4().hex.encode()
    with redis.Redis.from_url(redis_url, protocol=protocol, parser_class=parser, decode_responses=True) as client:
        client.hset(prefix + b"a", mapping={"f": b"\xff" * 100_000, "g": b""})
        client.set(prefix + b"text", "no hash")
        packed = hmget(prefix + b"a", b"f", b"g", b"h") * 50 + hmget(prefix + b"nobody", b"f")
        for _ in range(2):
            assert exchange(client, packed, 51) == [[b"\xff" * 100_000, b"", None]] * 50 + [[None]]
        with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
            exchange(client, hmget(prefix + b"text", b"f") + packed, 52)
        assert exchange(client, packed, 51)[50] == [None]  # the refusal left the connection in step
        assert len(client.connection_pool._available_connections) == 1


@pytest.fixture
def own_redis():
    with redis_server() as server:
        yield server


def repository_on(folder, server, **settings):
    online = {"type": "redis", "connection_string": f"127.0.0.1:{server.port},db=0", **settings}
    repository = Repository(folder, online=online)
    fill_online(repository)
    return repository


def test_a_connection_that_the_server_closed_is_opened_again(tmp_path, own_redis):
    repository = repository_on(tmp_path, own_redis)
    with FeatureClient(store=repository.store, now=lambda: NOW) as client:
        expected = client.lookup("u1", ["i0"], service=EVERYTHING)
        with redis.Redis.from_url(own_redis.url) as other:
            other.client_kill_filter(_type="normal", skipme=True)
        again = client.lookup("u1", ["i0"], service=EVERYTHING)
    assert again.pairwise.tobytes() == expected.pairwise.tobytes()


def test_a_frozen_redis_is_given_up_after_the_clients_timeout(tmp_path, own_redis):
    repository = repository_on(tmp_path, own_redis)
    connection = repository.store.provider.online_store._get_client(repository.store.config.online_store)
    connection.connection_pool.connection_kwargs.update(socket_timeout=0.2, retry=Retry(NoBackoff(), 0))
    connection.connection_pool.reset()
    with FeatureClient(store=repository.store, now=lambda: NOW) as client:
        client.lookup("u1", ["i0"], service=PLAIN)
        own_redis.process.send_signal(signal.SIGSTOP)
        with pytest.raises(StoreError, match="Redis: TimeoutError"):
            client.lookup("u1", ["i0"], service=PLAIN)
        own_redis.process.send_signal(signal.SIGCONT)
        # Late replies to the question that was given up are not taken for answers to the next.
        batch = client.lookup("u1", ["i3", "i2"], service=PLAIN)
    assert batch.item.ids == ("i3", "i2")
    assert batch.scalar("item_stats__n_events").tolist() == [7, 2**40]


@pytest.fixture
def guarded(own_redis):
    """Our own store, whose client has one connection that is up."""
    store = RedisOnlineStore()
    address = f"127.0.0.1:{own_redis.port}"
    client = store._get_client(RedisOnlineStoreConfig(connection_string=address, timeout_ms=400, breaker_failures=3))
    assert exchange(client, PING, 1) == [b"PONG"]
    return store, client


PING = b"*1\r\n$4\r\nPING\r\n"


def test_an_answer_over_a_connection_that_was_up_closes_the_breaker(guarded):
    store, client = guarded
    for number in range(3):
        store._breaker.fail(number)  # as connections that are not up would
    assert store.breaker_state == "open"
    assert exchange(client, PING, 1) == [b"PONG"]
    assert (store.breaker_state, store._breaker.failed) == ("closed", 0)
    assert exchange(client, PING, 1) == [b"PONG"]


def test_a_refused_command_is_an_answer_too(guarded):
    store, client = guarded
    store._breaker.fail("another")
    with pytest.raises(redis.ResponseError):
        exchange(client, b"*1\r\n$4\r\nHGET\r\n", 1)
    assert store._breaker.failed == 0


def test_a_connection_that_is_lost_while_reading_counts_once(guarded, own_redis):
    store, client = guarded
    connection = client.connection_pool.get_connection()
    own_redis.process.send_signal(signal.SIGSTOP)
    with pytest.raises(redis.TimeoutError):
        send_and_read(connection, PING, 1)
    assert store._breaker.failed == 1
    with pytest.raises(redis.TimeoutError):
        send_and_read(connection, PING, 1)  # the same request's retry
    assert store._breaker.failed == 1
    own_redis.process.send_signal(signal.SIGCONT)


def test_what_is_done_meanwhile_is_no_failure_of_the_server(guarded):
    store, client = guarded
    with pytest.raises(KeyboardInterrupt):
        exchange_alike(client, PING, (0, 1), 0, meanwhile=_interrupted)
    assert store._breaker.failed == 0


def _interrupted():
    raise KeyboardInterrupt


def test_threads_have_connections_of_their_own(tmp_path, own_redis):
    repository = repository_on(tmp_path, own_redis)
    with FeatureClient(store=repository.store, now=lambda: NOW) as client:
        wrong = []

        def ask(item, expected):
            for _ in range(30):
                found = client.lookup("u1", [item], service=PLAIN).scalar("item_stats__n_events").tolist()
                if found != [expected]:
                    wrong.append((item, found))

        threads = [threading.Thread(target=ask, args=pair) for pair in (("i0", 0), ("i2", 2**40), ("i3", 7))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_a_cluster(tmp_path):
    with redis_cluster() as server:
        repository = Repository(
            tmp_path,
            online={"type": "redis", "redis_type": "redis_cluster", "connection_string": f"127.0.0.1:{server.port}"},
        )
        fill_online(repository)
        with FeatureClient(store=repository.store, now=lambda: NOW) as client:
            batch = client.lookup("u1", ["i3", "unknown", "i0"], service=EVERYTHING)
        assert batch.scalar("item_stats__n_events")[[0, 2]].tolist() == [7, 0]
        assert batch.to_pylist("user_next_items_v1__item_ids")[0] == ["i3", "i1", "elsewhere"]


def test_a_command_is_what_redis_py_would_send(tmp_path, redis_url):
    from recsys_llm.retrieval.feast_layout import redis_layout
    from recsys_llm.retrieval.service import resolve
    from tests.retrieval.feast_repository import online_config

    repository = Repository(tmp_path, online=online_config("redis", tmp_path, redis_url))
    views = resolve(repository.store, EVERYTHING).of(schema.ITEM)
    commands = Commands([redis_layout(repository.store.config, view) for view in views])
    encoder = redis.connection.PythonRespSerializer(6000, redis.connection.Encoder("utf-8", "strict", False).encode)
    for id_ in ("", "42", "ключ", "a\x00b", "x" * 300):
        packed = encoder.pack("HMGET", commands.key.key(id_), *commands.fields)
        assert commands.pack([id_, id_]) == b"".join(packed) * 2
