"""Next items and states of one model move together."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from feast import Entity, FeatureView, Field, FileSource
from feast.types import Int64

from recsys_llm import schema
from recsys_llm.commands.migration import migrate
from recsys_llm.commands.migration.moves import open_moves
from recsys_llm.commands.migration.sequence_views import check_together, left_behind
from recsys_llm.errors import MigrationError
from recsys_llm.timestamps import now

USER = Entity(name=schema.USER, join_keys=[schema.USER_ID])
LISTS, STATES = schema.USER_NEXT_ITEMS, schema.USER_STATES


def view(name: str, producer: str, model: str, *, filled: bool = True) -> FeatureView:
    made = FeatureView(
        name=name,
        entities=[USER],
        ttl=timedelta(0),
        schema=[Field(name=schema.ROW_ID, dtype=Int64)],
        source=FileSource(path=f"/{name}", timestamp_field=schema.EVENT_TIMESTAMP),
        tags=schema.producer_tag(producer, source="interactions", model=model),
    )
    made.materialization_intervals = [(now(), now())] if filled else []
    return made


def registry(*, filled: bool = True) -> Any:
    views = [
        view(LISTS, schema.NEXT_ITEMS, "seqgan_v1"),
        view("user_next_items_v2", schema.NEXT_ITEMS, "seqgan_v2"),
        view("user_next_items_v1_again", schema.NEXT_ITEMS, "seqgan_v1"),
        view(STATES, schema.SEQUENCE_STATES, "seqgan_v1", filled=filled),
        view("user_states_v2", schema.SEQUENCE_STATES, "seqgan_v2"),
        view("user_states_v3", schema.SEQUENCE_STATES, "seqgan_v3"),
    ]
    return SimpleNamespace(list_feature_views=lambda: views)


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ({LISTS: "user_next_items_v2"}, "user_states_v1 is of the model seqgan_v1, as user_next_items_v1 is.*--with"),
        ({STATES: "user_states_v2"}, "user_next_items_v1 is of the model seqgan_v1, as user_states_v1 is"),
        ({LISTS: "user_next_items_v2", STATES: "user_states_v3"}, "user_states_v3 is of the model seqgan_v3"),
    ],
)
def test_views_of_one_model_are_not_parted(pairs: dict[str, str], message: str) -> None:
    store = registry()
    with pytest.raises(MigrationError, match=message):
        check_together(store, open_moves(store, pairs), {})


@pytest.mark.parametrize(
    ("pairs", "filled"),
    [
        ({LISTS: "user_next_items_v1_again"}, True),  # the same model
        ({LISTS: "user_next_items_v2"}, False),  # states that nobody has
    ],
)
def test_views_that_may_move_alone(pairs: dict[str, str], filled: bool) -> None:
    store = registry(filled=filled)
    assert left_behind(store, open_moves(store, pairs), {}) == []


def test_together_they_move() -> None:
    store, again = registry(), "user_next_items_v1_again"
    moves = open_moves(store, {again: "user_next_items_v2", STATES: "user_states_v2"})
    assert left_behind(store, moves, {LISTS: again}) == []
    assert "user_next_items_v1 is of" in left_behind(store, moves, {})[0]  # still read


def test_states_follow_next_items_that_moved_alone() -> None:
    views = [view for view in registry().list_feature_views() if not view.name.endswith("_again")]
    store = SimpleNamespace(list_feature_views=lambda: views)
    assert left_behind(store, open_moves(store, {STATES: "user_states_v2"}), {LISTS: "user_next_items_v2"}) == []


def test_a_cutover_is_refused_before_anything_changes(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(migrate, "open_store", lambda *_, **__: registry())
    with pytest.raises(MigrationError, match="streams go on from states with their own model only"):
        migrate.cutover(tmp_path, {LISTS: "user_next_items_v2"})
    assert not list(tmp_path.iterdir())
