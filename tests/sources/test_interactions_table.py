"""The canonical interactions: order, duplicates, likes, and what is refused."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys_llm import sources
from recsys_llm.errors import RowError, SchemaError
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from recsys_llm.sources.tables import INTERACTIONS_SCHEMA
from recsys_llm.timestamps import now
from tests.sources.table_rows import US, MakeConfig, T, events_table, items_table, rows


def test_interactions_have_their_columns_and_types(make_config: MakeConfig) -> None:
    table = events_table([1, 2], ["a", "b"], [T, T], note=pa.array(["x", "y"]))
    (batch,) = sources.interactions(make_config(interactions=table))
    assert batch.schema == INTERACTIONS_SCHEMA
    common = {EVENT_TIMESTAMP: T, "rating": None, "price": None, "liked": True}
    assert batch.to_pylist() == [{USER_ID: "1", ITEM_ID: "a", **common}, {USER_ID: "2", ITEM_ID: "b", **common}]


@pytest.mark.parametrize(
    ("order_by", "keys"),
    [
        ("user", (USER_ID, EVENT_TIMESTAMP, ITEM_ID)),
        ("item", (ITEM_ID, EVENT_TIMESTAMP, USER_ID)),
        ("time", (EVENT_TIMESTAMP, USER_ID, ITEM_ID)),
    ],
)
def test_interactions_are_ordered(make_config: MakeConfig, order_by: Any, keys: tuple[str, ...]) -> None:
    users, items, times = [2, 10, 2, 10, 2], ["b", "B", "a", "b", "B"], [T, T, T, T + US, T - US]
    config = make_config(interactions=events_table(users, items, times))
    found = rows(sources.interactions(config, order_by=order_by, batch_rows=2))
    assert len(found) == 5
    assert found == sorted(found, key=lambda row: tuple(row[key] for key in keys))


def test_a_rating_counts_as_liked_from_its_own_float32_value(make_config: MakeConfig) -> None:
    ratings = pa.array([3.3, 3.2, 5.0, None], pa.float32())
    table = events_table(["u"] * 4, list("abcd"), [T] * 4, stars=ratings)
    config = make_config(interactions=table, interactions_keys={"rating": "stars", "liked_from": 3.3})
    assert [row["liked"] for row in rows(sources.interactions(config))] == [True, False, True, False]


@pytest.mark.parametrize("type_", [pa.int32(), pa.float64(), pa.decimal128(5, 2), pa.float16()])
def test_numbers_of_any_type_become_float32(make_config: MakeConfig, type_: Any) -> None:
    numbers = pa.array([Decimal(1), Decimal(2)], type_) if pa.types.is_decimal(type_) else pa.array([1, 2], type_)
    config = make_config(
        interactions=events_table(["u", "u"], ["a", "b"], [T, T], price=numbers), interactions_keys={"price": "price"}
    )
    assert [row["price"] for row in rows(sources.interactions(config))] == [1.0, 2.0]


def test_a_rating_that_is_no_number_is_refused(make_config: MakeConfig) -> None:
    table = events_table(["u"], ["a"], [T], rating=pa.array(["five"]))
    with pytest.raises(SchemaError, match="column 'rating': expected numbers, found string"):
        sources.interactions(make_config(interactions=table, interactions_keys={"rating": "rating"}))


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), 1e300])
def test_an_infinite_number_is_refused(make_config: MakeConfig, bad: float) -> None:
    table = events_table(["u", "u"], ["a", "b"], [T, T], price=pa.array([float("nan"), bad]))
    config = make_config(interactions=table, interactions_keys={"price": "price"})
    with pytest.raises(RowError, match=r"interactions\.parquet row 1, column 'price': expected a finite number"):
        list(sources.interactions(config))


def test_ignored_events_are_gone_before_anything_is_checked(make_config: MakeConfig) -> None:
    events = pa.array(["buy", "cancel", None, "return"]).dictionary_encode()
    table = events_table(["u", None, "u", "u"], ["a", "b", "c", "d"], [T, None, T, T], event=events)
    keys = {"event": "event", "ignore_events": ("cancel", "return")}
    found = rows(sources.interactions(make_config(interactions=table, interactions_keys=keys)))
    assert [row[ITEM_ID] for row in found] == ["a", "c"]


@pytest.mark.parametrize("batch_rows", [1, 2, 100])
def test_duplicates_are_one_row_with_the_largest_numbers(make_config: MakeConfig, batch_rows: int) -> None:
    nan = float("nan")
    table = events_table(
        ["u"] * 6,
        ["a", "a", "a", "b", "b", "c"],
        [T, T, T, T, T + US, T],
        rating=pa.array([3.0, 5.0, None, nan, 1.0, None], pa.float32()),
        price=pa.array([9.0, 1.0, nan, None, None, 2.0], pa.float32()),
    )
    keys = {"rating": "rating", "price": "price", "liked_from": 4.0}
    config = make_config(interactions=table, interactions_keys=keys)
    found = rows(sources.interactions(config, batch_rows=batch_rows, order_by="item"))
    values = [(row[ITEM_ID], row[EVENT_TIMESTAMP], row["rating"], row["price"], row["liked"]) for row in found]
    assert values == [
        ("a", T, 5.0, 9.0, True),
        ("b", T, None, None, False),
        ("b", T + US, 1.0, None, False),
        ("c", T, None, 2.0, False),
    ]


@pytest.mark.parametrize("start", [None, T - timedelta(days=1)], ids=["from the beginning", "later"])
@pytest.mark.parametrize("column", [USER_ID, ITEM_ID, EVENT_TIMESTAMP])
def test_a_null_key_is_refused_whatever_the_range(make_config: MakeConfig, column: str, start: datetime | None) -> None:
    columns: dict[str, list[Any]] = {USER_ID: ["u", "v"], ITEM_ID: ["a", "b"], EVENT_TIMESTAMP: [T, T]}
    columns[column][1] = None
    config = make_config(interactions=events_table(*columns.values()))
    with pytest.raises(RowError, match=rf"interactions\.parquet row 1, column '{column}': expected .*, found null"):
        list(sources.interactions(config, start=start))


def test_a_stamp_in_the_future_is_refused_unless_reading_ends_before(make_config: MakeConfig) -> None:
    soon, later = now() + timedelta(minutes=2), now() + timedelta(minutes=10)
    config = make_config(
        interactions=events_table(["u", "u"], ["a", "b"], [soon, later]), items=items_table(["a"], [later])
    )
    assert len(rows(sources.interactions(config, end=soon))) == 1, "clocks may differ by some minutes"
    with pytest.raises(RowError, match=r"interactions\.parquet row 1, column 'event_timestamp': .* is in the future"):
        list(sources.interactions(config))
    with pytest.raises(RowError, match=r"items\.parquet row 0, column 'event_timestamp': .* is in the future"):
        list(sources.items(config))


def test_a_user_with_one_event_is_a_user(make_config: MakeConfig) -> None:
    config = make_config(interactions=events_table(["u", "v", "v"], ["a", "a", "b"], [T, T, T]))
    assert [row[USER_ID] for row in rows(sources.interactions(config))] == ["u", "v", "v"]


@pytest.mark.parametrize("column", [USER_ID, ITEM_ID, EVENT_TIMESTAMP])
def test_a_missing_column_of_interactions_is_named(make_config: MakeConfig, column: str) -> None:
    table = events_table(["u"], ["a"], [T]).drop_columns([column])
    with pytest.raises(SchemaError, match=rf"interactions \(.*column '{column}' is missing"):
        sources.interactions(make_config(interactions=table))


events = st.tuples(
    st.sampled_from(["1", "10", "9", "é"]),
    st.sampled_from(["a", "B", "b"]),
    st.integers(0, 3),
    st.one_of(st.none(), st.sampled_from([1.0, 3.5, 5.0])),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(events, min_size=1, max_size=40),
    st.one_of(st.none(), st.integers(0, 3)),
    st.one_of(st.none(), st.integers(0, 3)),
    st.integers(1, 50),
)
def test_interactions_are_what_a_loop_over_the_rows_gives(
    make_config: MakeConfig,
    raw: list[tuple[str, str, int, float | None]],
    start: int | None,
    end: int | None,
    batch_rows: int,
) -> None:
    expected: dict[tuple[str, int, str], float | None] = {}
    for user, item, offset, rating in raw:
        if (start is None or offset > start) and (end is None or offset <= end):
            best = expected.get((user, offset, item))
            expected[user, offset, item] = rating if best is None else best if rating is None else max(best, rating)
    users, items, offsets, ratings = zip(*raw, strict=True)
    table = events_table(users, items, [T + o * US for o in offsets], rating=pa.array(ratings, pa.float32()))
    config = make_config(interactions=table, interactions_keys={"rating": "rating"})
    bounds = {"start": None if start is None else T + start * US, "end": None if end is None else T + end * US}
    batches = list(sources.interactions(config, batch_rows=batch_rows, **bounds))
    assert all(0 < batch.num_rows <= batch_rows for batch in batches)
    found = [(r[USER_ID], (r[EVENT_TIMESTAMP] - T) // US, r[ITEM_ID], r["rating"]) for r in rows(iter(batches))]
    assert found == [(*key, expected[key]) for key in sorted(expected)]
