from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from recsys_llm.errors import CheckpointError, LeakageError, TrainingError
from recsys_llm.ranking.cooccurrence import CooccurrenceConfig, CooccurrenceModel
from tests.ranking.fake_history import hour, world

UNTIL = hour(24 * 20)


def early(interactions):
    return interactions[interactions["event_timestamp"] < UNTIL]


def brute_force_similarity(interactions, shrinkage):
    lists = interactions.groupby("user_id")["item_id"].agg(set)
    weight = {user: 1 / math.log1p(len(items)) for user, items in lists.items()}

    def norm(item):
        return math.sqrt(sum(weight[user] for user, items in lists.items() if item in items) + shrinkage)

    def similarity(a, b):
        both = sum(weight[user] for user, items in lists.items() if a in items and b in items)
        return 0.0 if a == b else both / norm(a) / norm(b)

    return similarity


def brute_force_transition(interactions):
    baskets = {
        user: [set(basket) for _, basket in mine.sort_values("event_timestamp").groupby("event_timestamp")["item_id"]]
        for user, mine in interactions.groupby("user_id")
    }
    count = interactions.drop_duplicates().groupby("item_id").size()

    def transition(a, b):
        steps = (pair for mine in baskets.values() for pair in pairwise(mine))
        return sum(a in before and b in after for before, after in steps) / count[a]

    return transition


def test_both_matrices_against_brute_force():
    interactions = early(world()[0])
    model = CooccurrenceModel.fit(interactions, UNTIL, CooccurrenceConfig(shrinkage=2.0))
    similarity, transition = brute_force_similarity(interactions, 2.0), brute_force_transition(interactions)
    ids = list(model.item_ids)
    assert model.neighbours.toarray() == pytest.approx(np.array([[similarity(a, b) for b in ids] for a in ids]))
    assert model.successors.toarray() == pytest.approx(np.array([[transition(a, b) for b in ids] for a in ids]))
    assert model.successors.nnz > 20


def test_scores_against_brute_force():
    interactions = early(world()[0])
    model = CooccurrenceModel.fit(interactions, UNTIL, CooccurrenceConfig(decay=0.5))
    similarity, transition = brute_force_similarity(interactions, 5.0), brute_force_transition(interactions)
    lists = pa.array([["i1", "i2", "unheard of", "i1"], None, ["i4"], []])
    recent, last = model.recent(lists), model.last_basket(lists, np.array([2, np.nan, 1, 0], np.float32))
    users = np.array([2, 0, 0, 1, 3, 0])
    codes = model.codes(np.array(["i1", "i5", "unheard of", "i1", "i1", "i2"], object))
    knn = model.neighbour_scores(recent, users, codes)
    expected = [
        similarity("i4", "i1"),
        sum(weight * similarity(item, "i5") for item, weight in (("i1", 1), ("i2", 0.5), ("i1", 0.125))),
        np.nan,
        np.nan,
        np.nan,
        1.125 * similarity("i1", "i2"),
    ]
    assert knn == pytest.approx(expected, nan_ok=True)
    expected = [
        transition("i4", "i1"),
        (transition("i1", "i5") + transition("i2", "i5")) / 2,
        np.nan,
        np.nan,
        np.nan,
        (transition("i1", "i2") + transition("i2", "i2")) / 2,
    ]
    assert model.successor_scores(last, users, codes) == pytest.approx(expected, nan_ok=True)


def test_only_the_best_neighbours_are_kept():
    interactions = early(world()[0])
    whole = CooccurrenceModel.fit(interactions, UNTIL).neighbours.toarray()
    cut = CooccurrenceModel.fit(interactions, UNTIL, CooccurrenceConfig(neighbours=3)).neighbours.toarray()
    for full, kept in zip(whole, cut, strict=True):
        assert np.sort(kept[kept > 0])[::-1] == pytest.approx(np.sort(full)[::-1][:3])


def test_events_at_or_after_until_are_refused():
    interactions = world()[0]
    with pytest.raises(LeakageError, match="strictly before 2024-01-21 00:00:00"):
        CooccurrenceModel.fit(interactions, UNTIL)
    tie = pd.concat([early(interactions), interactions.iloc[:1].assign(event_timestamp=pd.Timestamp(UNTIL))])
    with pytest.raises(LeakageError, match="found 1 of"):
        CooccurrenceModel.fit(tie, UNTIL)
    with pytest.raises(TrainingError, match="at least one event"):
        CooccurrenceModel.fit(interactions.iloc[:0], UNTIL)


def test_row_order_and_duplicates_change_nothing():
    interactions = early(world()[0])
    again = pd.concat([interactions.sample(frac=1, random_state=1), interactions.iloc[:5]])
    assert CooccurrenceModel.fit(interactions, UNTIL).fingerprint == CooccurrenceModel.fit(again, UNTIL).fingerprint
    fewer = CooccurrenceModel.fit(interactions.iloc[1:], UNTIL)
    assert fewer.fingerprint != CooccurrenceModel.fit(interactions, UNTIL).fingerprint


def test_save_load_and_alteration(tmp_path):
    model = CooccurrenceModel.fit(early(world()[0]), UNTIL)
    model.save(tmp_path / "model")
    model.save(tmp_path / "model")  # replaces
    assert CooccurrenceModel.load(tmp_path / "model").fingerprint == model.fingerprint
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model"]
    for name in ("tensors.safetensors", "manifest.json"):
        file = tmp_path / "model" / name
        good = file.read_bytes()
        file.write_bytes(good.replace(b"i1", b"i9", 1) if name == "manifest.json" else good[:-1] + b"\x07")
        with pytest.raises(CheckpointError, match=f"{name}: altered"):
            CooccurrenceModel.load(tmp_path / "model")
        file.unlink()
        with pytest.raises(CheckpointError, match="expected manifest.json"):
            CooccurrenceModel.load(tmp_path / "model")
        file.write_bytes(good)


def test_a_foreign_directory_is_not_overwritten(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="found something else"):
        CooccurrenceModel.fit(early(world()[0]), UNTIL).save(tmp_path)
    assert (tmp_path / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("change", [{"neighbours": 0}, {"decay": 0.0}, {"decay": 1.1}, {"shrinkage": -1.0}])
def test_config_ranges(change):
    with pytest.raises(TrainingError, match="expected neighbours"):
        CooccurrenceConfig(**change)
