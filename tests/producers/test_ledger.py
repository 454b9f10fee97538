"""The ledger's contract, on sqlite and on a real Postgres."""

from __future__ import annotations

import threading

import pyarrow as pa
import pytest
import sqlalchemy as sa

from recsys_llm.errors import FingerprintError, LedgerError
from recsys_llm.producers import Ledger
from recsys_llm.producers.hashing import content_hashes, row_ids
from recsys_llm.schema import CONTENT_HASH, EVENT_TIMESTAMP, USER_ID
from recsys_llm.timestamps import TIMESTAMP, to_micros
from tests.builders import hours


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request, tmp_path):
    url = (
        f"sqlite:///{tmp_path}/deep/ledger.db" if request.param == "sqlite" else request.getfixturevalue("postgres_url")
    )
    ledger = Ledger(url, lock_directory=tmp_path / "locks").open()
    yield ledger
    if request.param == "postgres":
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            for name in ("values", "parts", "views", "stores", "intervals"):
                connection.execute(sa.text(f"DROP TABLE recsys_llm_{name}"))
        engine.dispose()
    ledger.close()


def rows(*pairs: tuple[str, int], text: str = "x") -> pa.Table:
    keys = pa.array([key for key, _ in pairs], pa.string())
    stamps = pa.array([hours(hour) for _, hour in pairs], TIMESTAMP)
    hashes = content_hashes("f", [keys, stamps, pa.array([text] * len(pairs))])
    return pa.table({USER_ID: keys, EVENT_TIMESTAMP: stamps, CONTENT_HASH: hashes})


def unknown(ledger: Ledger, table: pa.Table) -> list[str]:
    return ledger.unknown("v", USER_ID, table.to_batches()[0]).column(USER_ID).to_pylist()


def test_only_recorded_values_are_known(ledger):
    table = rows(("a", 1), ("b", 1), ("a", 2))
    assert unknown(ledger, table) == ["a", "b", "a"]
    ledger.record("v", "f", USER_ID, "part-1", table.slice(0, 2))
    assert unknown(ledger, table) == ["a"]
    assert unknown(ledger, rows(("b", 1), text="changed")) == ["b"]
    assert ledger.parts("v") == {"part-1"}
    assert ledger.parts("other") == set()


def test_recording_twice_changes_nothing(ledger):
    table = rows(("a", 1), ("b", 1))
    ledger.record("v", "f", USER_ID, "part-1", table)
    ledger.record("v", "f", USER_ID, "part-1", table)
    assert ledger.count("v") == 2


def test_newest_time_of_many_keys(ledger):
    table = rows(*((f"u{n:04d}", hour) for n in range(1200) for hour in (1, 3, 2)))
    ledger.record("v", "f", USER_ID, "part-1", table)
    found = ledger.newest("v", [f"u{n:04d}" for n in range(1200)] + ["nobody"])
    assert found == {f"u{n:04d}": to_micros(hours(3)) for n in range(1200)}


def test_a_view_is_bound_by_its_first_value(ledger):
    ledger.check("v", "g")
    ledger.record("v", "f", USER_ID, "part-1", rows(("a", 1)))
    ledger.check("v", "f")
    ledger.check("w", "g")
    with pytest.raises(FingerprintError, match="fingerprint f.*have g"):
        ledger.check("v", "g")


def test_only_the_current_content_of_a_key_and_time_is_known(ledger):
    one, other = rows(("a", 1)), rows(("a", 1), text="changed")
    ledger.record("v", "f", USER_ID, "part-1", one)
    ledger.record("v", "f", USER_ID, "part-2", other)
    assert unknown(ledger, other) == []
    assert unknown(ledger, one) == ["a"]
    assert ledger.count("v") == 1


def test_publications_are_known_by_store(ledger):
    ledger.mark_published("v", "redis")
    ledger.mark_published("v", "redis")
    assert ledger.is_published("v", "redis")
    assert not ledger.is_published("v", "sqlite")
    assert not ledger.is_published("w", "redis")


def test_a_forgotten_view_is_empty(ledger):
    ledger.record("v", "f", USER_ID, "part-1", rows(("a", 1)))
    ledger.record("w", "f", USER_ID, "part-1", rows(("a", 1)))
    ledger.mark_published("v", "redis")
    ledger.forget("v")
    assert (ledger.count("v"), ledger.parts("v"), ledger.is_published("v", "redis")) == (0, set(), False)
    ledger.check("v", "g")
    assert ledger.count("w") == 1


def another(ledger: Ledger, tmp_path) -> Ledger:
    """Return the same ledger as another process would open it."""
    return Ledger(ledger._url.render_as_string(hide_password=False), lock_directory=tmp_path / "locks")


def test_a_view_is_locked_for_one_run(ledger, tmp_path):
    other = another(ledger, tmp_path)
    with ledger.lock("v"):
        with other.lock("w"):
            pass
        with pytest.raises(LedgerError, match="v is held by another run"), other.lock("v"):
            pass
        ledger.record("v", "f", USER_ID, "part-1", rows(("a", 1)))
    with other.lock("v"):
        pass
    other.close()


def test_a_run_may_wait_for_another(ledger, tmp_path):
    other = another(ledger, tmp_path)
    order = []

    def wait():
        with other.lock("v", wait=60):
            order.append("second")

    waiting = threading.Thread(target=wait)
    with ledger.lock("v"):
        waiting.start()
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
    other.close()


def test_intervals_of_ended_runs(ledger):
    for start, end, ended in ((0, 5, 10), (5, 9, 20), (5, 9, 30)):
        ledger.note_interval("v", "r", start, end, ended)
    assert ledger.intervals("v", "r", 0) == {(0, 5), (5, 9)}
    assert ledger.intervals("v", "r", 21) == {(5, 9)}
    assert ledger.intervals("v", "other", 0) == ledger.intervals("w", "r", 0) == set()


def test_hashes_depend_on_every_part_and_on_the_borders_between_them():
    def one(*columns, fingerprint="f"):
        return content_hashes(fingerprint, [pa.array([value]) for value in columns])[0].as_py()

    variants = [
        one("ab", "c"),
        one("a", "bc"),
        one("ab", None),
        one("ab", ""),
        one("ab", "c", fingerprint="g"),
        one(["ab", "c"]),
    ]
    assert len(set(variants)) == len(variants)
    assert all(len(digest) == 16 for digest in variants)


def test_row_ids_are_non_negative_and_distinct():
    hashes = content_hashes("f", [pa.array([str(n) for n in range(5000)])])
    ids = row_ids(hashes, 1)
    assert len(ids.unique()) == 5000
    assert not set(ids.to_pylist()) & set(row_ids(hashes, 2).to_pylist())
    assert min(ids.to_pylist()) >= 0
