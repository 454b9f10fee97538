"""A circuit breaker that needs no waiting time: when open, it lets through one request at a time.

A dead server then holds up one thread of a process and not all of them, and the first request after its recovery
succeeds: whoever comes when nobody else is trying is the one who tries.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from redis.exceptions import ConnectionError as RedisConnectionError

BREAKER_FAILURES = 5
"""In a row, where settings don't say."""


class BreakerOpenError(RedisConnectionError):
    """The server has failed several times in a row, and another request is finding out whether it is back."""


class CircuitBreaker:
    """Counts failed requests in a row.

    Parameters
    ----------
    failures
        So many in a row open it; one success closes it.
    probe_seconds
        A request that was let through while open, and of which nothing was heard since, no longer keeps others out.
    clock
        Monotonic, in seconds.

    Examples
    --------
    >>> breaker = CircuitBreaker(failures=1, probe_seconds=1.0)
    >>> breaker.fail("request 1")
    >>> breaker.admit("request 2"), breaker.state
    (True, 'open')
    >>> breaker.admit("request 3")
    Traceback (most recent call last):
    recsys_llm.stores.breaker.BreakerOpenError: 1 requests in a row failed; another one is trying the server now
    >>> breaker.succeed()
    >>> breaker.admit("request 3"), breaker.state
    (False, 'closed')
    """

    def __init__(self, failures: int, probe_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._threshold = failures
        self._probe_seconds = probe_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._probe: tuple[object, float] | None = None
        self.failed = 0
        """Requests that failed since the last one that succeeded."""

    @property
    def state(self) -> str:
        """``closed`` (all is well) or ``open``."""
        return "open" if self.failed >= self._threshold else "closed"

    def admit(self, request: object) -> bool:
        """Let a request through, and return whether it is the one that tries an open breaker.

        Raises
        ------
        BreakerOpenError
            Another request is trying.
        """
        if self.failed < self._threshold:
            return False
        with self._lock:
            now = self._clock()
            if self._probe is not None and self._probe[0] is not request and now < self._probe[1]:
                raise BreakerOpenError(f"{self.failed} requests in a row failed; another one is trying the server now")
            self._probe = (request, now + self._probe_seconds)
        return True

    def fail(self, request: object) -> None:
        """Note that a request failed."""
        with self._lock:
            self.failed += 1
            if self._probe is not None and self._probe[0] is request:
                self._probe = None

    def succeed(self) -> None:
        """Note that the server answered."""
        with self._lock:
            self.failed = 0
            self._probe = None
