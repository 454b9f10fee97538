"""Adversarial training: discriminator and generator in turns (Yu et al. 2017, algorithm 1).

One generator step samples continuations of real histories, rewards each item by rollouts of a lagged copy of the
generator, and follows the policy gradient together with a teacher-forced batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys_llm.errors import TrainingError
from recsys_llm.seqgan.discriminator import GRUDiscriminator
from recsys_llm.seqgan.generator import Generator, ItemTable
from recsys_llm.seqgan.histories import Ints
from recsys_llm.seqgan.policy import advantages, policy_gradient_loss
from recsys_llm.seqgan.pretraining import (
    Progress,
    copy_weights,
    input_grid,
    make_optimiser,
    states_before,
    teacher_forcing_loss,
    update,
)
from recsys_llm.seqgan.rollout import Judge, generate, rollout_rewards
from recsys_llm.seqgan.sequences import Sequences, Windows, make_batch
from recsys_llm.seqgan.settings import SeqGANConfig, TrainingProgress
from recsys_llm.seqgan.sites import Sites, draw_sites, history_groups, real_continuations


@dataclass
class Adversarial:
    """What adversarial training found; the generator is left with the weights of its best epoch."""

    losses: dict[str, dict[str, list[float]]] = field(
        default_factory=lambda: {
            "discriminator": {"loss": [], "accuracy": []},
            "adversarial": {"loss": [], "reward": [], "accuracy": [], "entropy": [], "ndcg_at_10": []},
        }
    )
    """Of each step (discriminator pre-training) or epoch (adversarial)."""
    stopped: str | None = None
    """Why training ended early, if it diverged."""


def train_adversarially(
    generator: Generator,
    sequences: Sequences,
    config: SeqGANConfig,
    *,
    validate: Callable[[], float],
    rng: np.random.Generator,
    progress: Progress,
) -> Adversarial:
    """Train a pre-trained ``generator`` against a discriminator; it ends with the weights of its best epoch.

    A loss that is not finite ends training; if no epoch had ended, the generator is as it was given.
    """
    game = Game(generator, sequences, config, rng)
    result = Adversarial()
    best, best_score = copy_weights(generator), -1.0
    try:
        game.pretrain_discriminator(result, progress)
        for epoch in range(1, config.adversarial_epochs + 1):
            game.epoch(epoch, result, progress)
            score = validate()
            result.losses["adversarial"]["ndcg_at_10"].append(score)
            progress(_last_report(result, config, epoch))
            if score > best_score:
                best, best_score = copy_weights(generator), score
    except TrainingError as error:
        result.stopped = str(error)
    generator.load_state_dict(best)
    return result


class Game:
    """The two players, their optimisers and what they draw from."""

    def __init__(
        self, generator: Generator, sequences: Sequences, config: SeqGANConfig, rng: np.random.Generator
    ) -> None:
        self.generator = generator
        self.lagged = copy.deepcopy(generator)
        self.sequences = sequences
        self.config = config
        self.rng = rng
        self.device = generator.start.device
        self.draws = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        text = generator.text if generator.text.shape[1] else None
        self.discriminator = GRUDiscriminator(
            len(generator.counts), text, dim=config.discriminator_dim, dropout=config.discriminator_dropout
        ).to(self.device)
        rate = config.adversarial_learning_rate
        self.generator_optimiser = make_optimiser(generator, rate, config.weight_decay)
        self.discriminator_optimiser = torch.optim.Adam(
            self.discriminator.parameters(), lr=config.discriminator_learning_rate
        )
        self.windows = Windows.cut(sequences, config.max_groups)
        self.states = states_before(generator, sequences, self.windows)
        self.batches = self._teacher_batches()

    def pretrain_discriminator(self, result: Adversarial, progress: Progress) -> None:
        """Teach the discriminator the pre-trained generator's samples."""
        total = self.config.discriminator_steps
        for step in range(1, total + 1):
            loss, accuracy = self.discriminator_step()
            result.losses["discriminator"]["loss"].append(loss)
            result.losses["discriminator"]["accuracy"].append(accuracy)
            progress(TrainingProgress("discriminator", step, total, 1, loss, accuracy=accuracy))

    def epoch(self, epoch: int, result: Adversarial, progress: Progress) -> None:
        """Take ``generator_steps`` generator steps, each followed by discriminator steps."""
        config = self.config
        self.states = states_before(self.generator, self.sequences, self.windows)
        steps = []
        for step in range(1, config.generator_steps + 1):
            loss, reward, entropy = self.generator_step()
            accuracies = [self.discriminator_step()[1] for _ in range(config.discriminator_steps_per_generator_step)]
            accuracy = float(np.mean(accuracies)) if accuracies else float("nan")
            steps.append((loss, reward, accuracy, entropy))
            if step < config.generator_steps:
                done, total = (epoch - 1) * config.generator_steps + step, _total(config)
                progress(
                    TrainingProgress(
                        "adversarial", done, total, epoch, loss, reward=reward, accuracy=accuracy, entropy=entropy
                    )
                )
        means = np.mean(steps, axis=0)
        for name, mean in zip(("loss", "reward", "accuracy", "entropy"), means, strict=True):
            result.losses["adversarial"][name].append(float(mean))

    def generator_step(self) -> tuple[float, float, float]:
        """Take one step; return its teacher-forced loss, mean reward and mean entropy."""
        config, generator = self.config, self.generator
        sites = draw_sites(self.sequences, self.windows, config, self.rng)
        table = generator.item_table()
        first, states = self.read(generator, table, sites)
        items, entropy = generate(generator, table, first.detach(), states.detach(), config.horizon, self.draws)
        lengths = torch.from_numpy(sites.lengths).to(self.device)
        valid = torch.arange(config.horizon, device=self.device) < lengths.unsqueeze(1)
        with torch.no_grad():
            lagged_table = self.lagged.item_table()
            _, lagged_states = self.read(self.lagged, lagged_table, sites)
            judge = self.judge(sites, lengths)
            rewards = rollout_rewards(
                self.lagged, lagged_table, lagged_states, items, judge, config.rollouts, self.draws
            )
        gain = policy_gradient_loss(generator, table, first, states, items, advantages(rewards, valid))
        chosen = next(self.batches)
        batch = make_batch(self.sequences, self.windows, chosen, self.device)
        forced = teacher_forcing_loss(generator, batch, self.states[torch.from_numpy(chosen)], config)
        loss = forced + config.policy_gradient_weight * gain
        update(generator, self.generator_optimiser, loss, "adversarial generator step")
        self.follow()
        return float(forced.detach()), float(rewards[valid].mean()), float(entropy[valid].mean())

    def discriminator_step(self) -> tuple[float, float]:
        """Take one step on as many real as generated continuations; return loss and accuracy."""
        config = self.config
        sites = draw_sites(self.sequences, self.windows, config, self.rng)
        real = torch.from_numpy(real_continuations(self.sequences, sites, config.horizon, self.rng)).to(self.device)
        with torch.no_grad():
            table = self.generator.item_table()
            first, states = self.read(self.generator, table, sites)
        fake, _ = generate(self.generator, table, first, states, config.horizon, self.draws)
        lengths = torch.from_numpy(sites.lengths).to(self.device)
        self.discriminator.train()
        history = self.discriminator.read_history(*history_groups(self.sequences, sites, config, self.device))
        scores = self.discriminator(history.repeat(2, 1), torch.cat([real, fake]), lengths.repeat(2))
        truth = torch.cat([torch.ones(len(real)), torch.zeros(len(fake))]).to(self.device)
        loss = F.binary_cross_entropy_with_logits(scores, truth)
        update(self.discriminator, self.discriminator_optimiser, loss, "discriminator step")
        return float(loss.detach()), float(((scores > 0) == (truth > 0)).float().mean())

    def read(self, policy: Generator, table: ItemTable, sites: Sites) -> tuple[Tensor, Tensor]:
        """Return a policy's queries and states after the histories of ``sites``."""
        every = np.arange(len(sites.lengths))
        batch = make_batch(self.sequences, sites.history, every, self.device)
        lengths = torch.from_numpy(sites.history.length).to(self.device)
        before = self.states[torch.from_numpy(sites.window)]
        queries, states = policy(input_grid(policy, table, batch), before, lengths=lengths)
        return queries[torch.arange(len(lengths)), lengths - 1], states

    def judge(self, sites: Sites, lengths: Tensor) -> Judge:
        """Return the discriminator, in eval mode, as a judge of continuations of ``sites``."""
        self.discriminator.eval()
        with torch.no_grad():
            history = self.discriminator.read_history(*history_groups(self.sequences, sites, self.config, self.device))
        return lambda items, rows: torch.sigmoid(self.discriminator(history[rows], items, lengths[rows]))

    @torch.no_grad()
    def follow(self) -> None:
        """Move the rollout policy towards the generator."""
        for slow, fast in zip(self.lagged.parameters(), self.generator.parameters(), strict=True):
            slow.lerp_(fast, 1.0 - self.config.rollout_lag)

    def _teacher_batches(self) -> Iterator[Ints]:
        while True:
            yield from self.windows.batches(self.config.batch_steps, self.rng)


def _total(config: SeqGANConfig) -> int:
    return config.generator_steps * config.adversarial_epochs


def _last_report(result: Adversarial, config: SeqGANConfig, epoch: int) -> TrainingProgress:
    last = {name: values[-1] for name, values in result.losses["adversarial"].items()}
    return TrainingProgress("adversarial", epoch * config.generator_steps, _total(config), epoch, **last)
