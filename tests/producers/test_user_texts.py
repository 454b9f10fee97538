"""Users' texts as of a time, against brute force: what they hold, when they are due, and what cold users get."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_llm.errors import LeakageError, RowError
from recsys_llm.producers.text_embedding import TEXT, UserTextEmbedding
from tests.builders import hours
from tests.producers.memory_source import in_memory
from tests.producers.user_world import WordCounter, World, worlds

LONG_AGO, FOREVER = hours(-24 * 365 * 60), hours(24 * 365)
moments = st.integers(-2, 130).map(hours)


def rows_of(world: World, *intervals: tuple[datetime, datetime], cutoff: datetime | None = None):
    config = world.config()
    with in_memory(world.tables()):
        made = UserTextEmbedding(config, config.text_encoders["m"], WordCounter(cutoff))
        return [
            (row["user_id"], row["event_timestamp"], row[TEXT], row["provenance"])
            for interval in intervals
            for due in made.inputs(*interval)
            for row in due.rows.to_pylist()
        ]


@settings(max_examples=200, deadline=None)
@given(worlds, moments, moments, st.none() | moments, moments)
def test_every_row_is_what_was_known_strictly_before_it(world, start, end, cutoff, between):
    start, end = min(start, end), max(start, end)
    if cutoff is not None and end < cutoff:
        with pytest.raises(LeakageError, match="m was trained on data up to"):
            rows_of(world, (start, end), cutoff=cutoff)
        return
    found = rows_of(world, (start, end), cutoff=cutoff)
    assert len(found) == len(set(found))
    assert set(found) == world.user_rows(start, end, cutoff) | world.cold_rows(start, end, cutoff)
    between = min(max(between, start, cutoff or start), end)
    assert sorted(rows_of(world, (start, between), (between, end), cutoff=cutoff)) == sorted(found)


def test_a_profile_alone_is_a_text_until_there_is_a_history():
    world = World(
        items=[("i1", hours(0), "One")],
        events=[("u1", "i1", hours(3), False, None), ("u1", "i1", hours(5), True, None)],
        words=[("u2", hours(4), "dry")],
        profiles=[("u1", hours(1), None, "Ann"), ("u3", None, None, "Bob")],
        granularity="event",
    )
    micro = timedelta(microseconds=1)
    found = rows_of(world, (LONG_AGO, hours(6)))
    assert [row for row in found if row[0] != "u3"] == [
        ("u1", hours(1) + micro, "Ann", "profile"),
        ("u1", hours(3) + micro, "Ann", "profile"),
        ("u1", hours(5) + micro, "Ann. One", "history"),
        ("u2", hours(4) + micro, "dry", "history"),
    ]
    assert [row[2:] for row in found if row[0] == "u3"] == [("Bob", "profile")]


def test_cold_rows_are_the_most_liked_items_night_by_night():
    likes = [("i2", 1, "DE"), ("i2", 2, "FR"), ("i1", 3, "DE"), ("i3", 30, "DE"), ("i3", 31, "DE"), ("i1", 100, None)]
    world = World(
        items=[(f"i{n}", hours(0), title) for n, title in ((1, "One"), (2, "Two"), (3, "Three"))],
        events=[("u1", item, hours(hour), True, segment) for item, hour, segment in likes],
        days=2,
    )
    found = [row for row in rows_of(world, (LONG_AGO, FOREVER)) if row[3] != "history"]
    assert found == [
        ("global", hours(24), "Two. One", "global"),
        ("segment:DE", hours(24), "One. Two", "segment"),  # as many likes: the smaller id first
        ("segment:FR", hours(24), "Two", "segment"),
        ("global", hours(48), "Two. Three. One", "global"),
        ("segment:DE", hours(48), "Three. One. Two", "segment"),
        ("global", hours(120), "One", "global"),
    ]


def test_a_segment_of_few_users_has_no_row():
    likes = [("u1", "i1", 1), ("u1", "i2", 2), ("u2", "i2", 30), ("u1", "i1", 80)]
    world = World(
        items=[("i1", hours(0), "One"), ("i2", hours(0), "Two")],
        events=[(user, item, hours(hour), True, "DE") for user, item, hour in likes],
        days=2,
        least_users=2,
    )
    found = [row for row in rows_of(world, (LONG_AGO, FOREVER)) if row[3] == "segment"]
    assert found == [("segment:DE", hours(48), "Two. One", "segment")]


@pytest.mark.parametrize("user", ["global", "segment:DE", "segment:"])
@pytest.mark.parametrize("table", ["events", "words", "profiles"])
def test_a_real_user_with_a_reserved_id_is_refused(user, table):
    row = {"events": (user, "i1", hours(1), True, None), "words": (user, hours(1), "x")}
    world = World(**{table: [row.get(table, (user, hours(1), None, "Ann"))]})
    with pytest.raises(RowError, match=f"user '{user}' has an id that is reserved"):
        rows_of(world, (LONG_AGO, FOREVER))
