"""A trained encoder stamps no row before its training cut-off: items against brute force, and the refusal."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_llm.errors import LeakageError
from recsys_llm.producers.text_embedding import TEXT, ItemTextEmbedding
from tests.builders import hours
from tests.producers.memory_source import in_memory
from tests.producers.user_world import WordCounter, World

LONG_AGO = hours(-24 * 365 * 60)
moments = st.integers(-1, 9).map(hours)
items = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 8).map(hours), st.sampled_from(["One", "Two", ""])),
    max_size=12,
    unique_by=lambda row: row[:2],
)


def rows_of(rows, *intervals, cutoff):
    world = World(items=rows)
    config = world.config()
    with in_memory(world.tables()):
        made = ItemTextEmbedding(config, config.text_encoders["m"], WordCounter(cutoff))
        return [
            (row["item_id"], row["event_timestamp"], row[TEXT])
            for interval in intervals
            for due in made.inputs(*interval)
            for row in due.rows.to_pylist()
        ]


def oracle(rows, start, end, cutoff):
    """Return for each item and stamp the newest text that would be stamped so."""
    found = {}
    for item, time, title in sorted(rows):
        found[item, time if cutoff is None else max(time, cutoff)] = title
    return sorted((item, stamp, title) for (item, stamp), title in found.items() if start < stamp <= end)


@settings(max_examples=200, deadline=None)
@given(items, moments, moments, st.none() | moments, moments)
def test_items_match_the_oracle_and_intervals_add_up(rows, start, end, cutoff, between):
    start, end = min(start, end), max(start, end)
    if cutoff is not None and end < cutoff:
        with pytest.raises(LeakageError, match=r"m was trained on data up to .*Materialise to a later end"):
            rows_of(rows, (start, end), cutoff=cutoff)
        return
    found = rows_of(rows, (start, end), cutoff=cutoff)
    assert found == oracle(rows, start, end, cutoff)
    between = min(max(between, start, cutoff or start), end)
    assert sorted(rows_of(rows, (start, between), (between, end), cutoff=cutoff)) == found


def test_of_the_versions_by_the_cutoff_only_the_newest_is_kept():
    rows = [("a", None, "Old"), ("a", hours(2), "New"), ("a", hours(5), "Later"), ("b", hours(3), "Exact")]
    assert rows_of(rows, (LONG_AGO, hours(9)), cutoff=hours(3)) == [
        ("a", hours(3), "New"),
        ("a", hours(5), "Later"),
        ("b", hours(3), "Exact"),
    ]
    assert rows_of(rows, (hours(3), hours(9)), cutoff=hours(3)) == [("a", hours(5), "Later")]
