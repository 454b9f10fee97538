"""The circuit breaker, with a clock of our own."""

from __future__ import annotations

import pytest

from recsys_llm.stores.breaker import BreakerOpenError, CircuitBreaker


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return CircuitBreaker(failures=3, probe_seconds=0.2, clock=clock)


def open_it(breaker):
    for number in range(3):
        assert breaker.admit(number) is False
        breaker.fail(number)


def test_it_opens_after_failures_in_a_row_only(breaker):
    for number in range(10):
        breaker.fail(number)
        breaker.fail(number)
        assert breaker.state == "closed"
        breaker.succeed()
    open_it(breaker)
    assert breaker.state == "open"


def test_when_open_one_request_at_a_time_tries(breaker):
    open_it(breaker)
    assert breaker.admit("first") is True
    assert breaker.admit("first") is True  # a pool asks twice for a connection that was stale
    with pytest.raises(BreakerOpenError, match="3 requests in a row failed"):
        breaker.admit("second")
    breaker.fail("first")
    assert breaker.admit("second") is True
    breaker.succeed()
    assert [breaker.admit("third"), breaker.admit("fourth"), breaker.state] == [False, False, "closed"]


def test_a_request_that_vanished_does_not_keep_others_out(breaker, clock):
    open_it(breaker)
    breaker.admit("vanished")
    clock.now = 0.19
    with pytest.raises(BreakerOpenError):
        breaker.admit("next")
    clock.now = 0.2
    assert breaker.admit("next") is True


def test_a_failure_of_an_older_request_leaves_the_trying_one_alone(breaker):
    open_it(breaker)
    breaker.admit("trying")
    breaker.fail("older")
    with pytest.raises(BreakerOpenError):
        breaker.admit("next")
