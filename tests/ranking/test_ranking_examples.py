from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from recsys_llm.errors import SchemaError, TrainingError
from recsys_llm.ranking.examples import sample_examples
from tests.ranking.fake_history import hour, world

START, END = hour(24 * 12), hour(24 * 30)


def sample(interactions, items, **changes):
    return sample_examples(interactions, items, **({"start": START, "end": END, "negatives": 4, "seed": 1} | changes))


@pytest.mark.parametrize("popular_share", [0.0, 0.5, 1.0])
def test_examples_by_the_rules(popular_share):
    interactions, items = world()
    known = items.set_index("item_id")["event_timestamp"]
    inside = interactions[(interactions["event_timestamp"] > START) & (interactions["event_timestamp"] <= END)]
    fair = inside[known[inside["item_id"]].to_numpy() < inside["event_timestamp"].to_numpy()]
    baskets = interactions.groupby(["user_id", "event_timestamp"])["item_id"].agg(set)

    examples = sample(interactions, items, popular_share=popular_share)

    keys = ["user_id", "item_id", "event_timestamp"]
    positives = examples[examples["label"] == 1]
    assert sorted(positives[keys].itertuples(index=False)) == sorted(fair[keys].itertuples(index=False))
    assert examples.attrs == {
        "positives": len(fair),
        "dropped_unknown": len(inside) - len(fair),
        "dropped_alone": 0,
    }
    assert 0 < len(inside) - len(fair)
    assert (known[examples["item_id"]].to_numpy() < examples["event_timestamp"].to_numpy()).all()
    for _, group in examples.groupby("group"):
        assert (group["label"] == 1).sum() == 1
        assert len(group) == 5 == group["item_id"].nunique()
        assert group[["user_id", "event_timestamp"]].drop_duplicates().shape[0] == 1
        others = baskets[(group["user_id"].iloc[0], group["event_timestamp"].iloc[0])]
        assert not set(group.loc[group["label"] == 0, "item_id"]) & others
    assert examples["event_timestamp"].is_monotonic_increasing
    assert str(examples["event_timestamp"].dtype) == "datetime64[us, UTC]"


def test_same_examples_whatever_the_order_and_repetition_of_rows():
    interactions, items = world()
    shuffled = pd.concat([interactions.sample(frac=1, random_state=3), interactions.iloc[:9]])
    pd.testing.assert_frame_equal(sample(interactions, items), sample(shuffled, items.iloc[::-1]))
    assert not sample(interactions, items, seed=2).equals(sample(interactions, items))


def test_events_after_the_end_change_nothing():
    interactions, items = world()
    early = interactions[interactions["event_timestamp"] <= END]
    pd.testing.assert_frame_equal(sample(interactions, items), sample(early, items))


def test_position_in_the_group_says_nothing():
    interactions, items = world(events=900)
    place = sample(interactions, items)["label"].to_numpy().reshape(-1, 5).argmax(axis=1)
    assert np.bincount(place, minlength=5).min() > 0.7 * len(place) / 5


def test_popular_negatives_follow_the_counts_up_to_start_and_log_q_says_so():
    items = pd.DataFrame({"item_id": ["a", "b", "c", "d"], "event_timestamp": hour(0)})
    before = [("a", 6), ("b", 3), ("c", 1)]
    rows = [("x", item, hour(1 + n + 0.01 * ord(item))) for item, count in before for n in range(count)]
    rows += [(f"u{n}", "d", hour(1000 + n)) for n in range(600)]
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "event_timestamp"])
    examples = sample_examples(
        interactions, items, start=hour(900), end=hour(3000), negatives=1, popular_share=1.0, seed=0
    )
    share = examples.loc[examples["label"] == 0, "item_id"].value_counts(normalize=True)
    assert share.reindex(["a", "b", "c"]).to_numpy() == pytest.approx([0.6, 0.3, 0.1], abs=0.06)
    chance = np.exp(examples.groupby("item_id")["log_q"].first())
    assert chance[["a", "b", "c"]].to_numpy() == pytest.approx([0.6, 0.3, 0.1], abs=1e-3)
    uniform = sample_examples(interactions, items, start=hour(900), end=hour(3000), negatives=1, popular_share=0.0)
    assert np.exp(uniform["log_q"]).to_numpy() == pytest.approx(0.25)


def test_a_small_catalogue_gives_fewer_negatives_and_an_event_alone_is_dropped():
    items = pd.DataFrame({"item_id": ["a", "b", "c"], "event_timestamp": [hour(0), hour(0), hour(5)]})
    interactions = pd.DataFrame(
        [("u", "a", hour(3)), ("v", "a", hour(4)), ("v", "b", hour(4)), ("u", "c", hour(5)), ("u", "c", hour(6))],
        columns=["user_id", "item_id", "event_timestamp"],
    )
    examples = sample_examples(interactions, items, start=hour(0), end=hour(9), negatives=10)
    found = {
        (user, at): sorted(group["item_id"]) for (user, at), group in examples.groupby(["user_id", "event_timestamp"])
    }
    assert found == {("u", hour(3)): ["a", "b"], ("u", hour(6)): ["a", "b", "c"]}
    assert examples.attrs == {"positives": 2, "dropped_unknown": 1, "dropped_alone": 2}
    assert examples["group"].unique().tolist() == [0, 1]


def test_max_positives():
    interactions, items = world()
    examples = sample(interactions, items, max_positives=7)
    assert examples["label"].sum() == 7 == examples["group"].nunique()


def test_refusals():
    interactions, items = world()
    with pytest.raises(TrainingError, match="no example: 0 events"):
        sample(interactions, items, start=hour(9000), end=hour(9001))
    with pytest.raises(TrainingError, match="negatives >= 1"):
        sample(interactions, items, negatives=0)
    with pytest.raises(SchemaError, match="'item_id' is missing"):
        sample(interactions.rename(columns={"item_id": "item"}), items)
    naive = interactions.assign(event_timestamp=interactions["event_timestamp"].dt.tz_localize(None))
    with pytest.raises(SchemaError, match="expected timestamp"):
        sample(naive, items)
    with pytest.raises(SchemaError, match="row 0: expected a value, found null"):
        sample(interactions, items.assign(item_id=[None, *items["item_id"][1:]]))
    with pytest.raises(SchemaError, match="expected strings"):
        sample(interactions.assign(user_id=7), items)
