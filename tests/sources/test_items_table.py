"""The canonical items: names, types, versions, and what is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pytest

from recsys_llm import sources
from recsys_llm.errors import RowError, SchemaError
from recsys_llm.schema import CATEGORY, EVENT_TIMESTAMP, ITEM_ID
from recsys_llm.timestamps import BEGINNING, TIMESTAMP
from tests.sources.table_rows import US, MakeConfig, T, events_table, items_table, rows


def test_items_have_their_columns_and_keep_the_others(make_config: MakeConfig) -> None:
    tags = pa.array([["x"], None])
    table = items_table(["b", "a"], [None, T], title=pa.array(["B", None]), year=pa.array([1999, None]), tags=tags)
    (batch,) = sources.items(make_config(items=table))
    assert batch.schema.names == [ITEM_ID, EVENT_TIMESTAMP, CATEGORY, "title", "year", "tags"]
    assert batch.schema.field(EVENT_TIMESTAMP).type == TIMESTAMP
    assert batch.to_pylist() == [
        {ITEM_ID: "a", EVENT_TIMESTAMP: T, CATEGORY: "c", "title": None, "year": None, "tags": None},
        {ITEM_ID: "b", EVENT_TIMESTAMP: BEGINNING, CATEGORY: "c", "title": "B", "year": 1999, "tags": ["x"]},
    ]


def test_items_may_have_other_names(make_config: MakeConfig) -> None:
    table = pa.table({"sku": [7], "at": pa.array([T], TIMESTAMP), "genre": ["g"], "category": ["not this"]})
    config = make_config(items=table, items_keys={"key": "sku", "timestamp": "at", "category": "genre"})
    assert rows(sources.items(config)) == [
        {ITEM_ID: "7", EVENT_TIMESTAMP: T, CATEGORY: "g", "sku": 7, "at": T, "genre": "g"}
    ]


def test_a_missing_category_is_refused_with_the_remedy(make_config: MakeConfig) -> None:
    table = items_table(["a"]).drop_columns([CATEGORY])
    with pytest.raises(
        SchemaError, match=r"items \(.*column 'category' is missing.*set category: null if there is none"
    ):
        sources.items(make_config(items=table))
    assert rows(sources.items(make_config(items=table, items_keys={"category": None})))[0][CATEGORY] is None


def test_versions_of_an_item_come_in_time_order_also_around_the_beginning(make_config: MakeConfig) -> None:
    old = datetime(1902, 1, 1, tzinfo=UTC)
    config = make_config(items=items_table(["b", "a", "a", "a"], [T, T, None, old]))
    found = [(row[ITEM_ID], row[EVENT_TIMESTAMP]) for row in rows(sources.items(config, batch_rows=1))]
    assert found == [("a", old), ("a", BEGINNING), ("a", T), ("b", T)]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (None, None, "an"),
        (None, BEGINNING - US, ""),
        (None, BEGINNING, "n"),
        (BEGINNING - US, None, "an"),
        (BEGINNING, None, "a"),
        (BEGINNING - US, BEGINNING, "n"),
    ],
)
def test_an_item_without_a_time_lies_at_the_beginning(
    make_config: MakeConfig, start: datetime | None, end: datetime | None, expected: str
) -> None:
    config = make_config(items=items_table(["n", "a"], [None, T]))
    assert "".join(row[ITEM_ID] for row in rows(sources.items(config, start=start, end=end))) == expected


@pytest.mark.parametrize("batch_rows", [1, 100])
@pytest.mark.parametrize("times", [[T, T + US, T], [None, T, BEGINNING]])
def test_an_item_twice_at_one_time_is_refused(
    make_config: MakeConfig, times: list[datetime | None], batch_rows: int
) -> None:
    config = make_config(items=items_table(["a", "a", "a"], times))
    message = (
        r"items\.parquet row 0 and items\.parquet row 2, columns 'item_id', 'event_timestamp': \('a', .*comes twice"
    )
    with pytest.raises(RowError, match=message):
        list(sources.items(config, batch_rows=batch_rows))


def test_integer_ids_sort_as_the_strings_that_they_become(make_config: MakeConfig) -> None:
    config = make_config(items=items_table(pa.array([9, 10, -1, 100])))
    assert [row[ITEM_ID] for row in rows(sources.items(config, batch_rows=2))] == ["-1", "10", "100", "9"]


@pytest.mark.parametrize("ids", [[1.0, 2.0], [b"a", b"b"], [True, False], [["a"], ["b"]]])
def test_ids_of_other_types_are_refused(make_config: MakeConfig, ids: list[Any]) -> None:
    with pytest.raises(SchemaError, match="column 'item_id': expected ids as strings or integers"):
        sources.items(make_config(items=items_table(pa.array(ids))))


@pytest.mark.parametrize(("bad", "found"), [(None, "null"), ("", "''")])
def test_an_item_without_an_id_is_refused(make_config: MakeConfig, bad: str | None, found: str) -> None:
    config = make_config(items=items_table(pa.array(["a", "b", bad])))
    with pytest.raises(RowError, match=rf"items\.parquet row 2, column 'item_id': expected an id, found {found}"):
        list(sources.items(config))


def test_texts_of_items_survive(make_config: MakeConfig) -> None:
    texts = ["", "a\0b", "😀👩‍👩‍👧", "שלום", "x" * 3_000_000, None]
    config = make_config(items=items_table([str(number) for number in range(len(texts))], text=pa.array(texts)))
    assert [row["text"] for row in rows(sources.items(config))] == texts


def test_an_empty_table_yields_nothing(make_config: MakeConfig) -> None:
    config = make_config(
        items=items_table(pa.array([], pa.string())),
        interactions=events_table(pa.array([], pa.string()), pa.array([], pa.string()), []),
    )
    assert list(sources.items(config)) == [] and list(sources.interactions(config)) == []


def test_columns_of_nothing_but_null_are_accepted_where_null_is(make_config: MakeConfig) -> None:
    table = pa.table({ITEM_ID: ["a"], EVENT_TIMESTAMP: pa.nulls(1), CATEGORY: pa.nulls(1)})
    assert rows(sources.items(make_config(items=table))) == [{ITEM_ID: "a", EVENT_TIMESTAMP: BEGINNING, CATEGORY: None}]
