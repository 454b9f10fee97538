"""The item cache by itself: times on a clock of the test, settings, and the table of rows."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_llm.errors import ConfigError, StoreError
from recsys_llm.retrieval import CacheSettings
from recsys_llm.retrieval.item_cache import Changes, ItemCache
from recsys_llm.retrieval.online import Decoded, Request, StoredRows
from recsys_llm.retrieval.row_table import RowTable, merged
from recsys_llm.retrieval.service import Feature, View
from recsys_llm.retrieval.stored import Cells, Kind
from tests.retrieval.waiting import wait_for

FEATURE = Feature("f", "v__f", Kind.SCALAR)
VIEW = View("v", "item", 0, (FEATURE,), False, None, None)


class Numbers:
    """A source whose values are set by the test."""

    def __init__(self):
        self.value, self.reads, self.told, self.fails = 1.0, [], Changes(), False

    def changes(self, request):
        told, self.told = self.told, Changes()
        return told

    def read(self, request):
        if self.fails:
            raise StoreError("down")
        self.reads.append(request.ids)
        stored = ValueProto(float_val=self.value).SerializeToString()
        return [StoredRows(np.ones(len(request.ids), np.int64), {"f": [stored] * len(request.ids)})]

    def close(self):
        pass


class TestTimes:
    """What is handed out when, by a clock that the test moves."""

    @pytest.fixture
    def source(self):
        return Numbers()

    @pytest.fixture
    def cache(self, source):
        self.time = 0.0
        # The background thread would look at the clock at its own times.
        with mock.patch.object(ItemCache, "_run"):
            cache = ItemCache(CacheSettings(ttl=10, max_staleness=30), source, {}, clock=lambda: self.time)
            yield cache
            cache.close()

    def values(self, cache, *ids):
        return cache.read(Request("item", (VIEW,), ids)).columns["v__f"].tolist()

    def test_rows_are_read_again_in_the_background_after_their_ttl(self, cache, source):
        self.values(cache, "a", "b")
        self.values(cache, "a")
        source.value = 2.0
        self.time = 10.0
        cache.refresh()
        assert self.values(cache, "a", "b") == [1, 1]
        self.time = 10.1
        assert self.values(cache, "a") == [1]  # nobody waits
        cache.refresh()
        assert source.reads == [("a", "b"), ("a", "b")]
        assert self.values(cache, "a", "b") == [2, 2]
        assert cache.stats().refreshed == 2

    def test_what_nobody_asks_for_is_not_read_again_and_dropped_in_the_end(self, cache, source):
        self.values(cache, "a")
        self.time = 29.0
        cache.refresh()
        assert len(source.reads) == 1
        assert cache.stats().rows == 1
        self.time = 31.0
        cache.refresh()
        assert cache.stats().rows == 0

    def test_nothing_is_handed_out_past_the_bound(self, cache, source):
        assert self.values(cache, "a") == self.values(cache, "a") == [1]
        source.value, source.fails = 2.0, True
        self.time = 30.0
        with pytest.raises(StoreError):
            cache.refresh()
        assert self.values(cache, "a") == [1]
        self.time = 30.1
        with pytest.raises(StoreError, match="down"):
            self.values(cache, "a")
        source.fails = False
        assert self.values(cache, "a") == [2]

    def test_what_was_written_while_it_was_read_is_not_kept(self, cache, source):
        original = source.read

        def overtaken(request):
            rows = original(request)
            source.told = Changes(frozenset({"a"}))
            return rows

        source.read = overtaken
        self.values(cache, "a", "b")
        source.read = original
        source.value = 2.0
        assert self.values(cache, "a", "b") == [2, 1]

    def test_a_connection_lost_while_reading_keeps_nothing(self, cache, source):
        original = source.read

        def broken(request):
            rows = original(request)
            source.told = Changes(lost=True)
            return rows

        source.read = broken
        self.values(cache, "a")
        source.read = original
        source.value = 2.0
        assert self.values(cache, "a") == [2]


def test_a_failure_in_the_background_is_counted_and_the_thread_goes_on():
    source = Numbers()
    cache = ItemCache(CacheSettings(ttl=0.05, max_staleness=3600), source, {})
    request = Request("item", (VIEW,), ("a",))
    cache.read(request)
    source.fails = True
    assert wait_for(lambda: cache.read(request) and cache.stats().failures > 1)
    source.fails, source.value = False, 2.0
    assert wait_for(lambda: cache.read(request).columns["v__f"].tolist() == [2])
    cache.close()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_bytes": 5}, "max_bytes: expected at least 1048576"),
        ({"ttl": 0}, "ttl: expected seconds above 0, found 0"),
        ({"ttl": float("nan")}, "ttl: expected seconds above 0, found nan"),
        ({"ttl": 10, "max_staleness": 5}, r"max_staleness: expected at least ttl \(10\), found 5"),
    ],
)
def test_settings_out_of_range(given, message):
    with pytest.raises(ConfigError, match=message):
        CacheSettings(**given)


def table_rows(ids, version):
    n = len(ids)
    return Decoded(
        {
            "vector": np.arange(n * 3, dtype=np.float32).reshape(n, 3) + version,
            "number": np.full(n, version, dtype=np.float32),
            "words": Cells.of(Kind.STRINGS, [(id_, str(version)) * (version % 5) or None for id_ in ids]),
        },
        {"v": np.full(n, version, dtype=np.int64)},
    )


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(["put", "drop"]), st.sets(st.integers(0, 40), min_size=1, max_size=25)), max_size=30
    ),
    st.integers(1_500, 12_000),
)
def test_a_table_holds_what_was_last_put_within_its_bytes(operations, max_bytes):
    table, model = RowTable(table_rows(["a"], 0), max_bytes), {}
    for version, (operation, numbers) in enumerate(operations):
        ids = [f"id{number}" for number in numbers]
        if operation == "drop":
            table.drop(ids)
            for id_ in ids:
                model.pop(id_, None)
            continue
        rows = table_rows(ids, version)
        table.put(ids, rows, range(len(ids)), float(version))
        for place, id_ in enumerate(ids):
            model[id_] = (rows.columns["vector"][place].tolist(), version, rows.columns["words"].values[place])
        assert table.bytes <= max_bytes
        assert len(table) <= table.capacity
        asked = [f"id{number}" for number in range(41)]
        slots = table.find(asked)
        held = np.flatnonzero(slots >= 0)
        assert len(held) == len(table)
        found = table.gather(slots[held])
        for row, place in enumerate(held.tolist()):
            vector, number, words = model[asked[place]]
            assert found.columns["vector"][row].tolist() == vector
            assert found.columns["number"][row] == number == found.timestamps["v"][row]
            assert found.columns["words"].values[row] == words
        assert set(table.ids_at(table.used())) == {asked[place] for place in held.tolist()}


def test_two_blocks_make_one():
    first, second = table_rows(["a", "b"], 1), table_rows(["c"], 2)
    found = merged(3, first, np.array([2, 0]), second, np.array([1]))
    assert found.columns["vector"].tolist() == [[4, 5, 6], [2, 3, 4], [1, 2, 3]]
    assert found.columns["words"].values.tolist() == [("b", "1"), ("c", "2", "c", "2"), ("a", "1")]
    assert found.timestamps["v"].tolist() == [1, 2, 1]
