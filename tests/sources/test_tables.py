"""The canonical tables together: user words, any origin, and all of the real data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_llm import sources
from recsys_llm.config import Config, InteractionsConfig, ItemsConfig, SourcesConfig, UsersConfig, UserWordsConfig
from recsys_llm.errors import RowError, SchemaError
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from recsys_llm.sources.tables import USER_WORDS_SCHEMA
from recsys_llm.timestamps import BEGINNING, TIMESTAMP
from tests.sources.table_rows import US, MakeConfig, T, events_table, rows


def test_words_come_by_user_and_time_without_nulls(make_config: MakeConfig) -> None:
    table = pa.table(
        {
            USER_ID: ["v", "u", "u", "u", "u"],
            "text": ["x", "b", "a", None, "a"],
            EVENT_TIMESTAMP: pa.array([T, T, T, T, T + US], TIMESTAMP),
        }
    )
    batches = list(sources.user_words(make_config(user_words=table)))
    assert [batch.schema for batch in batches] == [USER_WORDS_SCHEMA]
    found = [(row[USER_ID], row["text"], row[EVENT_TIMESTAMP]) for row in rows(iter(batches))]
    assert found == [("u", "a", T), ("u", "b", T), ("u", "a", T + US), ("v", "x", T)]


def test_no_words_are_configured(make_config: MakeConfig) -> None:
    assert list(sources.user_words(make_config())) == []


def test_words_of_several_tables_are_one(make_config: MakeConfig, tmp_path: Path) -> None:
    columns = {USER_ID: ["u", "v", "é"], "text": ["b", "z", "s"], EVENT_TIMESTAMP: pa.array([T, T, T], TIMESTAMP)}
    config = make_config(user_words=pa.table(columns))
    queries = {"who": ["w", "u", "v"], "q": ["x", "a", None], EVENT_TIMESTAMP: pa.array([T, T, T], TIMESTAMP)}
    pq.write_table(pa.table(queries), tmp_path / "queries.parquet")
    more = UserWordsConfig(parquet="queries.parquet", user="who", text="q")
    both = config.sources.model_copy(update={"user_words": (more, *config.sources.user_words)})
    batches = list(sources.user_words(config.model_copy(update={"sources": both}), batch_rows=2))
    assert all(batch.schema == USER_WORDS_SCHEMA and batch.num_rows <= 2 for batch in batches)
    found = [(row[USER_ID], row["text"]) for row in rows(iter(batches))]
    assert found == [("u", "a"), ("u", "b"), ("v", "z"), ("w", "x"), ("é", "s")]


def test_profiles_come_version_by_version(make_config: MakeConfig, tmp_path: Path) -> None:
    columns = {
        "id": [2, 10, 2],
        "since": pa.array([T, None, T - US], TIMESTAMP),
        "country": ["DE", None, "FR"],
        "segment": ["x", "y", "z"],  # called like the canonical one, and not it
    }
    pq.write_table(pa.table(columns), tmp_path / "users.parquet")
    config = make_config(items=pa.table({ITEM_ID: ["a"]}))
    assert list(sources.users(config)) == []
    table = UsersConfig(parquet="users.parquet", key="id", timestamp="since", segment="country")
    with_users = config.model_copy(update={"sources": config.sources.model_copy(update={"users": table})})
    found = rows(sources.users(with_users))
    assert [(row[USER_ID], row[EVENT_TIMESTAMP], row["segment"]) for row in found] == [
        ("10", BEGINNING, None),
        ("2", T - US, "FR"),
        ("2", T, "DE"),
    ]
    assert [row["country"] for row in found] == [None, "FR", "DE"]
    assert [row[USER_ID] for row in rows(sources.users(with_users, start=T - US))] == ["2"]
    pq.write_table(pa.table({**columns, "id": [2, 10, 10], "since": [T, T, T]}), tmp_path / "users.parquet")
    with pytest.raises(RowError, match="comes twice; one id may have several rows only at different times"):
        list(sources.users(with_users))


def test_events_come_with_their_segments_where_asked(make_config: MakeConfig) -> None:
    table = events_table(["u", "u", "v"], ["a", "a", "b"], [T, T, T], land=["FR", "DE", None])
    config = make_config(interactions=table, interactions_keys={"segment": "land"})
    found = rows(sources.interactions(config, segments=True))
    assert [(row[USER_ID], row["segment"], row["liked"]) for row in found] == [("u", "DE", True), ("v", None, True)]
    assert "segment" not in rows(sources.interactions(config))[0]
    without = make_config(interactions=table)
    assert [row["segment"] for row in rows(sources.interactions(without, segments=True))] == [None, None]


def with_sql_events(config: Config, url: str, query: str, **keys: Any) -> Config:
    """Return ``config`` with the interactions from a query."""
    events = InteractionsConfig(sql=url, query=query, **keys)
    return config.model_copy(update={"sources": SourcesConfig(items=config.sources.items, interactions=events)})


def test_sql_and_parquet_give_the_same_table(make_config: MakeConfig, postgres_url: str) -> None:
    time = "timestamptz '2024-05-01 12:00:00+00'"
    query = (
        f"select 10 as user_id, 'a' as item_id, {time} as event_timestamp, 4.5::numeric as r "
        f"union all select 9, 'b', {time}, null union all select 9, 'b', {time}, 2"
    )
    table = events_table([10, 9, 9], ["a", "b", "b"], [T, T, T], r=pa.array([4.5, None, 2.0]))
    keys = {"rating": "r", "liked_from": 4.0}
    config = make_config(interactions=table, interactions_keys=keys)
    found = rows(sources.interactions(with_sql_events(config, postgres_url, query, **keys)))
    assert found == rows(sources.interactions(config)) and len(found) == 2


def test_a_database_that_sorts_otherwise_is_noticed(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("recsys_llm.sources.sql.BINARY_COLLATIONS", {"sqlite": "NOCASE"})
    (tmp_path / "shop.db").touch()
    time = "'2024-05-01 12:00:00+00:00'"
    query = f"select 'a' as user_id, 'i' as item_id, {time} as event_timestamp union all select 'B', 'i', {time}"
    config = with_sql_events(make_config(), "sqlite:///shop.db", query)
    with pytest.raises(SchemaError, match="rows are not sorted by user_id.*binary collation"):
        list(sources.interactions(config))


def test_a_relative_sqlite_path_starts_at_the_repository(tmp_path: Path) -> None:
    (tmp_path / "shop.db").touch()
    query = "select 'a' as item_id, '2024-05-01 12:00:00+00:00' as event_timestamp"
    items = ItemsConfig(sql="sqlite:///shop.db", query=query, category=None)
    unused = InteractionsConfig(parquet="unused.parquet")
    config = Config(sources=SourcesConfig(items=items, interactions=unused), root=tmp_path)
    assert [row[ITEM_ID] for row in rows(sources.items(config))] == ["a"]


def test_all_of_movielens_is_read(movielens_small: Path) -> None:
    config = Config(
        sources=SourcesConfig(
            items=ItemsConfig(parquet="items.parquet"),
            interactions=InteractionsConfig(parquet="interactions.parquet", rating="rating", liked_from=4.0),
            user_words=UserWordsConfig(parquet="tags.parquet", text="tag"),
        ),
        root=movielens_small,
    )
    items = pa.Table.from_batches(list(sources.items(config)))
    assert items.num_rows == 9742 and {"title", "text"} <= set(items.column_names)
    assert items[EVENT_TIMESTAMP].to_pylist().count(BEGINNING) == 13
    events = pa.Table.from_batches(list(sources.interactions(config)))
    raw = pq.read_table(movielens_small / "interactions.parquet")
    assert events.num_rows == raw.num_rows == 100_836
    assert sum(events["liked"].to_pylist()) == sum(rating >= 4.0 for rating in raw["rating"].to_pylist())
    assert sum(batch.num_rows for batch in sources.user_words(config)) == 3683


@pytest.mark.parametrize("order_by", ["user", "item", "time"])
def test_all_of_online_retail_is_read(online_retail: Path, order_by: Any) -> None:
    keys = {"event": "event", "ignore_events": ("cancel",), "price": "unit_price"}
    config = Config(
        sources=SourcesConfig(
            items=ItemsConfig(parquet="items.parquet"),
            interactions=InteractionsConfig(parquet="interactions.parquet", **keys),
        ),
        root=online_retail,
    )
    assert sum(batch.num_rows for batch in sources.items(config)) == 3791
    raw = pq.read_table(online_retail / "interactions.parquet").to_pandas()
    kept = raw[raw["event"] != "cancel"].drop_duplicates([USER_ID, ITEM_ID, EVENT_TIMESTAMP])
    assert sum(batch.num_rows for batch in sources.interactions(config, order_by=order_by)) == len(kept) == 386_278
