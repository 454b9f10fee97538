"""Several processes at a ledger that is new, and two that note the same interval: none of them fails."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable

import pytest
import sqlalchemy as sa

from recsys_llm.producers import Ledger
from recsys_llm.producers.ledger_tables import METADATA
from tests.faults.databases import own_database
from tests.faults.processes import join, spawn

pytestmark = pytest.mark.faults

ROUNDS = 10


@pytest.fixture(params=["sqlite", "postgres"])
def fresh_url(request, tmp_path):
    """Return the URL of a ledger that is empty each time: a new file, or a database without tables."""
    if request.param == "sqlite":
        yield lambda number: f"sqlite:///{tmp_path}/{number}/ledger.db"
        return
    with own_database(request.getfixturevalue("postgres_url")) as url:

        def emptied(number: int) -> str:
            engine = sa.create_engine(url, poolclass=sa.NullPool)
            METADATA.drop_all(engine)
            return url

        yield emptied


def at_once(processes: int, work: Callable[[int], None]) -> list[int]:
    """Run ``work`` in forks that begin together, and return how they ended."""
    barrier = multiprocessing.get_context("fork").Barrier(processes)

    def begin(number: int) -> None:
        barrier.wait(timeout=60)
        work(number)

    children = [spawn(lambda number=number: begin(number)) for number in range(processes)]
    return [join(child)[0] for child in children]


def test_four_processes_open_a_new_ledger(fresh_url, tmp_path):
    for number in range(ROUNDS):
        url = fresh_url(number)

        def open_it(process: int, url: str = url) -> None:
            ledger = Ledger(url, lock_directory=tmp_path / "locks").open()
            ledger.mark_published(f"view{process}", "store")
            ledger.close()

        assert at_once(4, open_it) == [0] * 4, number
        ledger = Ledger(url, lock_directory=tmp_path / "locks")
        assert [ledger.is_published(f"view{process}", "store") for process in range(4)] == [True] * 4
        ledger.close()


def test_two_processes_note_the_same_interval(fresh_url, tmp_path):
    url = fresh_url(0)
    Ledger(url, lock_directory=tmp_path / "locks").open().close()

    def note(process: int) -> None:
        ledger = Ledger(url, lock_directory=tmp_path / "locks")
        for number in range(60):
            ledger.note_interval("v", "r", number, number + 1, 100 + process)
        ledger.close()

    assert at_once(2, note) == [0, 0]
    ledger = Ledger(url, lock_directory=tmp_path / "locks")
    assert ledger.intervals("v", "r", 100) == {(number, number + 1) for number in range(60)}
    ledger.close()


def test_two_processes_publish_to_the_same_store(fresh_url, tmp_path):
    url = fresh_url(0)
    Ledger(url, lock_directory=tmp_path / "locks").open().close()

    def publish(process: int) -> None:
        ledger = Ledger(url, lock_directory=tmp_path / "locks")
        for number in range(60):
            ledger.mark_published("v", f"store{number}")
        ledger.close()

    assert at_once(2, publish) == [0, 0]
