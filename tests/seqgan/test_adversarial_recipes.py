"""Each discriminator with each estimator, through the product's training."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from recsys_llm.errors import ConfigError, TrainingError
from recsys_llm.seqgan import Checkpoint, Histories, SeqGANConfig, TrainingProgress, Vocabulary, train
from recsys_llm.seqgan.adversarial import Game
from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.sequences import Sequences
from tests.seqgan.seqgan_data import SMALL, UNTIL, chain, vectors

QUICK = replace(SMALL, mle_epochs=2, density_ratio_dim=20)
RECIPES = list(itertools.product(["gru", "cnn", "density_ratio"], ["rollouts", "rollouts_baseline", "reinforce"]))


@pytest.fixture(scope="module")
def few() -> pa.Table:
    return chain(users=20, days=60)


@pytest.mark.parametrize(("discriminator", "estimator"), RECIPES)
def test_every_recipe_trains_and_moves_the_generator(few: pa.Table, discriminator: Any, estimator: Any) -> None:
    config = replace(QUICK, discriminator=discriminator, estimator=estimator)
    reports: list[TrainingProgress] = []
    found = train(few, config, until=UNTIL, item_vectors=vectors(), progress=reports.append)
    assert found.manifest["stopped"] == {}
    assert found.manifest["config"]["discriminator"] == discriminator
    for name in ("mle", "adversarial"):
        assert all(bool(value.isfinite().all()) for value in found.generator(name).parameters())
    losses = found.manifest["losses"]["adversarial"]
    assert 0 < losses["reward"][0] < 1 and math.isfinite(losses["accuracy"][0])
    phases = list(dict.fromkeys(report.phase for report in reports))
    extra = ["density_ratio"] if discriminator == "density_ratio" else []
    assert phases == ["mle", *extra, "discriminator", "adversarial"]
    for phase in phases:
        own = [report for report in reports if report.phase == phase]
        assert [report.step for report in own] == list(range(1, own[0].total + 1))


def _weights(checkpoint: Checkpoint) -> list[Any]:
    return [value.tolist() for value in checkpoint.generator("adversarial").parameters()]


def test_recipes_differ_and_are_deterministic(few: pa.Table) -> None:
    found = [
        _weights(train(few, replace(QUICK, discriminator=discriminator, estimator=estimator), until=UNTIL))
        for discriminator, estimator in RECIPES
    ]
    assert all(one != other for one, other in itertools.combinations(found, 2))
    again = replace(QUICK, discriminator="density_ratio", estimator="reinforce")
    assert _weights(train(few, again, until=UNTIL)) == found[-1]


def test_weights_that_are_not_finite_end_training_with_a_clear_error(few: pa.Table) -> None:
    histories = Histories.from_interactions(few)
    sequences = Sequences.encode(histories, Vocabulary.build(histories.item_ids))
    counts = torch.from_numpy(np.bincount(sequences.items))
    game = Game(Generator(counts, None, embedding_dim=8, hidden_dim=8), sequences, SMALL, np.random.default_rng(0))
    game.generator.bias.data[0] = float("nan")
    for step in (game.generator_step, game.discriminator_step):
        with pytest.raises(TrainingError, match="expected finite weights"):
            step()


def test_unknown_names_are_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"discriminator: unknown name 'cn'; did you mean 'cnn'\?"):
        SeqGANConfig(discriminator="cn")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"estimator: unknown name 'rollout'; did you mean 'rollouts'\?"):
        SeqGANConfig(estimator="rollout")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="estimator: unknown name 3"):
        SeqGANConfig(estimator=3)  # type: ignore[arg-type]


def test_a_density_ratio_model_must_be_larger_than_the_generator() -> None:
    with pytest.raises(ConfigError, match=r"more than hidden_dim \(256\), found 256"):
        SeqGANConfig(discriminator="density_ratio", hidden_dim=256)
    assert SeqGANConfig(hidden_dim=256).density_ratio_dim == 256  # not looked at by other discriminators
