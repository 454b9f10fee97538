"""The tables of the ledger, and how they come to be when several processes need them at once."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from recsys_llm.producers.locks import advisory_key, file_lock

METADATA = sa.MetaData()
VALUES = sa.Table(
    "recsys_llm_values",
    METADATA,
    sa.Column("view", sa.String(63), primary_key=True),
    sa.Column("entity_key", sa.Text, primary_key=True),
    sa.Column("event_micros", sa.BigInteger, primary_key=True),
    sa.Column("content_hash", sa.LargeBinary(16), nullable=False),
    sqlite_with_rowid=False,
)
PARTS = sa.Table(
    "recsys_llm_parts",
    METADATA,
    sa.Column("view", sa.String(63), primary_key=True),
    sa.Column("part", sa.String(255), primary_key=True),
    sa.Column("rows", sa.BigInteger, nullable=False),
)
VIEWS = sa.Table(
    "recsys_llm_views",
    METADATA,
    sa.Column("view", sa.String(63), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
)
STORES = sa.Table(
    "recsys_llm_stores",
    METADATA,
    sa.Column("view", sa.String(63), primary_key=True),
    sa.Column("store", sa.String(64), primary_key=True),
)
INTERVALS = sa.Table(
    "recsys_llm_intervals",
    METADATA,
    sa.Column("view", sa.String(63), primary_key=True),
    sa.Column("registry", sa.String(64), primary_key=True),
    sa.Column("start_micros", sa.BigInteger, primary_key=True),
    sa.Column("end_micros", sa.BigInteger, primary_key=True),
    sa.Column("ended_micros", sa.BigInteger, nullable=False),
)
RETIRED = -1
"""Number of rows of a part whose rows others hold."""

_LOCK = "ledger_tables"
_WAIT_SECONDS = 60.0


def create_tables(engine: sa.Engine, lock_directory: Path) -> None:
    """Create the tables that are missing, one process at a time: "create if it isn't there" races on any database.

    Raises
    ------
    LedgerError
        Another process has been creating them for a minute.
    """
    if set(METADATA.tables) <= set(sa.inspect(engine).get_table_names()):
        return
    if engine.dialect.name == "postgresql":
        with engine.begin() as connection:
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(advisory_key(_LOCK))))
            METADATA.create_all(connection)
    else:
        with file_lock(lock_directory, _LOCK, _WAIT_SECONDS):
            METADATA.create_all(engine)
