"""Sentinels that are frozen: a new connection finds the master by those that answer, or fails in time."""

from __future__ import annotations

import contextlib
import signal
import time

import pytest
import redis

from recsys_llm.stores import RedisOnlineStore, RedisOnlineStoreConfig
from tests.services import redis_binary, redis_server

pytestmark = pytest.mark.faults

TIMEOUT_MS = 400
"""Four times the default: what has to succeed must not fail because this machine is busy."""
LIMIT_SECONDS = 3 * TIMEOUT_MS / 1_000
"""By default 0.3 s."""


@pytest.fixture
def sentinels(tmp_path):
    """Three sentinels of one master."""
    with redis_server() as master, contextlib.ExitStack() as stack:
        found = []
        for number in range(3):
            settings = tmp_path / f"sentinel{number}.conf"
            settings.write_text(f"sentinel monitor shop 127.0.0.1 {master.port} 2\n")
            command = [str(redis_binary()), str(settings), "--sentinel"]
            found.append(stack.enter_context(redis_server(command=command)))
        yield found


def new_client(sentinels):
    """Return a client without a connection."""
    names = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
    settings = {"redis_type": "redis_sentinel", "sentinel_master": "shop", "connection_string": names}
    return RedisOnlineStore()._get_client(RedisOnlineStoreConfig(timeout_ms=TIMEOUT_MS, **settings))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_the_master_is_found_by_those_that_answer(sentinels, frozen):
    for sentinel in sentinels[:frozen]:
        sentinel.process.send_signal(signal.SIGSTOP)
    start = time.monotonic()
    assert new_client(sentinels).ping()
    assert time.monotonic() - start < LIMIT_SECONDS


def test_when_all_are_frozen_a_connection_fails_in_time(sentinels):
    client = new_client(sentinels)
    for sentinel in sentinels:
        sentinel.process.send_signal(signal.SIGSTOP)
    for _ in range(3):
        start = time.monotonic()
        with pytest.raises((redis.ConnectionError, redis.TimeoutError)):
            client.ping()
        assert time.monotonic() - start < LIMIT_SECONDS
    for sentinel in sentinels:
        sentinel.process.send_signal(signal.SIGCONT)
    assert client.ping()


def test_sentinels_are_not_asked_past_the_end_of_a_request(sentinels):
    client = new_client(sentinels)
    connection = client.connection_pool.make_connection()
    connection._deadline.begin(-1)
    with pytest.raises(redis.ConnectionError, match="No master found"):
        connection._connect_retry()
    assert client.ping()
