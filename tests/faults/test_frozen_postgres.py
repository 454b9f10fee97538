"""A Postgres that is stopped in its tracks, or slow: the ledger gives up the one in time, and waits for the other."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import psutil
import psycopg
import pytest
import sqlalchemy as sa

from recsys_llm.databases import open_engine
from recsys_llm.errors import DataError, LedgerError
from recsys_llm.producers import Ledger, silence
from recsys_llm.schema import ITEM_ID
from recsys_llm.sources import SqlSource
from tests.fakes import FakeProducer, day_stamp
from tests.services import Server, ServiceMissingError, postgres_server

pytestmark = pytest.mark.faults

ROWS = next(FakeProducer([("secret", 0, "text")]).inputs(day_stamp(-1), day_stamp(10))).rows
SECONDS = 8.0
"""Of silence, the question and slack, in which each call has to end."""


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    try:
        with postgres_server() as server:
            yield server
    except ServiceMissingError as missing:
        pytest.skip(str(missing))


@pytest.fixture
def url(server, monkeypatch) -> str:
    monkeypatch.setattr(silence, "SILENT_SECONDS", 0.5)
    return f"{server.url}?connect_timeout=2"  # the least that libpq takes


@pytest.fixture
def ledger(url, tmp_path) -> Iterator[Ledger]:
    ledger = Ledger(url, lock_directory=tmp_path).open()
    yield ledger
    ledger.close()


@contextmanager
def frozen(server: Server) -> Iterator[None]:
    """Stop the server and all its sessions."""
    postmaster = psutil.Process(server.process.pid)
    postmaster.suspend()  # first, so that it starts no other
    processes = [postmaster, *postmaster.children(recursive=True)]
    try:
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # a session that had ended
                process.suspend()
        started = time.monotonic()
        yield
        assert time.monotonic() - started < SECONDS
    finally:
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def test_a_query_of_a_frozen_ledger_ends_and_the_next_one_after_it_thawed_succeeds(server, ledger):
    assert ledger.unknown("v", ITEM_ID, ROWS).num_rows == 1
    with frozen(server), pytest.raises(LedgerError, match="the server has gone silent.*check that it is up"):
        ledger.unknown("v", ITEM_ID, ROWS)
    assert ledger.unknown("v", ITEM_ID, ROWS).num_rows == 1


def test_a_lock_of_a_frozen_ledger_is_lost(server, ledger):
    with pytest.raises(LedgerError, match="and the lock with it .the server has gone silent"):
        with ledger.lock("v"), frozen(server):
            ledger.check_lock("v")
    with ledger.lock("v", wait=60):
        ledger.record("v", "f", ITEM_ID, "part-1", ROWS)


def test_a_frozen_server_is_not_connected_to(server, url, tmp_path):
    ledger = Ledger(url, lock_directory=tmp_path)
    source = SqlSource(url, "select now() as t", timestamp="t", name="events")
    with frozen(server):
        with pytest.raises(LedgerError, match="connection timeout expired"):
            ledger.open()
        with pytest.raises(DataError, match="connection timeout expired"):
            source.schema()


def test_a_slow_statement_is_waited_for(ledger):
    with ledger._engine.connect() as connection:
        assert connection.execute(sa.text("select 1 from pg_sleep(2)")).all() == [(1,)]


def test_a_server_that_refuses_another_connection_is_not_frozen(ledger, monkeypatch):
    def refused(*_, **__):
        raise psycopg.OperationalError("sorry, too many clients already")

    with ledger._engine.connect() as connection:
        monkeypatch.setattr(psycopg, "connect", refused)
        assert connection.execute(sa.text("select 1 from pg_sleep(2)")).all() == [(1,)]


def test_limits_are_there_and_a_url_overrides_them(server):
    def parameters(query: str) -> dict[str, str]:
        engine = open_engine(sa.make_url(f"{server.url}{query}"), poolclass=sa.NullPool)
        with engine.connect() as connection:
            driver = connection.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            return driver.info.get_parameters()

    ours = parameters("")
    assert (ours["connect_timeout"], ours["tcp_user_timeout"], ours["keepalives_idle"]) == ("10", "60000", "30")
    theirs = parameters("?connect_timeout=3&tcp_user_timeout=5000")
    assert (theirs["connect_timeout"], theirs["tcp_user_timeout"]) == ("3", "5000")
