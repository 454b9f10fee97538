"""A Redis that comes back on the port where it was killed."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.services import START_SECONDS, Server, _spawn, _stop


def kill(server: Server) -> None:
    """End a server at once."""
    server.process.kill()
    server.process.wait()


@contextlib.contextmanager
def restarted(server: Server) -> Iterator[Server]:
    """Start a killed Redis again, with the same options, in the same folder."""
    process = _spawn(list(server.process.args), server.folder, signal.SIGTERM)  # type: ignore[arg-type]
    try:
        wait_for(server.url)
        yield Server(server.url, server.port, process, server.folder)
    finally:
        _stop(process, signal.SIGTERM)


def wait_for(url: str) -> None:
    """Wait until a Redis answers."""
    deadline = time.monotonic() + START_SECONDS
    with redis.Redis.from_url(url, socket_timeout=1, retry=Retry(NoBackoff(), 0)) as client:
        while True:
            try:
                client.ping()
                return
            except redis.RedisError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
