from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from recsys_llm.errors import (
    CheckpointError,
    ConfigError,
    FingerprintError,
    LeakageError,
    SchemaError,
    ServiceError,
    TrainingError,
)
from recsys_llm.ranking.cooccurrence import CooccurrenceModel
from recsys_llm.ranking.examples import sample_examples
from recsys_llm.ranking.model import DCN, DCNConfig, column_statistics
from recsys_llm.ranking.ranker import Ranker
from recsys_llm.ranking.training import RankerConfig, Targets, fit_network
from tests.ranking.fake_history import FakeHistory, hour, world

START, END = hour(24 * 15), hour(24 * 35)
QUICK = RankerConfig(epochs=3, batch_groups=32, network=DCNConfig(deep=(8,)))


def planted(groups=3000, size=6, seed=0):
    """Rows whose positive is drawn by softmax of the product of two columns; a third column says nothing."""
    rng = np.random.default_rng(seed)
    columns = rng.normal(size=(groups, size, 3)).astype(np.float32) * np.array([1, 5, 1], np.float32) + 2
    utility = 3 * (columns[..., 0] - 2) * (columns[..., 1] - 2) / 5
    wanted = (utility + rng.gumbel(size=utility.shape)).argmax(axis=1)
    labels = np.zeros((groups, size), np.float32)
    labels[np.arange(groups), wanted] = 1
    number = np.repeat(np.arange(groups), size)
    targets = Targets(labels.reshape(-1), number, number * 10, np.zeros(groups * size, np.float32))
    return columns.reshape(-1, 3), targets, utility


def test_dcn_learns_a_planted_interaction_that_a_linear_model_cannot():
    columns, targets, utility = planted()
    bound = -np.mean(
        np.log(np.exp(utility) / np.exp(utility).sum(axis=1, keepdims=True))[targets.labels.reshape(-1, 6) == 1]
    )
    losses = {}
    for name, network in {
        "cross": DCNConfig(cross_layers=1, deep=()),
        "low rank": DCNConfig(cross_layers=1, cross_rank=2, deep=()),
        "linear": DCNConfig(cross_layers=0, deep=()),
    }.items():
        config = RankerConfig(network=network, epochs=15, learning_rate=1e-2, hide=0.0, weight_decay=0.0)
        losses[name] = min(epoch.validation_loss for epoch in fit_network(columns, targets, config)[1])
    assert losses["linear"] == pytest.approx(np.log(6), abs=0.05)
    assert losses["cross"] < bound + 0.1 < 1.0
    assert losses["low rank"] < bound + 0.15


def test_cross_layer_is_equation_1():
    network = DCN(np.zeros(1, np.float32), np.ones(1, np.float32), DCNConfig(cross_layers=1, deep=()))
    with torch.no_grad():
        network.cross[0].weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
        network.cross[0].bias.copy_(torch.tensor([0.5, 0.0]))
        network.head.weight.copy_(torch.tensor([[1.0, 0.0]]))
        network.head.bias.zero_()
        assert network(torch.tensor([[3.0]])).item() == pytest.approx(3 * (2 * 3 + 0.5) + 3)


def test_missing_values_learn_their_default():
    columns, targets, _ = planted(groups=1500)
    wanted = targets.labels == 1
    rng = np.random.default_rng(1)
    # One column alone tells the positive, by 10 against 0; half of the positives' values are missing, no other is.
    columns = np.where(wanted, 10.0, 0.0).astype(np.float32)[:, None]
    columns[wanted & (rng.random(len(wanted)) < 0.5)] = np.nan
    network, _ = fit_network(columns, targets, RankerConfig(epochs=15, learning_rate=1e-2))
    with torch.inference_mode():
        scores = network(torch.tensor([[np.nan], [10.0], [0.0]])).tolist()
    assert min(scores[:2]) > scores[2] + 2


def test_log_q_takes_the_sampling_off():
    rng = np.random.default_rng(0)
    groups, size = 4000, 5
    # Items of kind 1 are wanted as often as others, but drawn three times as often as negatives.
    kind = (rng.random((groups, size)) < 0.75).astype(np.float32)
    kind[:, 0] = rng.random(groups) < 0.5
    labels = np.zeros((groups, size), np.float32)
    labels[:, 0] = 1
    number = np.repeat(np.arange(groups), size)
    log_q = np.log(np.where(kind == 1, 0.75, 0.25)).astype(np.float32).reshape(-1)
    config = RankerConfig(network=DCNConfig(cross_layers=0, deep=()), epochs=15, learning_rate=1e-2, hide=0.0)
    gaps = []
    for correction in (log_q, np.zeros_like(log_q)):
        targets = Targets(labels.reshape(-1), number, number, correction)
        network, _ = fit_network(kind.reshape(-1, 1), targets, config)
        with torch.inference_mode():
            one, zero = network(torch.tensor([[1.0], [0.0]])).tolist()
        gaps.append(one - zero)
    assert gaps[0] == pytest.approx(0.0, abs=0.15)
    assert gaps[1] == pytest.approx(-np.log(3), abs=0.15)


def test_column_statistics():
    columns = np.array([[1, np.nan, 5, np.nan], [3, 2, 5, np.nan]], np.float32)
    mean, std = column_statistics(columns)
    assert mean.tolist() == [2, 2, 5, 0]
    assert std.tolist() == [1, 1, 1, 1]


def test_best_epoch_is_kept_and_time_decides_the_validation():
    columns, targets, _ = planted(groups=400)
    seen = []
    network, course = fit_network(columns, targets, RankerConfig(epochs=40, patience=2), progress=seen.append)
    assert seen == course
    losses = [epoch.validation_loss for epoch in course]
    assert len(course) == 40 or int(np.argmin(losses)) == len(course) - 3
    # The newest 15% decide: what they look like does not change the column statistics.
    newest = targets.groups >= 340
    other, _ = fit_network(np.where(newest[:, None], columns + 100, columns), targets, RankerConfig(epochs=1))
    assert torch.equal(network.mean, other.mean)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c, t: (c, replace(t, labels=np.zeros_like(t.labels))), "expected one row labelled 1"),
        (lambda c, t: (c, replace(t, micros=np.zeros_like(t.micros))), "two different times"),
        (lambda c, t: (np.where(c == c[0, 1], np.inf, c), t), r"infinity in columns \[1\]"),
    ],
)
def test_training_refusals(change, message):
    columns, targets, _ = planted(groups=20)
    columns, targets = change(columns, targets)
    with pytest.raises(TrainingError, match=message):
        fit_network(columns, targets, RankerConfig(epochs=1))


def test_a_loss_that_is_not_finite_stops_training():
    columns, targets, _ = planted(groups=50)
    with pytest.raises(TrainingError, match="not finite in epoch"):
        fit_network(columns, targets, RankerConfig(epochs=5, learning_rate=1e30))


@pytest.mark.parametrize("config", [{"epochs": 0}, {"hide": 1.0}, {"validation": 0.0}, {"learning_rate": 0.0}])
def test_config_ranges(config):
    with pytest.raises(ConfigError, match="expected"):
        RankerConfig(**config)
    with pytest.raises(ConfigError, match="expected"):
        DCNConfig(dropout=1.0)


@pytest.fixture(scope="module")
def trained():
    interactions, items = world(events=500)
    counted = CooccurrenceModel.fit(interactions[interactions["event_timestamp"] < START], START)
    examples = sample_examples(interactions, items, start=START, end=END, negatives=4)
    training = FakeHistory(interactions, items).training_set(examples, service="ranker_baseline_v1")
    return training, counted, Ranker.fit(training, counted, QUICK)


def test_ranker_is_deterministic_and_leaves_the_global_seed_alone(trained):
    training, counted, ranker = trained
    torch.manual_seed(99)
    expected = torch.rand(3)
    torch.manual_seed(99)
    again = Ranker.fit(training, counted, QUICK)
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_array_equal(again.score(training), ranker.score(training))
    other = Ranker.fit(training, counted, replace(QUICK, seed=1))
    assert not np.array_equal(other.score(training), ranker.score(training))


def test_columns_without_values_are_left_out(trained):
    training, _, ranker = trained
    assert "item_mean_rating" not in ranker.columns and "log_price_ratio" not in ranker.columns
    assert {"item_log_events", "item_knn", "log_repeats"} <= set(ranker.columns)
    assert set(ranker.manifest["defaults"]) == set(ranker.columns)
    scores = ranker.score(training)
    assert scores.dtype == np.float32 and scores.shape == (len(training),) and np.isfinite(scores).all()
    assert ranker.score(training.take(np.arange(0))).shape == (0,)
    assert ranker.score(training.take(np.array([7, 3]))) == pytest.approx(scores[[7, 3]], abs=1e-5)


def test_save_and_load(trained, tmp_path):
    training, _, ranker = trained
    ranker.save(tmp_path / "ranker")
    loaded = Ranker.load(tmp_path / "ranker")
    np.testing.assert_array_equal(loaded.score(training), ranker.score(training))
    assert (loaded.service, loaded.columns, loaded.fingerprints) == (
        ranker.service,
        ranker.columns,
        ranker.fingerprints,
    )
    assert loaded.learned_until == ranker.learned_until == training.examples["event_timestamp"].max()
    assert loaded.manifest == json.loads(json.dumps(ranker.manifest))


def test_every_altered_byte_is_refused(trained, tmp_path):
    *_, ranker = trained
    ranker.save(tmp_path / "ranker")
    file = tmp_path / "ranker" / "tensors.safetensors"
    good = file.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(good), 20):
        file.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(CheckpointError, match="altered"):
            Ranker.load(tmp_path / "ranker")
    file.write_bytes(good)
    with pytest.raises(CheckpointError, match="expected a cooccurrence of format"):
        CooccurrenceModel.load(tmp_path / "ranker")
    with pytest.raises(CheckpointError, match="expected manifest.json"):
        Ranker.load(tmp_path)


def test_check_names_both_fingerprints(trained):
    training, _, ranker = trained
    with pytest.raises(FingerprintError, match="trained on fi, the batch holds other"):
        ranker.score(replace(training, fingerprints={"item_stats": "other", "user_stats": "fu"}))
    unknown = replace(training, fingerprints={"item_stats": None})
    np.testing.assert_array_equal(ranker.score(unknown), ranker.score(training))
    bare = replace(training, user=replace(training.user, columns={}))
    with pytest.raises(ServiceError, match="lacks the view 'user_stats'"):
        ranker.score(bare)


def test_refreshed_counts_keep_the_weights(trained):
    training, _, ranker = trained
    interactions, _ = world(events=500)
    newer = CooccurrenceModel.fit(interactions[interactions["event_timestamp"] < hour(2000)], hour(2000))
    fresh = ranker.refreshed(newer)
    assert fresh.learned_until > ranker.learned_until
    assert not np.array_equal(fresh.score(training), ranker.score(training))
    assert fresh.network is ranker.network


def test_fit_refusals(trained):
    training, counted, _ = trained
    interactions, _ = world(events=500)
    late = CooccurrenceModel.fit(interactions[interactions["event_timestamp"] < END], END)
    with pytest.raises(LeakageError, match="before the first example"):
        Ranker.fit(training, late, QUICK)
    with pytest.raises(SchemaError, match="column 'group' is missing"):
        Ranker.fit(replace(training, examples=training.examples.drop(columns="group")), counted, QUICK)
    with pytest.raises(ServiceError, match="expected learned features, found none"):
        Ranker.fit(training, counted, QUICK, learned=True)
    empty = replace(training.take(np.arange(0)))
    assert len(empty) == 0
    with pytest.raises(TrainingError, match="found none"):
        Ranker.fit(replace(training, examples=pd.DataFrame(training.examples.iloc[:0])), counted, QUICK)


def without(block, name):
    return replace(block, columns={column: values for column, values in block.columns.items() if column != name})


def test_check_names_every_difference(trained, tmp_path):
    training, _, ranker = trained
    ranker.save(tmp_path / "ranker")
    loaded = Ranker.load(tmp_path / "ranker")
    assert list(loaded.features.items()) == list(ranker.features.items())
    assert loaded.features["user_stats__recent_items"] == "list of string"
    assert loaded.features["item_stats__category"] == "text"
    assert loaded.manifest["defaults"].keys() == set(loaded.columns) == set(loaded.manifest["columns"])
    loaded.check(training)
    user, item = without(training.user, "user_stats__n_events"), without(training.item, "item_stats__price")
    columns = dict(item.columns) | {"item_stats__category": np.zeros(len(item), np.float32)}
    fingerprints = {"item_stats": "other", "user_stats": "fu"}
    other = replace(training, user=user, item=replace(item, columns=columns), fingerprints=fingerprints)
    with pytest.raises(FingerprintError) as refused:
        loaded.check(other)
    for message in (
        "view item_stats: the ranker was trained on fi, the batch holds other",
        "user_stats__n_events: expected number, found none; did you mean 'item_stats__n_events'",
        "item_stats__price: expected number, found none",
        "item_stats__category: expected text, found number",
    ):
        assert message in str(refused.value)
    with pytest.raises(ServiceError, match="^item_stats__price: expected number, found none; [^;]*$"):
        loaded.check(replace(training, item=item))
