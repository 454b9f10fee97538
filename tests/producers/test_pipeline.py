"""Skip, compute, write, publish, record: known results, then a crash at every step."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from filelock import FileLock

from recsys_llm.errors import FingerprintError, LedgerError, RowError
from recsys_llm.producers import Ledger, Parts, plan, produce
from recsys_llm.producers.pipeline import newest_rows
from recsys_llm.schema import CREATED_TIMESTAMP, EMBEDDING, EVENT_TIMESTAMP, ITEM_ID, ROW_ID
from recsys_llm.timestamps import now
from tests.fakes import FakeProducer, day_stamp

VIEW = "toy_v1"
ROWS = [(f"item{n:02d}", n % 7, f"text of {n}") for n in range(13)]


@dataclass
class World:
    """One view's storage; ``online`` is what a store with 'last write wins' holds."""

    root: Path
    online: dict[str, tuple[int, list[float]]] = field(default_factory=dict)
    writes: int = 0
    crash_in: str = ""
    store: str = "one"
    url: str = ""
    """Of the ledger; by default a file."""

    def __post_init__(self):
        url = self.url or f"sqlite:///{self.root}/ledger.db"
        self.ledger = Ledger(url, lock_directory=self.root / "locks").open()

    def parts(self, producer):
        return Parts(self.root / "features" / VIEW, VIEW, producer.manifest)

    def publish(self, table: pa.Table) -> None:
        if self.crash_in == "before publish":
            raise KeyboardInterrupt
        times = table.column(EVENT_TIMESTAMP).cast(pa.int64()).to_pylist()
        rows = zip(table.column(ITEM_ID).to_pylist(), times, table.column(EMBEDDING).to_pylist(), strict=True)
        for key, time, vector in rows:
            self.online[key] = (time, vector)
            self.writes += 1
        if self.crash_in == "after publish":
            raise KeyboardInterrupt

    def run(self, producer, start=-1, end=10, execute=None):
        return produce(
            VIEW,
            producer,
            self.ledger,
            self.parts(producer),
            self.publish,
            store=self.store,
            start=day_stamp(start),
            end=day_stamp(end),
            execute=execute,
        )

    def offline(self) -> list[tuple[object, ...]]:
        files = sorted((self.root / "features" / VIEW).glob("*.parquet"))
        rows: list[tuple[object, ...]] = []
        for file in files:
            table = pq.read_table(file).drop_columns([CREATED_TIMESTAMP, ROW_ID])
            rows.extend(tuple(map(repr, row.values())) for row in table.to_pylist())
        return sorted(rows)

    def lose_ledger(self) -> None:
        self.ledger.close()
        (self.root / "ledger.db").unlink()
        self.__post_init__()


@pytest.fixture
def world(tmp_path):
    world = World(tmp_path)
    yield world
    world.ledger.close()


def test_every_due_row_is_computed_once_and_stored_everywhere(world):
    producer = FakeProducer(ROWS)
    summary = world.run(producer)
    assert (summary.due, summary.computed, summary.skipped) == (13, 13, 0)
    assert sorted(producer.computed) == sorted(text for _, _, text in ROWS)
    assert len(world.offline()) == 13
    assert world.online["item03"][1] == [9.0, 2.0]
    assert world.ledger.count(VIEW) == 13
    assert "computed 13 rows (120 letters)" in str(summary)


def test_interval_is_open_at_its_start_and_closed_at_its_end(world):
    producer = FakeProducer([("a", 1, "one"), ("b", 2, "two"), ("c", 3, "three"), ("d", 4, "four")])
    world.run(producer, start=1, end=3)
    assert producer.computed == ["two", "three"]


def test_second_run_computes_nothing_and_says_so(world):
    world.run(FakeProducer(ROWS))
    again = FakeProducer(ROWS)
    summary = world.run(again)
    assert again.computed == []
    assert (summary.computed, summary.skipped) == (0, 13)
    assert str(summary) == "toy_v1: nothing new to compute (13 of 13 rows are up to date)"


def test_k_changed_texts_are_k_computations(world):
    world.run(FakeProducer(ROWS))
    changed = [(item, day, text + "!" if item in {"item02", "item09", "item12"} else text) for item, day, text in ROWS]
    producer = FakeProducer(changed)
    assert plan(VIEW, producer, world.ledger, day_stamp(-1), day_stamp(10)).computed == 3
    assert producer.computed == []
    assert world.run(producer).computed == 3
    assert sorted(producer.computed) == ["text of 12!", "text of 2!", "text of 9!"]
    assert world.online["item09"][1][0] == len("text of 9!")


def test_a_late_older_row_goes_offline_but_does_not_replace_the_newer_one_online(world):
    world.run(FakeProducer([("a", 5, "newer")]))
    world.run(FakeProducer([("a", 5, "newer"), ("a", 3, "late")]))
    assert len(world.offline()) == 2
    assert world.online["a"][1][0] == len("newer")


def test_only_the_newest_row_of_a_key_is_published(world):
    world.run(FakeProducer([("a", day, "x" * (day + 1)) for day in range(4)], chunk_rows=10))
    assert world.writes == 1
    assert world.online["a"][1][0] == 4.0


@pytest.mark.parametrize("crash_in", ["before publish", "after publish"])
def test_killed_run_resumes_to_the_same_content(tmp_path, crash_in):
    calm, stormy = World(tmp_path / "calm"), World(tmp_path / "stormy")
    calm.run(FakeProducer(ROWS))
    stormy.crash_in = crash_in
    first = FakeProducer(ROWS)
    with pytest.raises(KeyboardInterrupt):
        stormy.run(first)
    stormy.crash_in = ""
    second = FakeProducer(ROWS)
    summary = stormy.run(second)
    # The chunk that was on disk is taken over, not computed again.
    assert summary.recovered == 2
    assert sorted(first.computed + second.computed) == sorted(text for _, _, text in ROWS)
    assert stormy.offline() == calm.offline()
    assert stormy.online == calm.online
    assert stormy.ledger.count(VIEW) == 13
    calm.ledger.close()
    stormy.ledger.close()


def test_a_lost_ledger_is_rebuilt_from_the_parts(world):
    world.run(FakeProducer(ROWS))
    before = world.offline()
    world.lose_ledger()
    producer = FakeProducer(ROWS)
    summary = world.run(producer)
    assert (summary.recovered, producer.computed) == (13, [])
    assert world.offline() == before


def test_a_rebuilt_ledger_leaves_the_newest_value_online(world):
    for text in ("first", "the second", "x"):
        world.run(FakeProducer([("a", 1, text), ("b", 1, f"{text} of b")]))
    world.online.clear()
    world.lose_ledger()
    assert world.run(FakeProducer([("a", 1, "x"), ("b", 1, "x of b")])).computed == 0
    assert world.online["a"][1][0] == 1.0


def test_a_value_that_comes_back_is_current_again(world):
    for text in ("one", "another", "one"):
        assert world.run(FakeProducer([("a", 1, text)])).computed == 1
        assert world.online["a"][1][0] == len(text)
    assert world.run(FakeProducer([("a", 1, "one")])).computed == 0
    ids = pq.read_table(world.root / "features" / VIEW, columns=[ROW_ID]).column(0).to_pylist()
    assert len(set(ids)) == len(ids)


def test_a_failed_first_run_binds_nothing(world):
    producer = FakeProducer([("a", 1, "broken")], fingerprint="wrong template")
    producer.broken["broken"] = [math.nan, 1.0]
    with pytest.raises(RowError):
        world.run(producer)
    assert world.run(FakeProducer([("a", 1, "fine")], fingerprint="right template")).computed == 1


def test_a_new_online_store_is_given_all_rows(world):
    world.run(FakeProducer(ROWS))
    before = dict(world.online)
    world.online.clear()
    world.run(FakeProducer(ROWS))
    assert world.online == {}
    world.store = "two"
    producer = FakeProducer(ROWS)
    world.run(producer)
    assert (world.online, producer.computed) == (before, [])


def test_lost_parts_are_an_error_until_the_view_is_rebuilt(world):
    world.run(FakeProducer(ROWS))
    before = world.offline()
    parts = (world.root / "features" / VIEW).glob("part-*.parquet")
    next(file for file in parts if pq.read_metadata(file).num_rows == 2).unlink()
    with pytest.raises(LedgerError, match=r"1 recorded parts are missing .*recsys-llm rebuild toy_v1"):
        world.run(FakeProducer(ROWS))
    world.ledger.forget(VIEW)
    summary = world.run(FakeProducer(ROWS))
    assert (summary.recovered, summary.computed) == (11, 2)
    assert world.offline() == before


def test_an_unfinished_file_of_a_killed_run_is_swept(world):
    stale = world.root / "features" / f".{VIEW}.part-x.parquet.1.tmp"
    stale.parent.mkdir(parents=True)
    stale.write_bytes(b"half")
    world.run(FakeProducer(ROWS))
    assert not stale.exists()


def test_another_model_is_refused_and_nothing_changes(world):
    world.run(FakeProducer(ROWS))
    before = world.offline(), dict(world.online)
    with pytest.raises(FingerprintError, match=r"fingerprint f1.*have f2.*_v2"):
        world.run(FakeProducer(ROWS, fingerprint="f2"))
    assert (world.offline(), world.online) == before


def test_vectors_of_another_length_are_refused_by_their_lengths(world):
    def of_length(dim):
        producer = FakeProducer(ROWS, fingerprint=f"of length {dim}")
        producer.manifest["dim"] = str(dim)
        return producer

    world.run(of_length(2))
    before = world.offline(), dict(world.online)
    with pytest.raises(FingerprintError, match=r"toy_v1 holds vectors of length 2 \(part-.*makes vectors of length 3"):
        world.run(of_length(3))
    world.lose_ledger()
    with pytest.raises(FingerprintError, match="holds vectors of length 2 .* makes vectors of length 3"):
        world.run(of_length(3))
    assert (world.offline(), world.online) == before
    assert world.run(of_length(2)).recovered == len(ROWS)


def test_parts_of_another_model_are_refused_before_the_view_is_bound(world):
    world.run(FakeProducer(ROWS))
    world.lose_ledger()
    with pytest.raises(FingerprintError, match=r"part-\w+\.parquet: holds values of fingerprint f1"):
        world.run(FakeProducer(ROWS, fingerprint="f2"))
    assert world.run(FakeProducer(ROWS)).recovered == 13


def test_an_altered_part_is_refused(world):
    world.run(FakeProducer(ROWS))
    part = next((world.root / "features" / VIEW).glob("part-*.parquet"))
    data = bytearray(part.read_bytes())
    data[40] ^= 0xFF
    other = part.with_name("part-copied.parquet")
    other.write_bytes(bytes(data))
    with pytest.raises(LedgerError, match="part-copied.parquet: can't be read"):
        world.run(FakeProducer(ROWS))


@pytest.mark.faults
@pytest.mark.parametrize(
    ("vector", "problem"),
    [
        ([math.nan, 1.0], "is not finite"),
        ([1.0, math.inf], "is not finite"),
        ([-math.inf, 1.0], "is not finite"),
        ([1.0], "has length 1 and not 2"),
        ([1.0, 2.0, 3.0], "has length 3 and not 2"),
        ([], "has length 0 and not 2"),
    ],
)
@pytest.mark.parametrize("broken", range(len(ROWS)))
def test_a_broken_vector_is_refused_by_its_row_and_nothing_of_its_chunk_is_stored(world, broken, vector, problem):
    producer = FakeProducer(ROWS, chunk_rows=4)
    item, day, text = producer.rows[broken]
    producer.broken[text] = vector
    with pytest.raises(
        RowError, match=f"feature embedding of item_id '{item}' at {day_stamp(day):%Y-%m-%d}.* {problem}"
    ):
        world.run(producer)
    whole = max(first for first in (0, 4, 5, 9, 10) if first <= broken)  # chunks of 4 from batches of 5
    assert len(world.offline()) == whole and sorted(world.online) == [f"item{n:02d}" for n in range(whole)]
    producer.broken.clear()
    assert world.run(producer).computed == len(ROWS) - whole
    assert len(world.offline()) == len(world.online) == len(ROWS)


@pytest.mark.faults
def test_a_stamp_in_the_future_is_refused(world):
    ahead = (now() - day_stamp(0)).days + 3
    with pytest.raises(RowError, match=r"item_id 'later' would be stamped .* later than"):
        world.run(FakeProducer([("a", 1, "fine"), ("later", ahead, "x")]), end=ahead + 1)
    assert world.offline() == []


def test_a_view_that_is_being_materialised_is_refused(world):
    with FileLock(world.root / "locks" / f"{VIEW}.lock"), pytest.raises(LedgerError, match="another run"):
        world.run(FakeProducer(ROWS))


def test_a_view_without_rows_can_still_be_read(world):
    summary = world.run(FakeProducer([]))
    assert str(summary) == "toy_v1: nothing due"
    table = pq.read_table(world.root / "features" / VIEW)
    assert table.num_rows == 0
    assert {ITEM_ID, EMBEDDING, ROW_ID, EVENT_TIMESTAMP, CREATED_TIMESTAMP} <= set(table.schema.names)


def test_newest_rows_takes_the_last_of_equal_times():
    stamp = day_stamp(0)
    table = pa.table(
        {
            ITEM_ID: ["b", "a", "b", "a", "b"],
            EVENT_TIMESTAMP: pa.array(
                [stamp, stamp + timedelta(days=1), stamp, stamp, stamp], pa.timestamp("us", "UTC")
            ),
            "n": [0, 1, 2, 3, 4],
        }
    )
    assert newest_rows(table, ITEM_ID).select([ITEM_ID, "n"]).to_pylist() == [
        {ITEM_ID: "a", "n": 1},
        {ITEM_ID: "b", "n": 4},
    ]
