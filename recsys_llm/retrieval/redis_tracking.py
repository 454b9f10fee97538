"""Rows read over a connection that the Redis server tells of writes: RESP3 and CLIENT TRACKING.

The server remembers which keys this connection has read. When one is written, expires or is evicted, it pushes an
invalidation over the same connection, after the replies that it had sent before: a reply that was overtaken by a write
is followed by its invalidation. https://redis.io/docs/latest/develop/reference/client-side-caching/

A lost connection loses its invalidations: all that was read over it counts as written.
"""

from __future__ import annotations

import os
from typing import Any

import redis
from redis._parsers import _RESP3Parser
from redis.exceptions import RedisError

from recsys_llm.retrieval.item_cache import Changes
from recsys_llm.retrieval.online import Request, StoredRows
from recsys_llm.retrieval.online_redis import RedisReader, store_error
from recsys_llm.retrieval.redis_exchange import may_read, parses_pushes, send_and_read

RESP3 = 3


class TrackedSource:
    """Reads of one entity's rows, and what was written of them since.

    Parameters
    ----------
    reader
        Of the same store: its commands, and its client's way to connect.
    """

    def __init__(self, reader: RedisReader) -> None:
        self._reader = reader
        self._connection: Any = None
        self._process = os.getpid()
        self._written: set[bytes] = set()
        self._lost = False

    def changes(self, request: Request) -> Changes:
        """Return which entities were written; all that was read is lost where the connection was."""
        try:
            connection = self._connected()
            while may_read(connection) and connection.can_read(0):
                connection.read_response(push_request=True)
        except RedisError:
            self._disconnect()
        written, lost = self._written, self._lost
        self._written, self._lost = set(), False
        key = self._reader.commands(request.views).key
        return Changes(frozenset(id_ for name in written if (id_ := key.id_of(name)) is not None), lost)

    def pending(self) -> bool:
        """Return whether there may be something to hear, or no connection to hear it over."""
        if self._lost or self._written or self._process != os.getpid():
            return True
        return self._connection is None or may_read(self._connection)

    def read(self, request: Request) -> list[StoredRows]:
        """Read rows over the connection that is told of writes."""
        asked = self._reader.ask([request])
        packed, count = asked.packed, sum(asked.counts)
        try:
            connection = self._connected()
            replies = connection.retry.call_with_retry(
                lambda: send_and_read(connection, packed, count), lambda _: self._disconnect()
            )
            refused = next((reply for reply in replies if isinstance(reply, RedisError)), None)
            if refused is not None:
                raise refused
        except RedisError as error:
            raise store_error(error) from error
        rows = self._reader.rows(request, replies[: len(request.ids)])
        if asked.marked:
            self._reader.check_marks(asked, replies[-1], [(request, rows)])
        return rows

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None and self._process == os.getpid():
            self._connection.disconnect()
        self._connection = None

    def _connected(self) -> Any:
        """Return the connection; made anew in a forked process, whose parent goes on using the old one."""
        if self._connection is None or self._process != os.getpid():
            self._process, self._lost = os.getpid(), True
            self._connection = self._made()
        self._connection.connect()  # nothing, where it is up
        return self._connection

    def _made(self) -> Any:
        pool = self._reader.client().connection_pool
        settings = {**pool.connection_kwargs, "protocol": RESP3, "decode_responses": False}
        if not parses_pushes():
            settings["parser_class"] = _RESP3Parser
        connection = pool.connection_class(**settings)
        connection.register_connect_callback(self._on_connect)
        return connection

    def _on_connect(self, connection: Any) -> None:
        self._lost = True  # whatever was written while there was no connection
        connection._parser.set_invalidation_push_handler(self._on_invalidation)
        connection.send_command("CLIENT", "TRACKING", "ON")
        connection.read_response()

    def _on_invalidation(self, message: list[Any]) -> None:
        keys = message[1]
        if keys is None:  # FLUSHALL
            self._lost = True
        else:
            self._written.update(keys)

    def _disconnect(self) -> None:
        self._lost = True
        if self._connection is not None:
            self._connection.disconnect()


def can_track(client: Any) -> bool:
    """Return whether one connection reaches all keys: not in a cluster."""
    return isinstance(client, redis.Redis)
