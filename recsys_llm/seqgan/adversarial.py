"""Adversarial training: discriminator and generator in turns (Yu et al. 2017, algorithm 1).

One generator step samples continuations of real histories, rewards each item by what the discriminator says, through
rollouts of a lagged copy of the generator or without, and follows the policy gradient together with a teacher-forced
batch. Which discriminator and which estimator of the gradient: ``SeqGANConfig.discriminator`` and ``.estimator``.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from recsys_llm.errors import TrainingError
from recsys_llm.seqgan.discriminator import RecentGroups
from recsys_llm.seqgan.discriminators import AnyDiscriminator, make_discriminator
from recsys_llm.seqgan.estimators import Turn, make_estimator
from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.judging import critic
from recsys_llm.seqgan.policy import Position, require_finite
from recsys_llm.seqgan.pretraining import (
    Progress,
    copy_weights,
    input_grid,
    make_optimiser,
    pretrain,
    states_before,
    teacher_forcing_loss,
    update,
)
from recsys_llm.seqgan.rollout import follow, generate
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
    validate: Callable[[Generator], float],
    rng: np.random.Generator,
    progress: Progress,
) -> Adversarial:
    """Train a pre-trained ``generator`` against a discriminator; it ends with the weights of its best epoch.

    A loss that is not finite ends training; if no epoch had ended, the generator is as it was given.

    Parameters
    ----------
    validate
        Returns a generator's validation score.
    """
    result = Adversarial()
    best, best_score = copy_weights(generator), -1.0
    try:
        phi = None
        if config.discriminator == "density_ratio":
            phi = pretrain_phi(generator, sequences, config, result, validate=validate, rng=rng, progress=progress)
        game = Game(generator, sequences, config, rng, phi=phi)
        game.pretrain_discriminator(result, progress)
        for epoch in range(1, config.adversarial_epochs + 1):
            game.epoch(epoch, result, progress)
            score = validate(generator)
            result.losses["adversarial"]["ndcg_at_10"].append(score)
            progress(_last_report(result, config, epoch))
            if score > best_score:
                best, best_score = copy_weights(generator), score
    except TrainingError as error:
        result.stopped = str(error)
    generator.load_state_dict(best)
    return result


def pretrain_phi(
    generator: Generator,
    sequences: Sequences,
    config: SeqGANConfig,
    result: Adversarial,
    *,
    validate: Callable[[Generator], float],
    rng: np.random.Generator,
    progress: Progress,
) -> Generator:
    """Return the density-ratio discriminator's language model, trained by maximum likelihood as the generator was.

    Raises
    ------
    TrainingError
        The loss is not finite before the first epoch has ended.
    """
    text = generator.text.cpu() if generator.text.shape[1] else None
    sizes = {"embedding_dim": config.embedding_dim, "hidden_dim": config.density_ratio_dim}
    phi = Generator(generator.counts.cpu(), text, **sizes).to(generator.start.device)
    found = pretrain(
        phi,
        sequences,
        config,
        validate=lambda: validate(phi),
        rng=rng,
        progress=lambda report: progress(replace(report, phase="density_ratio")),
    )
    result.losses["density_ratio"] = {"loss": found.losses, "ndcg_at_10": found.scores}
    return phi


class Game:
    """The two players, their optimisers and what they draw from.

    Parameters
    ----------
    phi
        The pre-trained language model of a density-ratio discriminator.
    """

    def __init__(
        self,
        generator: Generator,
        sequences: Sequences,
        config: SeqGANConfig,
        rng: np.random.Generator,
        *,
        phi: Generator | None = None,
    ) -> None:
        self.generator = generator
        self.lagged = copy.deepcopy(generator)
        self.sequences = sequences
        self.config = config
        self.rng = rng
        self.device = generator.start.device
        self.draws = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        self.discriminator: AnyDiscriminator = make_discriminator(config, generator, phi).to(self.device)
        self.estimator = make_estimator(config.estimator, rollouts=config.rollouts)
        rate = config.adversarial_learning_rate
        self.generator_optimiser = make_optimiser(generator, rate, config.weight_decay)
        self.discriminator_optimiser = torch.optim.Adam(
            self.discriminator.parameters(), lr=config.discriminator_learning_rate
        )
        self.windows = Windows.cut(sequences, config.max_groups)
        self.policies = (generator,) if phi is None else (generator, phi)
        self.refresh_states()
        self.batches = self.windows.endless_batches(config.batch_steps, rng)

    def refresh_states(self) -> None:
        """Read every window's past again, with the weights as they are now."""
        found = {policy: states_before(policy, self.sequences, self.windows) for policy in self.policies}
        # The rollout policy follows the generator closely, and may begin with its states.
        self.states: dict[Generator, Tensor] = {**found, self.lagged: found[self.generator]}

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
        self.refresh_states()
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
        histories = SiteHistories(self, sites)
        own = histories.position(generator)
        require_finite(own, "adversarial generator step")
        items, entropy = generate(
            generator, own.table, own.first.detach(), own.states.detach(), config.horizon, self.draws
        )
        lengths = torch.from_numpy(sites.lengths).to(self.device)
        with torch.no_grad():
            lagged = histories.position(self.lagged)
            judge, target = critic(self.discriminator, histories, lengths)
        turn = Turn(own, items, lengths, judge, target)
        estimate = self.estimator(turn, lagged, self.draws)
        chosen = next(self.batches)
        batch = make_batch(self.sequences, self.windows, chosen, self.device)
        forced = teacher_forcing_loss(generator, batch, self.states[generator][torch.from_numpy(chosen)], config)
        loss = forced + config.policy_gradient_weight * estimate.loss
        update(generator, self.generator_optimiser, loss, "adversarial generator step")
        follow(self.lagged, generator, lag=config.rollout_lag)
        reward, mean_entropy = estimate.rewards[turn.valid].mean(), entropy[turn.valid].mean()
        return float(forced.detach()), float(reward), float(mean_entropy)

    def discriminator_step(self) -> tuple[float, float]:
        """Take one step on as many real as generated continuations; return loss and accuracy."""
        config = self.config
        sites = draw_sites(self.sequences, self.windows, config, self.rng)
        real = torch.from_numpy(real_continuations(self.sequences, sites, config.horizon, self.rng)).to(self.device)
        histories = SiteHistories(self, sites)
        with torch.no_grad():
            own = histories.position(self.generator)
        require_finite(own, "discriminator step")
        fake, _ = generate(self.generator, own.table, own.first, own.states, config.horizon, self.draws)
        lengths = torch.from_numpy(sites.lengths).to(self.device)
        self.discriminator.train()
        history = self.discriminator.read(histories)
        scores = self.discriminator(history.repeat(2, 1), torch.cat([real, fake]), lengths.repeat(2))
        truth = torch.cat([torch.ones(len(real)), torch.zeros(len(fake))]).to(self.device)
        loss = F.binary_cross_entropy_with_logits(scores, truth)
        update(self.discriminator, self.discriminator_optimiser, loss, "discriminator step")
        return float(loss.detach()), float(((scores > 0) == (truth > 0)).float().mean())


class SiteHistories:
    """The histories before some sites of a game, as :class:`~recsys_llm.seqgan.discriminator.HistoryReader`."""

    def __init__(self, game: Game, sites: Sites) -> None:
        self.game = game
        self.sites = sites

    def recent_groups(self) -> RecentGroups:
        """Return the last ``history_groups`` groups of each."""
        game = self.game
        return history_groups(game.sequences, self.sites, game.config, game.device)

    def read_by(self, policy: Generator) -> tuple[Tensor, Tensor]:
        """Return a policy's queries and states after the histories."""
        found = self.position(policy)
        return found.first, found.states

    def position(self, policy: Generator) -> Position:
        """Return a policy after the histories."""
        game, sites = self.game, self.sites
        table = policy.item_table()
        every = np.arange(len(sites.lengths))
        batch = make_batch(game.sequences, sites.history, every, game.device)
        lengths = torch.from_numpy(sites.history.length).to(game.device)
        before = game.states[policy][torch.from_numpy(sites.window)]
        queries, states = policy(input_grid(policy, table, batch), before, lengths=lengths)
        return Position(policy, table, queries[torch.arange(len(lengths)), lengths - 1], states)


def _total(config: SeqGANConfig) -> int:
    return config.generator_steps * config.adversarial_epochs


def _last_report(result: Adversarial, config: SeqGANConfig, epoch: int) -> TrainingProgress:
    last = {name: values[-1] for name, values in result.losses["adversarial"].items()}
    return TrainingProgress("adversarial", epoch * config.generator_steps, _total(config), epoch, **last)
