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


@contextmanager
def advisory_lock(connection: sa.Connection, name: str, wait: float = 0.0) -> Iterator[None]:
    """Hold a lock of Postgres over ``connection``; it is free when that is closed, by whomever.

    Raises
    ------
    LedgerError
        Another connection holds it after ``wait`` seconds.
    """
    key = int.from_bytes(blake2b(f"recsys_llm:{name}".encode(), digest_size=8).digest(), "big", signed=True)
    deadline = time.monotonic() + wait
    while not connection.scalar(sa.select(sa.func.pg_try_advisory_lock(key))):
        connection.rollback()
        if time.monotonic() >= deadline:
            raise _busy(name, f"advisory lock {key} of the ledger")
        time.sleep(_POLL_SECONDS)
    connection.commit()  # the lock belongs to the session, not to the transaction
    try:
        yield
    finally:
        with suppress(sa.exc.DBAPIError):  # a connection that is lost holds no lock
            connection.rollback()
            connection.execute(sa.select(sa.func.pg_advisory_unlock(key)))
            connection.commit()


def _busy(view: str, lock: str) -> LedgerError:
    return LedgerError(f"view {view} is being materialised by another run ({lock}); wait until it has ended")
