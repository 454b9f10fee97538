"""Which rows a history gives, against a brute-force oracle."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_llm.producers.user_rows import user_rows
from recsys_llm.timestamps import TIMESTAMP, from_micros, to_micros

EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
HOUR = 3_600_000_000

events_strategy = st.lists(
    st.tuples(st.sampled_from("abc"), st.integers(0, 12), st.sampled_from(["i", "j", "k"])), min_size=0, max_size=25
)


def batch_of(events):
    rows = sorted((user, EPOCH + timedelta(minutes=20 * tick), item) for user, tick, item in events)
    return pa.RecordBatch.from_arrays(
        [
            pa.array([row[0] for row in rows], pa.string()),
            pa.array([row[1] for row in rows], TIMESTAMP),
            pa.array([row[2] for row in rows], pa.string()),
        ],
        names=["user_id", "event_timestamp", "item_id"],
    )


def oracle(events, period, start, end, not_before):
    """Return {(user, stamp): set of event positions} by walking every user's every event."""
    rows = batch_of(events).to_pylist()
    found = {}
    for position, row in enumerate(rows):
        micros = to_micros(row["event_timestamp"])
        stamp = micros + 1 if period == 0 else (micros // period + 1) * period
        if not_before is not None:
            stamp = max(stamp, to_micros(not_before))
        if not to_micros(start) < stamp <= to_micros(end):
            continue
        history = [
            other
            for other, candidate in enumerate(rows)
            if candidate["user_id"] == row["user_id"] and candidate["event_timestamp"] <= row["event_timestamp"]
        ]
        key = (row["user_id"], stamp)
        if key not in found or len(history) > len(found[key]):
            found[key] = history
        assert position in history
    return found


@settings(max_examples=200, deadline=None)
@given(
    events_strategy,
    st.sampled_from([0, HOUR, 2 * HOUR]),
    st.integers(-1, 8),
    st.integers(0, 15),
    st.one_of(st.none(), st.integers(0, 12)),
)
def test_rows_match_the_oracle(events, period, start, end, cut):
    start, end = EPOCH + timedelta(minutes=20 * start), EPOCH + timedelta(minutes=20 * end)
    not_before = None if cut is None else EPOCH + timedelta(minutes=20 * cut)
    batch = batch_of(events)
    rows = user_rows(batch, period=period, start=start, end=end, not_before=not_before)
    users = batch.column("user_id").to_pylist()
    found = {
        (users[first], stamp): list(range(first, stop))
        for first, stop, stamp in zip(rows.first.tolist(), rows.end.tolist(), rows.stamp.tolist(), strict=True)
    }
    assert found == oracle(events, period, start, end, not_before)


@settings(max_examples=100, deadline=None)
@given(events_strategy, st.sampled_from([0, HOUR]))
def test_a_row_never_contains_an_event_at_or_after_its_stamp(events, period):
    batch = batch_of(events)
    rows = user_rows(batch, period=period, start=EPOCH - timedelta(days=1), end=EPOCH + timedelta(days=2))
    times = batch.column("event_timestamp").to_pylist()
    for stop, stamp in zip(rows.end.tolist(), rows.stamp.tolist(), strict=True):
        assert times[stop - 1] < from_micros(stamp)


def test_ties_are_one_group_and_the_row_comes_a_microsecond_later():
    rows = user_rows(
        batch_of([("a", 0, "i"), ("a", 0, "j"), ("a", 3, "k")]),
        period=0,
        start=EPOCH - timedelta(days=1),
        end=EPOCH + timedelta(days=1),
    )
    assert rows.end.tolist() == [2, 3]
    assert [from_micros(stamp) for stamp in rows.stamp.tolist()] == [
        EPOCH + timedelta(microseconds=1),
        EPOCH + timedelta(hours=1, microseconds=1),
    ]
