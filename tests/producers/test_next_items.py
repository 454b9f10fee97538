"""Next items as a feature: which model makes which row, and what users without a history are given."""

from __future__ import annotations

import math
from collections import Counter
from datetime import datetime, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_llm.config import SequenceModelConfig
from recsys_llm.errors import LeakageError, RowError
from recsys_llm.producers.next_items import NextItems
from recsys_llm.producers.next_vectors import NextVectors
from recsys_llm.producers.rollout_lists import RolloutLists
from recsys_llm.producers.sequence_states import SequenceStates
from recsys_llm.seqgan import Histories, ItemVectors, SeqGANConfig, next_items, train
from recsys_llm.seqgan.rolling import RollingModel
from recsys_llm.timestamps import from_micros, to_micros
from tests.builders import hours
from tests.producers.memory_source import in_memory
from tests.producers.user_world import DAY, ITEMS, PERIODS, World, worlds
from tests.seqgan.seqgan_data import table

LONG_AGO, FOREVER = hours(-24 * 365 * 60), hours(24 * 365)
CUTOFFS = (hours(30), hours(61), hours(96))
TOP_N = 3
TINY = SeqGANConfig(embedding_dim=4, hidden_dim=4, mle_epochs=1, adversarial_epochs=0, max_groups=5)
moments = st.integers(-2, 130).map(hours)


@pytest.fixture(scope="module")
def models() -> RollingModel:
    """Three models over the items of the world, each trained on other events."""
    rng = np.random.default_rng(0)
    known = [(f"u{n % 9}", str(rng.choice(ITEMS[:3])), hours(n / 9 - 10)) for n in range(900)]
    text = ItemVectors(tuple(ITEMS), rng.normal(size=(len(ITEMS), 5)).astype(np.float32), "encoder")
    return RollingModel(tuple(train(table(known), TINY, until=cut, item_vectors=text, device="cpu") for cut in CUTOFFS))


def producer(kind, world: World, models: RollingModel, **settings):
    asked = SequenceModelConfig(
        checkpoint="c",
        top_n=TOP_N,
        granularity=world.granularity,
        cold_start_days=world.days,
        cold_start_users=world.least_users,
        **settings,
    )
    device = {} if kind is NextVectors else {"device": "cpu"}
    return kind(world.config(), asked, models, **device)


def rows_of(kind, world: World, models: RollingModel, *intervals: tuple[datetime, datetime]) -> list[dict]:
    made = producer(kind, world, models)
    found = []
    with in_memory(world.tables()):
        for interval in intervals:
            for due in made.inputs(*interval):
                computed = made.compute(due.rows, due.events).to_pylist()
                found += [left | right for left, right in zip(due.rows.to_pylist(), computed, strict=True)]
    return found


def stamp_of(time: datetime, granularity: str) -> datetime:
    period, micros = PERIODS[granularity], to_micros(time)
    return from_micros(micros + 1 if not period else (micros // period + 1) * period)


def expected_rows(world: World, models: RollingModel, start: datetime, end: datetime) -> dict:
    """Return (user, stamp) -> place of the model, events that the row may know: by brute force."""
    found = {}
    bounds = [*(model.trained_until for model in models.checkpoints), datetime.max.replace(tzinfo=FOREVER.tzinfo)]
    for number, (low, high) in enumerate(zip(bounds, bounds[1:], strict=False)):
        for user, _, time, _, _ in world.events:
            stamp = max(stamp_of(time, world.granularity), low)
            if start < stamp <= end and stamp < high:
                known = [
                    (who, item, when)
                    for who, item, when, _, _ in world.events
                    if who == user and max(stamp_of(when, world.granularity), low) <= stamp
                ]
                found[user, stamp] = number, known
    return found


@settings(max_examples=60, deadline=None)
@given(world=worlds, start=moments, end=moments, between=moments)
def test_each_row_is_made_by_the_newest_model_before_it_from_events_before_it(models, world, start, end, between):
    start, end = min(start, end), max(start, end)
    if end < CUTOFFS[0]:
        with pytest.raises(LeakageError, match="c was trained on data up to"):
            rows_of(NextItems, world, models, (start, end))
        return
    every = rows_of(NextItems, world, models, (start, end))
    found = {(row["user_id"], row["event_timestamp"]): row for row in every if not row["is_fallback"]}
    expected = expected_rows(world, models, start, end)
    assert found.keys() == expected.keys()
    for key, (number, known) in expected.items():
        model = models.checkpoints[number]
        assert model.trained_until <= key[1] and all(time < key[1] for _, _, time in known)
        histories = Histories.from_interactions(table(known))
        predicted = next_items(model, histories, np.array([histories.groups - 1]), TOP_N, device="cpu")
        row = found[key]
        assert row["item_ids"] == predicted.item_lists().to_pylist()[0]
        np.testing.assert_allclose(row["log_probs"], predicted.log_prob_lists().to_pylist()[0], atol=1e-5)
        np.testing.assert_allclose(row["next_query"], predicted.queries[0], atol=1e-5)
        assert row["model_trained_until"] == model.trained_until.isoformat()
        assert row["provenance"] == "history"
    between = min(max(between, CUTOFFS[0], start), end)
    halves = rows_of(NextItems, world, models, (start, between), (between, end))
    assert sorted(map(_identity, halves)) == sorted(map(_identity, every))


def _identity(row: dict) -> tuple:
    return row["user_id"], row["event_timestamp"], row["content_hash"]


@settings(max_examples=60, deadline=None)
@given(world=worlds)
def test_users_without_a_history_are_given_what_was_liked_lately(models, world):
    found = [row for row in rows_of(NextItems, world, models, (LONG_AGO, FOREVER)) if row["is_fallback"]]
    stamps = {row["event_timestamp"] for row in found if row["user_id"] == "global"}
    likes = [(item, time) for _, item, time, liked, _ in world.events if liked]
    nights = {from_micros((to_micros(time) // DAY + 1) * DAY) for _, time in likes}
    recent = {
        stamp: [item for item, time in likes if stamp - timedelta(days=world.days) <= time < stamp]
        for stamp in {night for night in nights if night >= CUTOFFS[0]} | set(CUTOFFS)
    }
    assert stamps == {stamp for stamp, items in recent.items() if items}
    for row in found:
        assert row["model_trained_until"] is None and row["next_query"] is None
        assert row["provenance"] == ("global" if row["user_id"] == "global" else "segment")
        if row["user_id"] != "global":
            continue
        counts = Counter(recent[row["event_timestamp"]])
        top = sorted(counts, key=lambda item: (-counts[item], item))[:TOP_N]
        total = sum(counts.values())
        assert row["item_ids"] == top
        assert row["log_probs"] == pytest.approx([math.log(counts[item] / total) for item in top], abs=1e-5)
        assert row["entropy"] == pytest.approx(-sum(n / total * math.log(n / total) for n in counts.values()), abs=1e-5)
        model = [one for one in models.checkpoints if one.trained_until <= row["event_timestamp"]][-1]
        mean = model.text[model.vocabulary.encode(pa.array(top))].sum(0)
        np.testing.assert_allclose(row["centroid"], mean / np.linalg.norm(mean), atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(world=worlds, end=st.integers(96, 130).map(hours))
def test_a_state_is_the_newest_of_its_user(models, world, end):
    found = rows_of(SequenceStates, world, models, (LONG_AGO, end))
    newest = {}
    for (user, stamp), (_, known) in expected_rows(world, RollingModel(models.checkpoints[-1:]), LONG_AGO, end).items():
        newest[user] = max(newest.get(user, (stamp, known)), (stamp, known))
    assert {row["user_id"]: row["event_timestamp"] for row in found} == {user: row[0] for user, row in newest.items()}
    for row in found:
        assert from_micros(row["newest_event"]) == max(time for *_, time in newest[row["user_id"]][1])


@settings(max_examples=20, deadline=None)
@given(world=worlds, end=moments)
def test_rollout_lists_are_due_where_next_items_are_and_come_out_the_same_again(models, world, end):
    if end < CUTOFFS[0]:
        return
    found = rows_of(RolloutLists, world, models, (LONG_AGO, end))
    assert {(row["user_id"], row["event_timestamp"]) for row in found} == set(
        expected_rows(world, models, LONG_AGO, end)
    )
    for row in found:
        assert 0 < len(row["rollout_items"]) == len(row["rollout_shares"]) <= TOP_N
        assert all(0 < share <= 1 for share in row["rollout_shares"])
    assert rows_of(RolloutLists, world, models, (LONG_AGO, end)) == found


def test_each_models_item_vectors_are_valid_from_its_cutoff(models):
    world = World()
    every = rows_of(NextVectors, world, models, (LONG_AGO, FOREVER))
    assert len(every) == len(ITEMS) * len(CUTOFFS)
    assert {row["event_timestamp"] for row in every} == set(CUTOFFS)
    second = rows_of(NextVectors, world, models, (CUTOFFS[0], CUTOFFS[1]))
    assert [row["event_timestamp"] for row in second] == [CUTOFFS[1]] * len(ITEMS)
    assert second[0]["next_vector"] != every[0]["next_vector"]
    with pytest.raises(LeakageError):
        rows_of(NextVectors, world, models, (LONG_AGO, CUTOFFS[0] - timedelta(microseconds=1)))


def test_no_rows_for_cold_users_where_they_are_switched_off(models):
    world = World(events=[("u1", "i1", hours(40), True, None)], days=0)
    found = rows_of(NextItems, world, models, (LONG_AGO, FOREVER))
    assert {row["user_id"] for row in found} == {"u1"}


def test_a_real_user_with_a_reserved_id_is_refused(models):
    world = World(events=[("segment:DE", "i1", hours(40), True, None)])
    with pytest.raises(RowError, match="user 'segment:DE' has an id that is reserved"):
        rows_of(NextItems, world, models, (LONG_AGO, FOREVER))
