"""Training for the synthetic test: maximum likelihood, and adversarial recipes with the product's own parts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recsys_llm.bench.oracle_world import NoHistories, Oracle, opening, sequence_nll
from recsys_llm.seqgan.cnn_discriminator import CNNDiscriminator
from recsys_llm.seqgan.density_ratio import DensityRatioDiscriminator
from recsys_llm.seqgan.discriminator import GRUDiscriminator
from recsys_llm.seqgan.discriminators import AnyDiscriminator
from recsys_llm.seqgan.estimators import Turn, make_estimator
from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.judging import critic
from recsys_llm.seqgan.policy import Position, queries_gradient_loss, require_finite
from recsys_llm.seqgan.pretraining import FINAL_RATE, copy_weights, update
from recsys_llm.seqgan.rollout import Judge, follow, generate
from recsys_llm.seqgan.settings import DiscriminatorName, EstimatorName

DISCRIMINATOR_DROPOUT = 0.25
"""The paper's."""


@dataclass(frozen=True)
class Recipe:
    """One way of training adversarially; pure policy gradient, as in the paper's algorithm 1."""

    name: str
    discriminator: DiscriminatorName | None
    """None: the oracle itself is the reward, which no discriminator could better."""
    estimator: EstimatorName
    steps: int
    """Generator steps."""
    batch: int
    """Sequences of a generator step."""
    learning_rate: float = 1e-3
    """Of Adam, for the generator."""
    rollouts: int = 4
    """N in the paper."""
    lag: float = 0.8
    """Share of the old rollout policy that each update keeps."""
    discriminator_pretraining: int = 200
    """Discriminator steps before the first generator step."""
    discriminator_steps: int = 2
    """For each generator step."""
    discriminator_batch: int = 128
    """Real sequences, and as many generated ones."""
    discriminator_learning_rate: float = 5e-4
    """Of Adam."""


def fit_mle(
    generator: Generator,
    train: Tensor,
    valid: Tensor,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    every: int,
    seed: int,
    record: Callable[[int], object] = lambda step: None,
) -> int:
    """Train by maximum likelihood; the generator ends with its best weights on ``valid``, maybe those it came with.

    Parameters
    ----------
    train, valid : int64 (n, L)
    learning_rate
        Of Adam, for the first step; it falls linearly to a tenth.
    every
        Steps between two validations, each after ``record(step)``.

    Returns
    -------
    int
        The step of the best weights.
    """
    rng = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.Adam(generator.parameters(), lr=learning_rate)
    best, best_nll, best_step = copy_weights(generator), sequence_nll(generator, valid), 0
    for step in range(1, steps + 1):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate * (1.0 - (1.0 - FINAL_RATE) * (step - 1) / steps)
        items = train[torch.randint(len(train), (batch,), generator=rng)]
        own = opening(generator, batch)
        loss = queries_gradient_loss(own.queries(items), own.table, items, torch.ones(items.shape)) / items.shape[1]
        update(generator, optimiser, loss, "maximum likelihood")
        if step % every == 0 or step == steps:
            record(step)
            nll = sequence_nll(generator, valid)
            if nll < best_nll:
                best, best_nll, best_step = copy_weights(generator), nll, step
    generator.load_state_dict(best)
    return best_step


class OracleGame:
    """A generator against a discriminator on the oracle's sequences.

    Parameters
    ----------
    generator
        Pre-trained; it is trained on in place.
    phi
        Pre-trained language model, for "density_ratio" only; it is copied.
    dim
        Width of the discriminator.
    """

    def __init__(
        self,
        recipe: Recipe,
        generator: Generator,
        oracle: Oracle,
        train: Tensor,
        *,
        phi: Generator | None,
        dim: int,
        seed: int,
    ) -> None:
        self.recipe, self.generator, self.oracle, self.train = recipe, generator, oracle, train
        self.length = train.shape[1]
        self.rng = torch.Generator().manual_seed(seed)
        self.lagged = copy.deepcopy(generator)
        self.estimator = make_estimator(recipe.estimator, rollouts=recipe.rollouts)
        self.optimiser = torch.optim.Adam(generator.parameters(), lr=recipe.learning_rate)
        self.discriminator = self._discriminator(phi, dim)
        self.discriminator_optimiser = None
        if self.discriminator is not None:
            rate = recipe.discriminator_learning_rate
            self.discriminator_optimiser = torch.optim.Adam(self.discriminator.parameters(), lr=rate)

    def play(self, *, every: int, record: Callable[[int], object]) -> None:
        """Take all steps of the recipe; ``record(step)`` after every so many of them.

        Raises
        ------
        TrainingError
            A loss is not finite.
        """
        recipe = self.recipe
        for _ in range(recipe.discriminator_pretraining):
            self.discriminator_step()
        for step in range(1, recipe.steps + 1):
            self.generator_step()
            for _ in range(recipe.discriminator_steps):
                self.discriminator_step()
            if step % every == 0 or step == recipe.steps:
                record(step)

    def generator_step(self) -> None:
        """Follow the policy gradient once."""
        size = self.recipe.batch
        own = opening(self.generator, size)
        items = self._draw(own)
        judge, target = self._critic(size)
        with torch.no_grad():
            lagged = opening(self.lagged, size)
        turn = Turn(own, items, torch.full((size,), self.length), judge, target)
        update(self.generator, self.optimiser, self.estimator(turn, lagged, self.rng).loss, self.recipe.name)
        follow(self.lagged, self.generator, lag=self.recipe.lag)

    def discriminator_step(self) -> None:
        """Tell real sequences from generated ones once; nothing where there is no discriminator."""
        if self.discriminator is None or self.discriminator_optimiser is None:
            return
        size = self.recipe.discriminator_batch
        real = self.train[torch.randint(len(self.train), (size,), generator=self.rng)]
        with torch.no_grad():
            fake = self._draw(opening(self.generator, size))
        self.discriminator.train()
        history = self.discriminator.read(NoHistories(2 * size))
        scores = self.discriminator(history, torch.cat([real, fake]), torch.full((2 * size,), self.length))
        truth = torch.cat([torch.ones(size), torch.zeros(size)])
        loss = F.binary_cross_entropy_with_logits(scores, truth)
        update(self.discriminator, self.discriminator_optimiser, loss, f"{self.recipe.name}: discriminator")

    def _draw(self, own: Position) -> Tensor:
        require_finite(own, self.recipe.name)
        items, _ = generate(self.generator, own.table, own.first.detach(), own.states.detach(), self.length, self.rng)
        return items

    @torch.no_grad()
    def _critic(self, size: int) -> tuple[Judge, Position | None]:
        if self.discriminator is None:
            return _no_judge, opening(self.oracle, size)
        return critic(self.discriminator, NoHistories(size), torch.full((size,), self.length))

    def _discriminator(self, phi: Generator | None, dim: int) -> AnyDiscriminator | None:
        items = len(self.generator.counts)
        if self.recipe.discriminator == "gru":
            return GRUDiscriminator(items, None, dim=dim, dropout=DISCRIMINATOR_DROPOUT)
        if self.recipe.discriminator == "cnn":
            return CNNDiscriminator(items, None, dim=dim, length=self.length, context=0, dropout=DISCRIMINATOR_DROPOUT)
        if self.recipe.discriminator == "density_ratio":
            if phi is None:
                raise ValueError("expected a pre-trained language model for the density ratio, found None")
            return DensityRatioDiscriminator(copy.deepcopy(phi), self.generator)
        return None


def _no_judge(items: Tensor, rows: Tensor) -> Tensor:
    raise NotImplementedError("the oracle as reward is for the estimator 'reinforce' only")
