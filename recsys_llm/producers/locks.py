"""Locks that make one run at a time out of several: on a file, or in Postgres for several machines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path

import sqlalchemy as sa
from filelock import FileLock, Timeout

from recsys_llm.errors import LedgerError

_POLL_SECONDS = 0.1


@contextmanager
def file_lock(directory: Path, name: str, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock file; the operating system frees it when the process dies.

    Raises
    ------
    LedgerError
        Another process holds it after ``wait`` seconds.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{name}.lock"
    try:
        with FileLock(file, timeout=wait, poll_interval=_POLL_SECONDS):
            yield
    except Timeout:
        raise _busy(name, f"lock {file}") from None


class AdvisoryLock:
    """A lock of Postgres, held by one session: it is free when that ends, by whomever.

    Parameters
    ----------
    connection
        Its session holds the lock. SQLAlchemy opens a new one when it was lost, without a word and without the lock;
        that is why the session is remembered.
    name
        Of what is locked.
    """

    def __init__(self, connection: sa.Connection, name: str) -> None:
        self.connection = connection
        self.name = name
        self._session: int | None = None

    @contextmanager
    def held(self, wait: float) -> Iterator[None]:
        """Hold the lock within the block.

        Raises
        ------
        LedgerError
            Another session holds it after ``wait`` seconds.
        """
        key = advisory_key(self.name)
        deadline = time.monotonic() + wait
        query = sa.select(sa.func.pg_try_advisory_lock(key), sa.func.pg_backend_pid())
        while not (answer := self.connection.execute(query).one())[0]:
            self.connection.rollback()
            if time.monotonic() >= deadline:
                raise _busy(self.name, f"advisory lock {key} of the ledger")
            time.sleep(_POLL_SECONDS)
        self.connection.commit()  # the lock belongs to the session, not to the transaction
        self._session = answer[1]
        try:
            yield
        finally:
            self._session = None
            if not self.connection.invalidated:  # a connection that is lost holds no lock
                with suppress(sa.exc.DBAPIError):
                    self.connection.rollback()
                    self.connection.execute(sa.select(sa.func.pg_advisory_unlock(key)))
                    self.connection.commit()

    def is_held(self) -> bool:
        """Return whether the session that took the lock still answers."""
        if self._session is None or self.connection.invalidated:  # the next query would open a new session
            return False
        with self.connection.begin():
            return bool(self.connection.scalar(sa.select(sa.func.pg_backend_pid())) == self._session)


def advisory_key(name: str) -> int:
    """Return the number by which Postgres knows a lock."""
    return int.from_bytes(blake2b(f"recsys_llm:{name}".encode(), digest_size=8).digest(), "big", signed=True)


def _busy(name: str, lock: str) -> LedgerError:
    return LedgerError(f"{name} is held by another run ({lock}); wait until it has ended")
