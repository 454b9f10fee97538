"""Postgres databases of a test's own, and what can happen to connections to them."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa


@contextmanager
def own_database(postgres_url: str) -> Iterator[str]:
    """Create an empty database, hand out its URL, and drop it."""
    name = f"test_{uuid.uuid4().hex[:8]}"
    admin = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text(f"create database {name}"))
    try:
        yield sa.make_url(postgres_url).set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(sa.text(f"drop database {name} with (force)"))
        admin.dispose()


def end_lock_sessions(url: str) -> int:
    """End the sessions that hold advisory locks in a database, wait until they are gone, and return their number."""
    return _end(url, "select pid from pg_locks where locktype = 'advisory' and database = oid")


def end_sessions(url: str) -> int:
    """End all sessions in a database, wait until they are gone, and return their number."""
    return _end(url, "select pid from pg_stat_activity where datid = oid and pid <> pg_backend_pid()")


def _end(url: str, pids: str) -> int:
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    sessions = f"pg_database, lateral ({pids}) sessions where datname = current_database()"
    query = f"select pg_terminate_backend(sessions.pid, 10000) from {sessions}"
    with admin.connect() as connection:
        ended = list(connection.scalars(sa.text(query)))
    assert all(ended)
    return len(ended)
