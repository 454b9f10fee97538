"""A run whose lock in Postgres is lost while another one computes the same view: no row is stored twice."""

from __future__ import annotations

import traceback

import pytest

from recsys_llm.errors import LedgerError
from recsys_llm.producers import Parts
from recsys_llm.schema import ITEM_ID
from tests.fakes import FakeProducer, day_stamp
from tests.faults.databases import end_lock_sessions, end_sessions, own_database
from tests.producers.test_pipeline import ROWS, VIEW, World

pytestmark = pytest.mark.faults

LOST = "the connection to the ledger was lost, and the lock with it .*run the command again"


@pytest.fixture
def url(postgres_url):
    with own_database(postgres_url) as url:
        yield url


@pytest.fixture
def worlds(tmp_path, url):
    """Two runs' view of the same storage: online stores of their own, for the order of writes."""
    made = [World(tmp_path, url=url) for _ in range(2)]
    yield made
    for world in made:
        world.ledger.close()


class Interrupted(FakeProducer):
    """Loses the lock of its run while it computes its first chunk, and another run takes its place."""

    def __init__(self, url: str, other: World) -> None:
        super().__init__(ROWS)
        self.url, self.other = url, other

    def compute(self, rows, events):
        if not self.computed:
            assert end_lock_sessions(self.url) == 1
            assert self.other.run(FakeProducer(ROWS)).computed == len(ROWS)
        return super().compute(rows, events)


def test_a_lock_lost_while_computing_is_noticed_before_a_part_is_written(worlds, url):
    one, other = worlds
    with pytest.raises(LedgerError, match=LOST):
        one.run(Interrupted(url, other))
    assert len(one.offline()) == len(ROWS)
    assert one.writes == 0
    again = one.run(FakeProducer(ROWS))
    assert (again.recovered, again.computed, len(one.offline())) == (0, 0, len(ROWS))


@pytest.mark.parametrize("before", [0, 1], ids=["all rows", "some rows"])
def test_a_part_written_after_another_run_recorded_its_rows_is_not_taken_over(worlds, url, monkeypatch, before):
    """The lock is lost in the moment between the check and the part."""
    one, other = worlds
    held = ROWS[before:]  # what the other run computes; its first chunk has rows that only this one has, or none

    def write(self, table, writing=Parts.write):
        monkeypatch.undo()
        assert end_lock_sessions(url) == 1
        assert other.run(FakeProducer(held)).computed == len(held)
        return writing(self, table)

    monkeypatch.setattr(Parts, "write", write)
    with pytest.raises(LedgerError, match=LOST):
        one.run(FakeProducer(ROWS))
    assert len(one.offline()) == len(held) + 2  # the part is there, twice for a while
    again = other.run(FakeProducer(ROWS))
    assert (again.recovered, again.computed) == (before, 0)
    assert len(set(one.offline())) == len(one.offline()) == len(ROWS)
    assert other.ledger.parts(VIEW) == set(other.parts(FakeProducer(ROWS)).names())
    assert other.ledger.count(VIEW) == len(ROWS)
    assert other.online == dict(one.online, **other.online)


def test_a_recovery_that_is_killed_before_the_old_part_is_gone_is_finished_by_the_next(worlds, url, monkeypatch):
    one, other = worlds
    producer = FakeProducer(ROWS)
    one.run(FakeProducer(ROWS[1:]))
    orphans = World(one.root / "elsewhere")
    orphans.run(FakeProducer(ROWS[:2], chunk_rows=2))
    orphans.ledger.close()
    (orphan,) = orphans.parts(producer).names()
    (orphans.root / "features" / VIEW / orphan).rename(one.root / "features" / VIEW / orphan)

    def killed(*_):
        raise KeyboardInterrupt

    for step in ("recsys_llm.producers.pipeline._store", "recsys_llm.producers.parts.Parts.remove"):
        with monkeypatch.context() as patch:
            patch.setattr(step, killed)
            with pytest.raises(KeyboardInterrupt):
                one.run(producer)
    again = one.run(producer)
    assert (again.recovered, again.computed) == (0, 0)
    assert len(set(one.offline())) == len(one.offline()) == len(ROWS)
    assert one.ledger.parts(VIEW) == set(one.parts(producer).names())


def test_after_an_error_nothing_is_recorded_without_the_lock(worlds, url):
    ledger, other = (world.ledger for world in worlds)
    rows = next(FakeProducer(ROWS).inputs(day_stamp(-1), day_stamp(10))).rows
    with ledger.lock(VIEW):
        assert end_lock_sessions(url) == 1
        for part in ("part-1", "part-2", "part-3"):
            with pytest.raises(LedgerError, match=LOST):
                ledger.record(VIEW, "f", ITEM_ID, part, rows)
        with pytest.raises(LedgerError, match=LOST):
            ledger.check_lock(VIEW)
    assert other.parts(VIEW) == set()
    with ledger.lock(VIEW):  # a new one is a new session
        ledger.record(VIEW, "f", ITEM_ID, "part-1", rows)
    assert other.parts(VIEW) == {"part-1"}


def test_an_error_that_leaves_the_session_alive_is_no_lost_lock(worlds):
    ledger, _ = (world.ledger for world in worlds)
    rows = next(FakeProducer([("secret\0id", 0, "text")]).inputs(day_stamp(-1), day_stamp(10))).rows
    with ledger.lock(VIEW):
        with pytest.raises(LedgerError, match="^ledger postgresql.*NUL") as error:
            ledger.record(VIEW, "f", ITEM_ID, "part-1", rows)
        assert "secret" not in "".join(traceback.format_exception(error.value))
        ledger.check_lock(VIEW)


def test_a_lost_connection_is_a_ledger_s_error_and_shows_no_id(worlds, url):
    ledger, _ = (world.ledger for world in worlds)
    rows = next(FakeProducer([("secret", 0, "text")]).inputs(day_stamp(-1), day_stamp(10))).rows
    for _ in range(2):  # the second time a connection is open, and taken from the pool
        assert ledger.unknown(VIEW, ITEM_ID, rows).num_rows == 1
    assert end_sessions(url) >= 1
    with pytest.raises(LedgerError, match="^ledger postgresql.*check that it is up.*run the command again") as error:
        ledger.unknown(VIEW, ITEM_ID, rows)
    assert "secret" not in "".join(traceback.format_exception(error.value))
    assert ledger.unknown(VIEW, ITEM_ID, rows).num_rows == 1
