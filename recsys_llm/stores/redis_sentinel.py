"""Sentinels, and the master that they name: both are asked within one request's time."""

from __future__ import annotations

from typing import Any

from redis.connection import Connection, SSLConnection
from redis.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection

from recsys_llm.stores.redis_connection import Deadline, DeadlineSocket, limit_by_span, spanning


class AskedOfSentinels(SentinelManagedConnection):
    """A connection to a master: sentinels are asked for it within the request's time."""

    _deadline: Deadline

    def _connect_retry(self) -> None:
        with spanning(self._deadline):
            super()._connect_retry()  # type: ignore[no-untyped-call]


class AskedOfSentinelsOverTLS(AskedOfSentinels, SentinelManagedSSLConnection):
    """The same, over TLS."""


class SpannedConnection:
    """Mixin before a connection class of redis-py, for sentinels: they have as long as the request that asks them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._deadline = Deadline()
        super().__init__(*args, **kwargs)

    def connect(self) -> None:
        """Begin a question: the pool calls this each time that it hands out a connection."""
        self._deadline.begin(None)
        limit_by_span(self._deadline)
        super().connect()  # type: ignore[misc]  # of the class that this is mixed into

    def _connect(self) -> DeadlineSocket:
        return DeadlineSocket(super()._connect(), self._deadline)  # type: ignore[misc]


def spanned(*, tls: bool) -> type[Connection]:
    """Return a connection class of redis-py that is a :class:`SpannedConnection`."""
    base = SSLConnection if tls else Connection
    return type(f"Spanned{base.__name__}", (SpannedConnection, base), {})
