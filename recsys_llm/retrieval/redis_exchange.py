"""Commands packed by hand over redis-py's own connections, and their replies.

redis-py's pipeline spends more time on each command than the server does. Here one buffer is sent, and hiredis
parses replies as they come; TLS, authentication, timeouts, retry and reconnection are redis-py's. What is private to
redis-py is here only; without hiredis, its Python parser gives the same replies.
"""

from __future__ import annotations

from typing import Any

import redis
from redis._parsers.hiredis import NOT_ENOUGH_DATA, _HiredisParser
from redis.exceptions import RedisError, ResponseError


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
    pool = client.connection_pool
    connection: Any = pool.get_connection()
    try:
        replies: list[Any] = connection.retry.call_with_retry(
            lambda: send_and_read(connection, packed, count), lambda _: connection.disconnect()
        )
    finally:
        pool.release(connection)
    refused = next((reply for reply in replies if isinstance(reply, RedisError)), None)
    if refused is not None:
        raise refused
    return replies


def send_and_read(connection: Any, packed: bytes, count: int) -> list[Any]:
    """Send packed commands over one connection, and read as many replies; an error of the server is a reply."""
    connection.send_packed_command([packed])
    try:
        if isinstance(connection._parser, _HiredisParser):
            return _read_hiredis(connection._parser, count)
        return [_read_one(connection) for _ in range(count)]
    except BaseException as error:
        connection.disconnect()  # replies that nobody reads would be taken for those of the next commands
        if isinstance(error, TimeoutError):  # the parser's own errors are those of the socket
            raise redis.TimeoutError("Timeout reading from socket") from error
        if isinstance(error, OSError):
            raise redis.ConnectionError(f"Error while reading from socket: {error}") from error
        raise


def parses_pushes() -> bool:
    """Return whether redis-py's default parser tells pushed messages from replies: hiredis does since 3.2."""
    try:
        import hiredis
    except ImportError:
        return True  # redis-py's own
    return hasattr(hiredis, "PushNotification")


def _read_hiredis(parser: Any, count: int) -> list[Any]:
    gets, read = parser._reader.gets, parser.read_from_socket
    push = getattr(parser, "_hiredis_PushNotificationType", None)
    replies: list[Any] = []
    while len(replies) < count:
        reply = gets(False)
        if reply is NOT_ENOUGH_DATA:
            read()
            continue
        if reply.__class__ is push:
            parser.handle_push_response(reply)
            continue
        if isinstance(reply, redis.ConnectionError):  # the server is going away, or wants a password
            raise reply
        replies.append(reply)
    return replies


def _read_one(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error
