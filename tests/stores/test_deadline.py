"""No request over a guarded connection outlasts its budget, whatever the server does."""

from __future__ import annotations

import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_llm.stores import RedisOnlineStore, RedisOnlineStoreConfig, redis_connection
from recsys_llm.stores.redis_connection import Deadline, DeadlineSocket


class FakeTime:
    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


waits = st.lists(st.tuples(st.one_of(st.none(), st.floats(0.001, 5)), st.floats(0, 1)), max_size=30)


@given(waits=waits, budget=st.floats(0.01, 1))
def test_waits_together_are_never_longer_than_the_budget(waits, budget):
    time = FakeTime()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis_connection, "time", time)
        deadline = Deadline()
        deadline.begin(budget)
        for timeout, share in waits:
            try:
                allowed = deadline.shortened(timeout)
            except TimeoutError:
                assert time.now - 100.0 >= budget - 1e-9
                break
            assert allowed is not None and (timeout is None or allowed <= timeout)
            time.now += allowed * share
        assert time.now - 100.0 <= budget + 1e-9


def test_without_a_budget_each_wait_has_its_own_timeout():
    deadline = Deadline()
    deadline.begin(None)
    assert [deadline.shortened(5.0), deadline.shortened(None), deadline.shortened(0)] == [5.0, None, 0]


def test_looking_whether_there_is_data_never_waits():
    deadline = Deadline()
    deadline.begin(1.0)
    near, far = socket.socketpair()
    with near, far:
        guarded = DeadlineSocket(near, deadline)
        guarded.settimeout(0)
        with pytest.raises(BlockingIOError):
            guarded.recv(1)
        far.send(b"x")
        assert guarded.recv(1) == b"x"


def test_drops_do_not_extend_a_request():
    deadline = Deadline()
    near, far = socket.socketpair()
    with near, far:
        guarded = DeadlineSocket(near, deadline)
        guarded.settimeout(0.05)
        deadline.begin(0.2)
        received = 0
        with pytest.raises(TimeoutError):
            while True:
                far.send(b"x")  # always in time for the wait, never for the request
                received += len(guarded.recv(1))
        assert received > 1


def test_by_default_a_request_with_its_retry_takes_less_than_300_ms():
    client = RedisOnlineStore()._get_client(RedisOnlineStoreConfig())
    connection = client.connection_pool.make_connection()
    assert (connection.socket_timeout, connection.socket_connect_timeout) == (0.1, 0.1)
    assert connection.retry.get_retries() == 1
    assert connection.budget + connection.retry._backoff.compute(1) <= 0.3
