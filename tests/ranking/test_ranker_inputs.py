from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from recsys_llm.errors import ServiceError
from recsys_llm.ranking.cooccurrence import CooccurrenceConfig, CooccurrenceModel
from recsys_llm.ranking.inputs import BASELINE_COLUMNS, RankerInputs
from recsys_llm.retrieval.blocks import EntityBlock, FeatureBatch, Status
from tests.ranking.fake_history import FakeHistory, block, hour, world

USERS = [
    {
        "n_events": 3,
        "mean_rating": 4.5,
        "mean_price": 2.0,
        "last_group_size": 2,
        "recent_items": ["b", "a", "b"],
        "categories": ["X", "Y", "gone"],
        "category_shares": [0.75, 0.25, 0.5],
    },
    dict.fromkeys(
        ("n_events", "mean_rating", "mean_price", "last_group_size", "recent_items", "categories", "category_shares")
    ),
]
ITEMS = [
    {"n_events": 7, "n_events_30d": 1, "mean_rating": 3.0, "price": 8.0, "category": "X, Y"},
    {"n_events": 1, "n_events_30d": 0, "mean_rating": None, "price": 0.0, "category": "Y,Z"},
    {"n_events": None, "n_events_30d": None, "mean_rating": None, "price": None, "category": None},
    {"n_events": 0, "n_events_30d": 0, "mean_rating": None, "price": 1.0, "category": " "},
]


def model():
    rows = [("u", "a", 1), ("u", "b", 2), ("v", "a", 1), ("v", "b", 1), ("v", "c", 2)]
    table = pd.DataFrame(rows, columns=["user_id", "item_id", "hour"])
    table["event_timestamp"] = pd.DatetimeIndex([hour(n) for n in table.pop("hour")])
    return CooccurrenceModel.fit(table, hour(9), CooccurrenceConfig(decay=0.5, shrinkage=0.0))


def hand_made(user_rows, item_rows):
    return FeatureBatch(
        "ranker_baseline_v1",
        block("user", ["u", "new"], USERS),
        block("item", ["a", "b", "c", "new"], ITEMS),
        np.array(user_rows),
        np.array(item_rows),
    )


def column(values, name):
    return values[:, BASELINE_COLUMNS.index(name)]


def test_columns_of_hand_made_blocks():
    values = RankerInputs(model()).matrix(hand_made([0, 0, 0, 0, 1], [0, 1, 2, 3, 0]))
    assert values.dtype == np.float32 and values.shape == (5, len(BASELINE_COLUMNS)) and values.flags.c_contiguous
    nan = np.nan
    expected = {
        "item_log_events": [math.log(8), math.log(2), nan, 0, math.log(8)],
        "item_log_events_30d": [math.log(2), 0, nan, 0, math.log(2)],
        "item_mean_rating": [3, nan, nan, nan, 3],
        "item_log_price": [math.log(8), nan, nan, 0, math.log(8)],
        "user_log_events": [math.log(4)] * 4 + [nan],
        "user_mean_rating": [4.5] * 4 + [nan],
        "user_log_last_basket": [math.log(3)] * 4 + [nan],
        "log_price_ratio": [math.log(4), nan, nan, -math.log(2), nan],
        "category_affinity": [1.0, 0.25, nan, nan, nan],
        "log_repeats": [math.log(2), math.log(3), 0, 0, nan],
        "recency": [0.5, 1.0, 0, 0, nan],
    }
    for name, wanted in expected.items():
        assert column(values, name) == pytest.approx(wanted, nan_ok=True), name
    counted = model()
    similarity, follow = counted.neighbours.toarray(), counted.successors.toarray()  # of a, b, c
    knn = [0.5 * similarity[0] + 1.25 * similarity[1]][0]
    transition = (follow[0] + follow[1]) / 2
    assert np.exp(column(values, "item_knn")) - 1e-4 == pytest.approx([*knn, nan, nan], nan_ok=True, abs=1e-6)
    assert np.exp(column(values, "transition")) - 1e-4 == pytest.approx([*transition, nan, nan], nan_ok=True, abs=1e-6)
    assert knn[2] > 0 and transition[2] > 0


def test_a_pair_does_not_depend_on_the_rest_of_the_batch():
    interactions, items = world()
    history = FakeHistory(interactions, items)
    examples = interactions.sort_values("event_timestamp").iloc[-80:].reset_index(drop=True)
    batch = history.training_set(examples, service="ranker_baseline_v1")
    inputs = RankerInputs(CooccurrenceModel.fit(interactions[interactions["event_timestamp"] < hour(300)], hour(300)))
    whole = inputs.matrix(batch)
    order = np.random.default_rng(0).permutation(len(examples))
    np.testing.assert_array_equal(inputs.matrix(batch.take(order)), whole[order])
    for row in (0, 40, 79):
        one = history.training_set(examples.iloc[[row]], service="ranker_baseline_v1")
        np.testing.assert_array_equal(inputs.matrix(one)[0], whole[row])
    assert inputs.matrix(batch.take(order[:0])).shape == (0, len(inputs.names))


def test_learned_columns_come_from_the_batch_by_name():
    base = hand_made([0, 1], [0, 1])
    user = EntityBlock(
        "user",
        base.user.ids,
        {
            **base.user.columns,
            "user_text_embedding_v1__embedding": np.array([[1, 0], [0, 2]], np.float32),
            "user_next_items_v1__item_ids": pa.array([["c", "a"], None]),
            "user_next_items_v1__log_probs": pa.array([[-1.0, -2.0], None], pa.list_(pa.float32())),
            "user_next_items_v1__entropy": np.array([3.5, np.nan], np.float32),
        },
    )
    vectors = np.array([[3, 4], [1, 0], [0, 0], [1, 1]], np.float32)
    item = EntityBlock("item", base.item.ids, {**base.item.columns, "item_text_embedding_v1__embedding": vectors})
    batch = replace(base, service="ranker_v1", user=user, item=item)
    inputs = RankerInputs(model(), tuple(batch.pairwise_names))
    values = inputs.matrix(batch)
    np.testing.assert_array_equal(values[:, : len(BASELINE_COLUMNS)], RankerInputs(model()).matrix(base))
    named = dict(zip(inputs.names, values.T, strict=True))
    assert named["next_items_entropy"] == pytest.approx([3.5, np.nan], nan_ok=True)
    assert named["pairwise__text_cosine"] == pytest.approx([0.6, 0.0], nan_ok=True)
    assert named["pairwise__next_reciprocal_rank"] == pytest.approx([0.5, np.nan], nan_ok=True)
    assert named["pairwise__next_log_prob"] == pytest.approx([-2.0, np.nan], nan_ok=True)
    np.testing.assert_array_equal(inputs.matrix(batch, batch.pairwise), values)
    with pytest.raises(ServiceError, match="expected the feature|no feature"):
        inputs.matrix(base)
    for status, known in ((Status.PRESENT, [True, False]), (Status.FALLBACK, [False, False])):
        # What stands in for a user's own next items is not theirs; the baseline never looks at them.
        states = {"user_next_items_v1": np.array([status, Status.MISSING], np.uint8)}
        values = inputs.matrix(replace(batch, user=replace(user, status=states)))
        for name, column in zip(
            inputs.names[len(BASELINE_COLUMNS) :], values[:, len(BASELINE_COLUMNS) :].T, strict=True
        ):
            assert (~np.isnan(column)).tolist() == ([True, True] if name == "pairwise__text_cosine" else known), name
        np.testing.assert_array_equal(values[:, : len(BASELINE_COLUMNS)], RankerInputs(model()).matrix(base))


def test_a_lacking_feature_is_named():
    base = hand_made([0], [0])
    columns = {name: value for name, value in base.item.columns.items() if name != "item_stats__price"}
    with pytest.raises(ServiceError, match="item_stats__price"):
        RankerInputs(model()).matrix(replace(base, item=EntityBlock("item", base.item.ids, columns)))
