"""A Postgres whose processes are frozen (stopped, or swapped out) keeps its connections open and says nothing.

Its machine still acknowledges every packet, so no limit of TCP notices, and a limit on the length of statements would
end those that are only slow. Here a server that has been silent for a while is asked for another connection: one that
is busy grants or refuses it, one that is frozen does neither.
"""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any

import psycopg
import sqlalchemy as sa

SILENT_SECONDS = 20.0


class WatchedConnection(psycopg.Connection[Any]):
    """A connection that is closed, with an OperationalError, when its server is frozen."""

    def wait(self, gen: Any, *arguments: Any, **options: Any) -> Any:
        """Wait for the server, as psycopg does for each of its answers."""
        return super().wait(self._watched(gen), *arguments, **options)

    def _watched(self, waiting: Any) -> Generator[Any, Any, Any]:
        """Pass on what psycopg's generator and its loop say to each other; a false answer means 'nothing yet'."""
        heard = time.monotonic()
        try:
            wanted = next(waiting)
            while True:
                ready = yield wanted
                if ready:
                    heard = time.monotonic()
                elif time.monotonic() - heard > SILENT_SECONDS:
                    self._ask()
                    heard = time.monotonic()
                wanted = waiting.send(ready)
        except StopIteration as end:
            return end.value

    def _ask(self) -> None:
        try:
            psycopg.connect(self.info.dsn, password=self.info.password).close()
        except psycopg.errors.ConnectionTimeout:
            self.pgconn.finish()
            raise psycopg.OperationalError(
                "the server has gone silent, and answers no other connection either: it is frozen"
            ) from None
        except psycopg.Error:
            pass  # it said something


def watch(engine: sa.Engine) -> None:
    """Let an engine over psycopg open connections that are watched."""

    @sa.event.listens_for(engine, "do_connect")
    def connect(_dialect: Any, _record: Any, arguments: Any, options: Any) -> WatchedConnection:
        return WatchedConnection.connect(*arguments, **options)
