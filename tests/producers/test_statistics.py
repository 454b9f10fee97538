"""Item and user statistics: known output, then brute-force oracles, then the leak property."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys_llm.producers.item_statistics import ItemStatistics
from recsys_llm.producers.user_statistics import UserStatistics
from tests.builders import config_for, hours, write_interactions, write_items

LONG_AGO, FOREVER = hours(-24 * 365), hours(24 * 365)
ITEMS = [("i1", hours(0), "One", "Drama, Comedy"), ("i2", hours(0), "Two", "Drama"), ("i3", None, "Three", "")]

event = st.tuples(
    st.sampled_from(["u1", "u2"]),
    st.sampled_from(["i1", "i2", "i3"]),
    st.integers(0, 24 * 45).map(hours),
    st.sampled_from([None, 2.0, 4.0, 5.0]),
    st.sampled_from([None, 1.5, 3.0]),
)
events_strategy = st.lists(event, max_size=20, unique_by=lambda row: row[:3])


def rows_of(producer, start=LONG_AGO, end=FOREVER):
    rows = []
    for due in producer.inputs(start, end):
        keys = due.rows.select([producer.join_key, "event_timestamp"]).to_pylist()
        features = producer.compute(due.rows, due.events).to_pylist()
        rows.extend(key | row for key, row in zip(keys, features, strict=True))
    return rows


def test_item_statistics_of_a_small_history(tmp_path):
    write_items(tmp_path, ITEMS)
    write_interactions(
        tmp_path,
        [
            ("u1", "i1", hours(1), 4.0, 2.0),
            ("u2", "i1", hours(2), 2.0, None),
            ("u1", "i1", hours(30), None, 3.0),
        ],
    )
    rows = [row for row in rows_of(ItemStatistics(config_for(tmp_path))) if row["item_id"] == "i1"]
    assert [(row["event_timestamp"], row["n_events"], row["n_events_30d"]) for row in rows] == [
        (hours(0), 0, 0),
        (hours(24), 2, 2),
        (hours(48), 3, 3),
        (hours(24 * 31), 3, 1),
        (hours(24 * 32), 3, 0),
    ]
    assert [row["mean_rating"] for row in rows] == [None, 3.0, 3.0, 3.0, 3.0]
    assert [row["price"] for row in rows] == [None, 2.0, 3.0, 3.0, 3.0]
    assert {row["category"] for row in rows} == {"Drama, Comedy"}


def test_user_statistics_of_a_small_history(tmp_path):
    write_items(tmp_path, ITEMS)
    write_interactions(
        tmp_path,
        [
            ("u1", "i1", hours(1), 4.0, 2.0),
            ("u1", "i2", hours(1), None, None),
            ("u1", "i2", hours(5), 2.0, 4.0),
        ],
    )
    first, second = rows_of(UserStatistics(config_for(tmp_path)))
    assert first["event_timestamp"] == hours(1) + timedelta(microseconds=1)
    assert (first["n_events"], first["recent_items"], first["last_group_size"]) == (2, ["i2", "i1"], 2)
    assert (first["categories"], first["category_shares"]) == (["Drama", "Comedy"], [1.0, 0.5])
    assert (second["n_events"], second["recent_items"], second["last_group_size"]) == (3, ["i2", "i2", "i1"], 1)
    assert (second["mean_rating"], second["mean_price"]) == (3.0, 3.0)
    assert second["category_shares"] == pytest.approx([1.0, 1 / 3])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events_strategy)
def test_item_statistics_match_brute_force(tmp_path, events):
    write_items(tmp_path, ITEMS)
    write_interactions(tmp_path, events)
    rows = rows_of(ItemStatistics(config_for(tmp_path)))
    for row in rows:
        past = [e for e in events if e[1] == row["item_id"] and e[2] < row["event_timestamp"]]
        window = [e for e in past if e[2] >= row["event_timestamp"] - timedelta(days=30)]
        ratings = [e[3] for e in past if e[3] is not None]
        assert (row["n_events"], row["n_events_30d"]) == (len(past), len(window))
        assert row["mean_rating"] == (pytest.approx(np.mean(ratings)) if ratings else None)
    # Between two rows nothing changes: asking at any midnight gives the same as counting then.
    for day in range(80):
        now = hours(24 * day)
        for item in ("i1", "i2", "i3"):
            known = [row for row in rows if row["item_id"] == item and row["event_timestamp"] <= now]
            newest = max(known, key=lambda row: row["event_timestamp"], default={"n_events": 0, "n_events_30d": 0})
            past = [e for e in events if e[1] == item and e[2] < now]
            assert newest["n_events"] == len(past)
            assert newest["n_events_30d"] == len([e for e in past if e[2] >= now - timedelta(days=30)])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events_strategy)
def test_user_statistics_match_brute_force(tmp_path, events):
    write_items(tmp_path, ITEMS)
    write_interactions(tmp_path, events)
    categories = {"i1": ["Drama", "Comedy"], "i2": ["Drama"], "i3": []}
    rows = rows_of(UserStatistics(config_for(tmp_path)))
    assert len(rows) == len({(e[0], e[2]) for e in events})
    for row in rows:
        past = sorted(
            (e for e in events if e[0] == row["user_id"] and e[2] < row["event_timestamp"]), key=lambda e: (e[2], e[1])
        )
        assert row["n_events"] == len(past)
        assert row["recent_items"] == [e[1] for e in reversed(past)][:50]
        assert row["last_group_size"] == sum(e[2] == past[-1][2] for e in past)
        counts = Counter(name for e in past for name in categories[e[1]])
        assert dict(zip(row["categories"], row["category_shares"], strict=True)) == {
            name: pytest.approx(count / len(past)) for name, count in counts.items()
        }


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events_strategy, st.integers(1, 24 * 45))
@pytest.mark.parametrize("kind", [ItemStatistics, UserStatistics])
def test_later_events_change_no_earlier_row(tmp_path, kind, events, cut):
    write_items(tmp_path, ITEMS)
    write_interactions(tmp_path, events)
    everything = rows_of(kind(config_for(tmp_path)), end=hours(cut))
    write_interactions(tmp_path, [e for e in events if e[2] < hours(cut)])
    assert rows_of(kind(config_for(tmp_path)), end=hours(cut)) == everything


def test_a_changed_category_counts_from_its_time_on(tmp_path):
    write_items(tmp_path, [("i1", hours(0), "One", "Drama"), ("i1", hours(10), "One", "Comedy")])
    write_interactions(tmp_path, [("u1", "i1", hours(5), None, None), ("u1", "i1", hours(15), None, None)])
    config = config_for(tmp_path)
    rows = rows_of(UserStatistics(config))
    assert [row["categories"] for row in rows] == [["Drama"], ["Comedy", "Drama"]]
    assert [(r["event_timestamp"], r["category"]) for r in rows_of(ItemStatistics(config), end=hours(24))] == [
        (hours(0), "Drama"),
        (hours(10), "Comedy"),
        (hours(24), "Comedy"),
    ]
