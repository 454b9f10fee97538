"""Masked-language-model training: it learns, nothing of its outcome is chance, and nothing half-done is left."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from recsys_llm.errors import ConfigError, TrainingError
from recsys_llm.text import pretraining_loop
from recsys_llm.text.loading import load_backbone
from recsys_llm.text.masked_language_model import MaskedLanguageModel
from recsys_llm.text.model_files import resolve_model
from recsys_llm.text.optimiser import make_optimiser
from recsys_llm.text.pretraining import pretrain
from recsys_llm.text.pretraining_settings import PretrainingConfig
from recsys_llm.text.training_texts import held_out_rows, similar_lengths

CPU = torch.device("cpu")
KINDS = ["bert", "distilbert", "roberta", "xlm-roberta", "mpnet", "electra"]
QUICK = PretrainingConfig(epochs=2, max_tokens=24, batch_tokens=256, learning_rate=2e-3, head_steps=4, save_every=4)


@pytest.fixture
def texts(simulated_data):
    return texts_of(simulated_data)


@pytest.fixture
def small_bert(make_model):
    return make_model("bert", initializer_range=0.05)


def texts_of(folder):
    table = pq.read_table(folder / "items.parquet", columns=["title", "text"])
    return [f"{title}. {text}" for title, text in zip(*table.to_pydict().values(), strict=True)]


def run(directory, texts, config=QUICK, **others):
    return pretrain(resolve_model(directory), texts, config, device=CPU, **others)


def weights(found):
    return {name: tensor.clone() for name, tensor in found.model.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def assert_learns(found):
    perplexity = found.history.as_scores()["perplexity"]
    assert found.history.losses[-1] < 0.97 * found.history.losses[0]
    assert perplexity["after"] < 0.9 * perplexity["before"]
    assert perplexity["before"] <= perplexity["untrained_head"] * 1.02


def test_loss_and_perplexity_fall_on_simulated_texts(make_model, texts):
    longer = PretrainingConfig(epochs=5, max_tokens=48, batch_tokens=256, learning_rate=5e-3, head_steps=20)
    assert_learns(run(make_model("bert", initializer_range=0.05), texts, longer))


def test_loss_and_perplexity_fall_on_film_texts(make_model, movielens_small):
    films = [text for text in texts_of(movielens_small) if text.isascii()][:400]
    longer = PretrainingConfig(epochs=4, max_tokens=32, batch_tokens=256, learning_rate=5e-3, head_steps=20)
    found = run(make_model("bert", initializer_range=0.05), films, longer)
    assert_learns(found)
    assert found.texts["train"] + found.texts["held_out"] <= 400


@pytest.mark.parametrize("kind", KINDS)
def test_every_architecture_is_trained(make_model, texts, kind):
    directory = make_model(kind, initializer_range=0.05)
    config = PretrainingConfig(max_steps=2, max_tokens=24, batch_tokens=128, head_steps=1, learning_rate=1e-3)
    found = run(directory, texts[:20], config)
    assert found.steps == 2
    assert np.isfinite([*found.history.losses, *found.history.held_out_losses]).all()
    before = load_backbone(resolve_model(directory), device=CPU).state_dict()
    moved = [name for name, tensor in weights(found).items() if not torch.equal(tensor, before[name])]
    assert len(moved) > 0.8 * len(weights(found))


def test_the_outcome_follows_from_texts_and_seed(small_bert, texts):
    first = run(small_bert, texts)
    state = torch.get_rng_state()
    torch.manual_seed(123)
    again = run(small_bert, [*texts[::-1], *texts[:9]])  # order and duplicates don't matter
    torch.set_rng_state(state)
    assert_equal(weights(first), weights(again))
    assert first.history == again.history
    other = run(small_bert, texts, PretrainingConfig(**{**QUICK.identity(), "seed": 1}))
    assert first.history.losses != other.history.losses


def test_the_callers_random_numbers_are_left_alone(small_bert, texts):
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    run(small_bert, texts, PretrainingConfig(max_steps=1, max_tokens=16, head_steps=1))
    assert torch.equal(torch.rand(1), expected)


class Stop(Exception):
    pass


def stop_at(phase, step):
    def progress(report):
        if (report.phase, report.step) == (phase, step):
            raise Stop

    return progress


@pytest.mark.parametrize("stops", [[("head", 2)], [("encoder", 1), ("encoder", 7)], [("encoder", 11), ("encoder", 19)]])
def test_a_stopped_training_ends_with_the_weights_of_an_undisturbed_one(small_bert, texts, tmp_path, stops):
    calm = run(small_bert, texts)
    assert calm.steps > 19
    for stop in stops:
        with pytest.raises(Stop):
            run(small_bert, texts, state=tmp_path / "state", progress=stop_at(*stop))
    steps = []
    found = run(small_bert, texts, state=tmp_path / "state", progress=lambda report: steps.append(report))
    assert_equal(weights(calm), weights(found))
    assert calm.history == found.history
    taken_up = [report.step for report in steps if report.phase == "encoder"][0]
    phase, stopped = stops[-1]
    assert taken_up == (1 if phase == "head" else 1 + stopped // QUICK.save_every * QUICK.save_every)


def test_a_finished_state_is_taken_up_without_another_step(small_bert, texts, tmp_path):
    calm = run(small_bert, texts, state=tmp_path / "state")
    found = run(small_bert, texts, state=tmp_path / "state", progress=stop_at("encoder", 1))
    assert_equal(weights(calm), weights(found))


def test_other_settings_start_again(small_bert, texts, tmp_path):
    with pytest.raises(Stop):
        run(small_bert, texts, state=tmp_path / "state", progress=stop_at("encoder", 9))
    other = PretrainingConfig(**{**QUICK.identity(), "seed": 1})
    found = run(small_bert, texts, other, state=tmp_path / "state")
    assert_equal(weights(found), weights(run(small_bert, texts, other)))


def test_masks_differ_between_epochs_and_the_held_out_ones_never_do(small_bert, texts, monkeypatch):
    seen = {"train": [], "held out": []}
    plain = MaskedLanguageModel.loss

    def loss(self, batch):
        seen["train" if self.training else "held out"].append(batch.ids.tolist())
        return plain(self, batch)

    monkeypatch.setattr(MaskedLanguageModel, "loss", loss)
    found = run(small_bert, texts)
    measured = len(seen["held out"]) // 4  # untrained head, trained head, two epochs
    assert all(seen["held out"][:measured] == seen["held out"][at : at + measured] for at in (measured, 3 * measured))
    half = found.steps // 2
    first, second = (list(itertools.chain(*seen["train"][at : at + half])) for at in (0, half))
    assert len(first) == len(second) == found.texts["train"]
    assert sum(row in second for row in first) < 0.1 * len(first)


def test_the_best_epoch_is_kept_and_training_stops_after_it(small_bert, texts, monkeypatch):
    losses = iter([9.0, 8.0, 5.0, 4.0, 6.0, 7.0, 1.0])  # untrained head, before training, then epoch by epoch
    measured = []

    def held_out_loss(model, batches):
        measured.append({name: tensor.clone() for name, tensor in model.backbone.state_dict().items()})
        return next(losses)

    monkeypatch.setattr(pretraining_loop, "held_out_loss", held_out_loss)
    found = run(small_bert, texts[:40], PretrainingConfig(**{**QUICK.identity(), "epochs": 6}))
    assert found.history.held_out_losses == [5.0, 4.0, 6.0, 7.0]
    assert found.history.best_epoch == 2
    assert_equal(weights(found), measured[3])
    assert_equal(measured[0], measured[1])  # only the head is trained in between


@pytest.mark.parametrize("step", [1, 6])
def test_a_loss_that_is_not_finite_is_an_error(small_bert, texts, tmp_path, monkeypatch, step):
    plain, calls = MaskedLanguageModel.loss, itertools.count(1)

    def loss(self, batch):
        found = plain(self, batch)
        return found * float("nan") if self.training and next(calls) == step else found

    monkeypatch.setattr(MaskedLanguageModel, "loss", loss)
    with pytest.raises(TrainingError, match=f"step {step}: expected a finite loss, found nan; lower the learning rate"):
        run(small_bert, texts, state=tmp_path / "state")


@pytest.mark.parametrize("texts", [[], ["fox"], ["one text only"], ["fox", "dog", "cat", "the fox"]])
def test_too_few_texts_are_an_error(small_bert, texts):
    with pytest.raises(TrainingError, match="expected texts of two words or more to train on and to measure on"):
        run(small_bert, texts)


def test_more_tokens_than_positions_are_refused(small_bert, texts):
    with pytest.raises(ConfigError, match="reads at most 64 tokens, found 128"):
        run(small_bert, texts, PretrainingConfig())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs: expected 1 to 1000, found 0"),
        ({"epochs": 1.5}, "epochs: expected a whole number, found 1.5"),
        ({"learning_rate": float("nan")}, "learning_rate: expected 1e-07 to 0.1, found nan"),
        ({"max_steps": 0}, "max_steps: expected 1 to"),
        ({"seed": True}, "seed: expected a whole number"),
    ],
)
def test_settings_out_of_range_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        PretrainingConfig(**change)


def test_biases_and_norms_do_not_decay():
    layers = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3), torch.nn.Embedding(5, 3))
    layers[2].weight.requires_grad_(False)
    groups = make_optimiser([layers], weight_decay=0.3).param_groups
    assert [(group["weight_decay"], [tuple(p.shape) for p in group["params"]]) for group in groups] == [
        (0.3, [(3, 3)]),
        (0.0, [(3,), (3,), (3,)]),
    ]


def test_a_texts_side_does_not_depend_on_the_others():
    texts = [f"text {number}" for number in range(500)]
    whole, some = held_out_rows(texts, 0.1), held_out_rows(texts[100:300], 0.1)
    np.testing.assert_array_equal(whole[100:300], some)
    assert held_out_rows(["alone", "together"], 0.001).sum() == 1


def test_batches_hold_each_text_once_and_no_more_than_the_budget():
    lengths = np.random.default_rng(0).integers(4, 90, 300)
    one, other = (similar_lengths(lengths, 200, np.random.default_rng(seed)) for seed in (1, 2))
    assert sorted(np.concatenate(one).tolist()) == list(range(300))
    assert all(lengths[rows].max() * len(rows) <= 200 for rows in one)
    assert len(one) == len(other)
    assert sum(lengths[rows].max() * len(rows) for rows in one) < 1.05 * lengths.sum()
    assert [rows.tolist() for rows in one] != [rows.tolist() for rows in other]
