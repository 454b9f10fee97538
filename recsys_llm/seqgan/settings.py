"""What a SeqGAN is trained with, and what it reports while it trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

from recsys_llm.errors import ConfigError, did_you_mean

Phase = Literal["mle", "density_ratio", "discriminator", "adversarial"]
DiscriminatorName = Literal["gru", "cnn", "density_ratio"]
EstimatorName = Literal["rollouts", "rollouts_baseline", "reinforce"]
SoftmaxName = Literal["auto", "full", "sampled"]

SAMPLED_ABOVE = 50_000
"""Items above which "auto" estimates the softmax from a sample."""


@dataclass(frozen=True)
class SeqGANConfig:
    """Settings of :func:`recsys_llm.seqgan.train`. The defaults suit some 10^5 events and 10^4 items on a CPU.

    Raises
    ------
    ConfigError
        A value is out of its range, or a name is unknown; the message names field, range and value.
    """

    embedding_dim: int = 64
    """Width of an item vector. 1 to 1024."""
    hidden_dim: int = 128
    """Width of the generator's LSTM state. 1 to 4096."""
    dropout: float = 0.3
    """Share of the generator's inputs and outputs that is dropped in training. 0 to 0.9."""
    item_dropout: float = 0.1
    """Share of history items that is hidden in training, so that the model copes with unknown items. 0 to 0.9."""
    max_groups: int = 50
    """Groups (steps) per training window; longer histories are cut into windows. 1 to 1000."""
    max_group_items: int = 64
    """Items of one group that are used in training; of larger groups a random subset, drawn once. 1 to 10,000."""
    batch_steps: int = 1024
    """Target number of steps per gradient step. 1 to 100,000."""
    learning_rate: float = 0.003
    """Of Adam, in the first epoch of pre-training; it falls linearly to a tenth over ``mle_epochs``. 1e-6 to 1."""
    weight_decay: float = 2.0
    """Decoupled, on the free item embedding only, per unit of learning rate. 0 to 10."""
    mle_epochs: int = 14
    """Most passes over the training data before the adversarial phase. 1 to 1000."""
    softmax: SoftmaxName = "auto"
    """Of teacher forcing. "full": over all items; "sampled": over the targets and ``softmax_negatives`` others, with
    the logQ correction; "auto": "sampled" above 50,000 items. Policy gradients and predictions are always "full"."""
    softmax_negatives: int = 4096
    """Items that "sampled" draws for each gradient step, by popularity to the power of 0.75. 1 to 1,000,000."""
    patience: int = 4
    """Epochs without a better validation NDCG@10 after which pre-training stops. 1 to 1000."""
    validation_share: float = 0.1
    """Share of events, the last ones in time, that is held out to choose by. 0.01 to 0.5."""
    validation_groups: int = 1500
    """Most groups of the held-out slice that are ranked after each epoch. 1 to 1,000,000."""
    discriminator: DiscriminatorName = "gru"
    """"gru"; "cnn", the paper's; "density_ratio", a language model larger than the generator."""
    discriminator_dim: int = 32
    """Width of item vectors and states of "gru"; "cnn" scales its filters with it, the paper's is 64. 1 to 1024."""
    density_ratio_dim: int = 256
    """Width of the LSTM state of "density_ratio", more than ``hidden_dim``. Pre-training it takes as many epochs as the
    generator's own. 1 to 8192."""
    discriminator_dropout: float = 0.2
    """0 to 0.9."""
    discriminator_learning_rate: float = 0.001
    """Of Adam. 1e-6 to 1."""
    discriminator_steps: int = 40
    """Gradient steps of discriminator pre-training. 0 to 100,000."""
    history_groups: int = 20
    """Most recent groups that the discriminator sees as the history. 1 to 1000."""
    horizon: int = 6
    """Most items in a generated continuation. 1 to 100."""
    continuations: int = 48
    """Continuations per adversarial step. 2 to 10,000."""
    estimator: EstimatorName = "rollouts"
    """"rollouts", the paper's; "rollouts_baseline", the same less the value of the prefix without the item;
    "reinforce", without rollouts: give it more ``continuations``, and with "density_ratio" it is exact in each item."""
    rollouts: int = 4
    """Monte-Carlo completions per prefix (N in the paper); "reinforce" makes none. 1 to 1000."""
    adversarial_epochs: int = 3
    """Rounds, each followed by a validation. 0: no adversarial training. 0 to 1000."""
    generator_steps: int = 12
    """Policy-gradient steps per adversarial epoch; each is interleaved with a teacher-forced one. 1 to 100,000."""
    discriminator_steps_per_generator_step: int = 1
    """0 to 100."""
    adversarial_learning_rate: float = 0.0003
    """Of Adam, for the generator in the adversarial phase. 1e-6 to 1."""
    policy_gradient_weight: float = 1.0
    """Of the policy gradient, beside 1.0 for teacher forcing. 0 to 1000."""
    rollout_lag: float = 0.8
    """Share of the old rollout policy that is kept in each update of it. 0 (the generator itself) to 0.999."""
    seed: int = 0
    """Of everything that is drawn. Same seed, data, thread count and CPU: same checkpoint. 0 to 2^63 - 1."""

    def samples_softmax(self, items: int) -> bool:
        """Return whether teacher forcing over ``items`` items estimates the softmax from a sample."""
        return self.softmax == "sampled" or (self.softmax == "auto" and items > SAMPLED_ABOVE)

    @classmethod
    def of(cls, values: Mapping[str, Any], *, where: str) -> Self:
        """Return the settings that ``values`` change; ``where`` they are from is told in errors.

        Raises
        ------
        ConfigError
            A name is unknown, or as the constructor.
        """
        known = [field.name for field in fields(cls)]
        for name in values:
            if name not in known:
                raise ConfigError(f"{where}: unknown training setting {name!r}; {did_you_mean(name, known)}")
        return cls(**values)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _NAMES:
                _check_name(field.name, value)
                continue
            low, high = _RANGES[field.name]
            whole = isinstance(low, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                kind = "a whole number" if whole else "a number"
                raise ConfigError(f"SeqGANConfig.{field.name}: expected {kind}, found {value!r}")
            if not low <= value <= high:
                raise ConfigError(f"SeqGANConfig.{field.name}: expected {low} to {high}, found {value!r}")
        if self.discriminator == "density_ratio" and self.density_ratio_dim <= self.hidden_dim:
            raise ConfigError(
                f"SeqGANConfig.density_ratio_dim: expected more than hidden_dim ({self.hidden_dim}), found "
                f"{self.density_ratio_dim}; a model no larger than the generator has little to teach it"
            )


def _check_name(field: str, value: object) -> None:
    known = _NAMES[field]
    if not isinstance(value, str) or value not in known:
        raise ConfigError(f"SeqGANConfig.{field}: unknown name {value!r}; {did_you_mean(str(value), known)}")


_NAMES: dict[str, tuple[str, ...]] = {
    "discriminator": get_args(DiscriminatorName),
    "estimator": get_args(EstimatorName),
    "softmax": get_args(SoftmaxName),
}
_RANGES: dict[str, tuple[float, float]] = {
    "embedding_dim": (1, 1024),
    "hidden_dim": (1, 4096),
    "dropout": (0.0, 0.9),
    "item_dropout": (0.0, 0.9),
    "max_groups": (1, 1000),
    "max_group_items": (1, 10_000),
    "batch_steps": (1, 100_000),
    "learning_rate": (1e-6, 1.0),
    "weight_decay": (0.0, 10.0),
    "mle_epochs": (1, 1000),
    "softmax_negatives": (1, 65_536),
    "patience": (1, 1000),
    "validation_share": (0.01, 0.5),
    "validation_groups": (1, 1_000_000),
    "discriminator_dim": (1, 1024),
    "density_ratio_dim": (1, 8192),
    "discriminator_dropout": (0.0, 0.9),
    "discriminator_learning_rate": (1e-6, 1.0),
    "discriminator_steps": (0, 100_000),
    "history_groups": (1, 1000),
    "horizon": (1, 100),
    "continuations": (2, 10_000),
    "rollouts": (1, 1000),
    "adversarial_epochs": (0, 1000),
    "generator_steps": (1, 100_000),
    "discriminator_steps_per_generator_step": (0, 100),
    "adversarial_learning_rate": (1e-6, 1.0),
    "policy_gradient_weight": (0.0, 1000.0),
    "rollout_lag": (0.0, 0.999),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True)
class TrainingProgress:
    """One report of a running training."""

    phase: Phase
    step: int
    """1 to ``total``, gradient steps in this phase."""
    total: int
    """Gradient steps of this phase, at most: early stopping may end it before."""
    epoch: int
    """1 is the first epoch of the phase."""
    loss: float
    """Mean over the reported step, nats per step: cross-entropy, or binary cross-entropy of the discriminator."""
    reward: float | None = None
    """Mean rollout reward, a probability; adversarial phase only."""
    accuracy: float | None = None
    """Share of real and generated continuations that the discriminator tells apart."""
    entropy: float | None = None
    """Mean entropy of the generator's next-item distribution on its own samples, nats; adversarial phase only."""
    ndcg_at_10: float | None = None
    """On the held-out slice; in the last report of an epoch only."""
