"""Commands packed by hand over redis-py's own connections, and their replies.

redis-py's pipeline spends more time on each command than the server does. Here one buffer is sent, and hiredis
parses replies as they come, or they are read in place where all are alike (:mod:`recsys_llm.retrieval.reply_table`);
TLS, authentication, timeouts, retry and reconnection are redis-py's. What is private to redis-py is here only; without
hiredis, its Python parser gives the same replies.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Any

import redis
from redis._parsers.hiredis import NOT_ENOUGH_DATA, _HiredisParser
from redis.exceptions import RedisError, ResponseError

from recsys_llm.retrieval.reply_table import ReplyTable, read_table

FEED_BYTES = 4096
"""hiredis moves what it was fed and has not parsed: it is several times faster with a little at a time."""
ALIKE = 16
"""Fewer replies are parsed faster than compared."""

Replies = tuple[ReplyTable | list[Any], list[Any]]
"""Those to the first commands, and those to the others."""


def exchange(client: redis.Redis, packed: bytes, count: int) -> list[Any]:
    """Send packed commands over a connection of the client's pool, and return their replies.

    Parameters
    ----------
    packed
        Commands in RESP.
    count
        How many there are.

    Returns
    -------
    list
        Replies, not decoded.

    Raises
    ------
    redis.RedisError
        The server can't be reached within the client's retries, or refuses a command; the connection stays in step.
    """
    return exchange_alike(client, packed, (0, count), 0)[1]


def exchange_alike(
    client: redis.Redis,
    packed: bytes,
    counts: tuple[int, int],
    fields: int,
    meanwhile: Callable[[], None] | None = None,
) -> Replies:
    """Do what :func:`exchange` does where the first commands are HMGETs of equal fields.

    Parameters
    ----------
    counts
        How many of these there are, and how many other commands after them.
    fields
        Of each of the first commands.
    meanwhile
        Done between the commands and their replies, again if they are sent again; it raises nothing.

    Raises
    ------
    redis.RedisError
        As :func:`exchange`.
    """
    pool = client.connection_pool
    connection: Any = pool.get_connection()
    try:
        found: Replies = connection.retry.call_with_retry(
            lambda: _send_and_read(connection, packed, counts, fields, meanwhile), lambda _: connection.disconnect()
        )
    finally:
        pool.release(connection)
    for replies in found:
        if not isinstance(replies, ReplyTable):
            refused = next((reply for reply in replies if isinstance(reply, RedisError)), None)
            if refused is not None:
                raise refused
    return found


def send_and_read(connection: Any, packed: bytes, count: int) -> list[Any]:
    """Send packed commands over one connection, and read as many replies; an error of the server is a reply."""
    return _send_and_read(connection, packed, (0, count), 0)[1]


def _send_and_read(
    connection: Any,
    packed: bytes,
    counts: tuple[int, int],
    fields: int,
    meanwhile: Callable[[], None] | None = None,
) -> Replies:
    connection.send_packed_command([packed])
    alike, others = counts
    try:
        if meanwhile is not None:
            meanwhile()
        if isinstance(connection._parser, _HiredisParser):
            found = _read_hiredis(connection._parser, alike, others, fields)
            if (heard := getattr(connection, "heard", None)) is not None:
                heard()
            return found
        replies = [_read_one(connection) for _ in range(alike + others)]
        return replies[:alike], replies[alike:]
    except BaseException as error:
        connection.disconnect()  # replies that nobody reads would be taken for those of the next commands
        if (heard := getattr(connection, "heard", None)) is not None:  # our own store's connections count failures
            heard(error)
        if isinstance(error, TimeoutError):  # the parser's own errors are those of the socket
            raise redis.TimeoutError("Timeout reading from socket") from error
        if isinstance(error, OSError):
            raise redis.ConnectionError(f"Error while reading from socket: {error}") from error
        raise


def may_read(connection: Any) -> bool:
    """Return whether something may have come: False is sure, and cheaper than redis-py's ``can_read``."""
    parser = connection._parser
    sock = getattr(connection._sock, "wrapped", connection._sock)  # our own store's waits have a deadline
    plain = isinstance(parser, _HiredisParser) and type(sock) is socket.socket and hasattr(select, "poll")
    if not plain or parser._next_response is not NOT_ENOUGH_DATA or parser._reader.has_data():
        return True
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


def parses_pushes() -> bool:
    """Return whether redis-py's default parser tells pushed messages from replies: hiredis does since 3.2."""
    try:
        import hiredis
    except ImportError:
        return True  # redis-py's own
    return hasattr(hiredis, "PushNotification")


def _read_hiredis(parser: Any, alike: int, others: int, fields: int) -> Replies:
    table, come = None, memoryview(b"")
    if alike >= ALIKE and not parser._reader.has_data():
        table, come = read_table(lambda buffer: _received(parser, buffer), alike, fields)
    if table is not None:
        return table, _parsed(parser, others, come)
    replies = _parsed(parser, alike + others, come)
    return replies[:alike], replies[alike:]


def _parsed(parser: Any, count: int, come: memoryview[int]) -> list[Any]:
    """Return as many replies; ``come`` is what the socket gave already."""
    gets, feed = parser._reader.gets, parser._reader.feed
    push = getattr(parser, "_hiredis_PushNotificationType", None)
    replies: list[Any] = []
    buffer, fed = memoryview(parser._buffer), 0
    while len(replies) < count:
        reply = gets(False)
        if reply is NOT_ENOUGH_DATA:
            if fed == len(come):
                come, fed = buffer[: _received(parser, buffer)], 0
            some = come[fed : fed + FEED_BYTES]
            feed(some)
            fed += len(some)
            continue
        if reply.__class__ is push:
            parser.handle_push_response(reply)
            continue
        if isinstance(reply, redis.ConnectionError):  # the server is going away, or wants a password
            raise reply
        replies.append(reply)
    if fed < len(come):  # pushed messages, for whoever reads next
        feed(come[fed:])
    return replies


def _received(parser: Any, buffer: memoryview[int]) -> int:
    """Fill a buffer with what comes next, and return how much that was."""
    count: int = parser._sock.recv_into(buffer)
    if not count:
        raise redis.ConnectionError("Connection closed by server.")
    return count


def _read_one(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error
