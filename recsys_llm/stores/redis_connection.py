"""Connections to Redis that give up in time.

redis-py's timeouts hold for one wait on the socket: a server that sends a byte now and then is waited for without end,
and so is a chain of connect, handshake, request and retry. Here a deadline spans all that happens from taking a
connection out of the pool to giving it back. Whatever asks over the pool is guarded: pipelines, Feast's own code, raw
connections.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ClassVar

from redis.backoff import FullJitterBackoff
from redis.connection import Connection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from recsys_llm.errors import EvictingStoreError
from recsys_llm.stores.breaker import CircuitBreaker

TIMEOUT_MS = 100
"""Of each connect and each wait, where settings don't say."""
BUDGET = 2.5
"""A request with its retry takes at most so many times the timeout of one wait."""
PROBE = 2.0
"""So many timeouts later, a request that tried a lost server no longer keeps others out."""
POLICY_SECONDS = 1.0
"""An open connection asks the server again whether it evicts, before the next request, when that was so long ago."""
PAUSE_SECONDS = 0.02
"""At most, before the retry; drawn at random, so that clients that failed together don't come back together."""

_LOST = (RedisConnectionError, RedisTimeoutError)


class Deadline:
    """When a request has to end, on the monotonic clock; None: no matter when."""

    def __init__(self) -> None:
        self.at: float | None = None

    def begin(self, seconds: float | None) -> None:
        """Give the next request so many seconds."""
        self.at = None if seconds is None else time.monotonic() + seconds

    def shortened(self, timeout: float | None) -> float | None:
        """Return how long a wait of ``timeout`` may last.

        Raises
        ------
        socket.timeout
            The deadline has passed.
        """
        if self.at is None or timeout == 0:
            return timeout
        left = self.at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request's time is used up")
        return left if timeout is None else min(timeout, left)

    def limit(self, other: Deadline) -> None:
        """Let no request go past this one's end, and begin none after it.

        Raises
        ------
        redis.TimeoutError
            It has passed.
        """
        if self.at is not None and self.at <= time.monotonic():
            raise RedisTimeoutError("the request's time is used up")
        if self.at is not None and (other.at is None or self.at < other.at):
            other.at = self.at


_SPAN: ContextVar[Deadline | None] = ContextVar("recsys_llm_redis_span", default=None)
"""That of a request which asks several servers: a cluster's nodes, or sentinels and then their master."""


@contextmanager
def spanning(deadline: Deadline) -> Iterator[None]:
    """End whatever this thread asks over connections of ours within the block at one deadline."""
    limit_by_span(deadline)
    token = _SPAN.set(deadline)
    try:
        yield
    finally:
        _SPAN.reset(token)


def limit_by_span(deadline: Deadline) -> None:
    """Let a deadline be no later than that of the block which this thread is in; see :func:`spanning`."""
    if (span := _SPAN.get()) is not None:
        span.limit(deadline)


class DeadlineSocket:
    """A socket, or a TLS socket, none of whose waits goes past the deadline."""

    def __init__(self, wrapped: socket.socket, deadline: Deadline) -> None:
        self.wrapped = wrapped
        self._deadline = deadline
        self._timeout = wrapped.gettimeout()

    def settimeout(self, timeout: float | None) -> None:
        """Limit each wait to ``timeout`` seconds."""
        self._timeout = timeout

    def recv(self, *args: Any) -> bytes:
        """Receive, as ``socket.recv``."""
        self._limit()
        return self.wrapped.recv(*args)

    def recv_into(self, *args: Any) -> int:
        """Receive, as ``socket.recv_into``."""
        self._limit()
        return self.wrapped.recv_into(*args)

    def sendall(self, *args: Any) -> None:
        """Send, as ``socket.sendall``."""
        self._limit()
        self.wrapped.sendall(*args)

    def _limit(self) -> None:
        self.wrapped.settimeout(self._deadline.shortened(self._timeout))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.wrapped, name)


class GuardedConnection:
    """Mixin before a connection class of redis-py: deadline, circuit breaker, no server that evicts."""

    breaker: ClassVar[CircuitBreaker]
    budget: ClassVar[float | None]
    """Seconds for a request with its retry; None: no limit but that of each wait."""
    probe_budget: ClassVar[float | None]
    """Seconds for a request that tries a server that was lost."""
    allow_eviction: ClassVar[bool]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._deadline = Deadline()
        self._counted = False
        self._asked_at = 0.0
        super().__init__(*args, **kwargs)

    def connect(self) -> None:
        """Begin a request: the pool calls this each time that it hands out a connection."""
        self._counted = False
        is_probe = self.breaker.admit(self)
        self._deadline.begin(self.probe_budget if is_probe else self.budget)
        limit_by_span(self._deadline)
        try:
            self._ask_again()
            super().connect()  # type: ignore[misc]  # of the class that this is mixed into
        except _LOST:
            self._lost()
            raise

    def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        """Send, and count a failure."""
        try:
            super().send_packed_command(*args, **kwargs)  # type: ignore[misc]
        except _LOST:
            self._lost()
            raise

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read one reply, and count a failure; an error that the server sends is an answer."""
        try:
            reply = super().read_response(*args, **kwargs)  # type: ignore[misc]
        except _LOST:
            self._lost()
            raise
        except ResponseError:
            self.breaker.succeed()
            raise
        if self.breaker.failed:
            self.breaker.succeed()
        return reply

    def heard(self, failure: BaseException | None = None) -> None:
        """Count what came of replies that were read past :meth:`read_response`; None: they are all there."""
        if failure is None:
            if self.breaker.failed:
                self.breaker.succeed()
        elif isinstance(failure, (OSError, *_LOST)):
            self._lost()

    def on_connect_check_health(self, check_health: bool = True) -> None:
        """Authenticate as redis-py does, then ask the server whether it would drop rows."""
        super().on_connect_check_health(check_health=check_health)  # type: ignore[misc]
        if self.allow_eviction:
            return
        try:
            self._refuse_eviction()
        except EvictingStoreError:
            self.disconnect()  # type: ignore[attr-defined]  # or the next request would take it for checked
            raise

    def _connect(self) -> DeadlineSocket:
        return DeadlineSocket(super()._connect(), self._deadline)  # type: ignore[misc]

    def _ask_again(self) -> None:
        """Ask over a connection that is open already, now and then: a policy may be changed at any time."""
        connection: Any = self  # of the class that this is mixed into
        if self.allow_eviction or connection._sock is None or time.monotonic() - self._asked_at < POLICY_SECONDS:
            return
        try:
            # A reply that nobody read would be taken for this one; pushed messages are told apart.
            if connection.protocol == 2 and connection.can_read():
                connection.disconnect()
            else:
                self._refuse_eviction()
        except _LOST:
            connection.disconnect()  # and is opened anew, which asks
        except EvictingStoreError:
            connection.disconnect()
            raise

    def _refuse_eviction(self) -> None:
        self._asked_at = time.monotonic()
        self.send_command("INFO", "memory", check_health=False)  # type: ignore[attr-defined]
        try:
            reply = self.read_response()
        except ResponseError as error:
            raise EvictingStoreError(
                f"Redis: can't tell whether it evicts rows ({error}); grant its user +info, or set "
                "`allow_eviction: true` under online_store in feature_store.yaml"
            ) from None
        policy = eviction_policy(reply)
        if policy != "noeviction":
            raise EvictingStoreError(
                f"Redis: expected maxmemory-policy noeviction, found {policy}: when it is full, it drops rows that "
                "were reported as written; set it to noeviction, or set `allow_eviction: true` under online_store in "
                "feature_store.yaml"
            )

    def _lost(self) -> None:
        if not self._counted:  # a request and its retry are one failure
            self._counted = True
            self.breaker.fail(self)


def eviction_policy(reply: bytes | str) -> str:
    r"""Return what a server does when it is full, from its answer to ``INFO memory``.

    Examples
    --------
    >>> eviction_policy(b"used_memory:1\r\nmaxmemory_policy:allkeys-lru\r\n")
    'allkeys-lru'
    """
    text = reply.decode() if isinstance(reply, bytes) else reply
    values = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return values.get("maxmemory_policy", "unknown")


def one_retry() -> Retry:
    """Return the retry of a request that failed."""
    return Retry(FullJitterBackoff(cap=PAUSE_SECONDS, base=PAUSE_SECONDS), 1)


def guarded(
    base: type[Connection], breaker: CircuitBreaker, *, timeout: float | None, limited: bool, allow_eviction: bool
) -> type[Connection]:
    """Return a connection class of redis-py that is a :class:`GuardedConnection` too.

    Parameters
    ----------
    base
        Of redis-py.
    timeout
        Of each wait, in seconds.
    limited
        Whether a request with its retry has to end within :data:`BUDGET` timeouts.
    allow_eviction
        Take a server that drops rows when it is full.
    """
    whole = BUDGET * timeout if limited and timeout is not None else None
    settings = {
        "breaker": breaker,
        "budget": whole,
        "probe_budget": None if whole is None else timeout,
        "allow_eviction": allow_eviction,
    }
    return type(f"Guarded{base.__name__}", (GuardedConnection, base), settings)
