"""What an encoder is pre-trained with, and what is reported while it trains."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from recsys_llm.errors import ConfigError

Phase = Literal["head", "encoder"]


@dataclass(frozen=True)
class PretrainingConfig:
    """Settings of :func:`recsys_llm.text.pretraining.pretrain`.

    Raises
    ------
    ConfigError
        A value is out of its range; the message names field, range and value.

    Examples
    --------
    >>> PretrainingConfig(learning_rate=5)
    Traceback (most recent call last):
        ...
    recsys_llm.errors.ConfigError: learning_rate: expected 1e-07 to 0.1, found 5
    """

    epochs: int = 3
    """Most passes over the training texts, each with other masks. 1 to 1000."""
    learning_rate: float = 5e-5
    """Of AdamW, after the warm-up; then it falls linearly to 0. 1e-7 to 0.1."""
    warm_up: float = 0.1
    """Share of the steps in which the learning rate grows. 0 to 0.9."""
    weight_decay: float = 0.01
    """Decoupled, per unit of learning rate; not of biases and layer norms. 0 to 1."""
    max_tokens: int = 128
    """Tokens read of each text, special ones included. 8 to 8192."""
    batch_tokens: int = 4096
    """Tokens of a gradient step at most, padding included. 32 to 1,000,000."""
    max_steps: int | None = None
    """Gradient steps at most; None: as many as the epochs have. 1 to 1,000,000,000."""
    held_out: float = 0.05
    """Share of the texts that is only measured on. 0.001 to 0.5."""
    patience: int = 2
    """Epochs without a better held-out loss after which training stops. 1 to 1000."""
    head_steps: int = 200
    """Steps that only train a fresh head, the encoder as it is; none where the checkpoint has a head. 0 to 100,000."""
    head_learning_rate: float = 3e-3
    """Of those steps. 1e-7 to 0.1."""
    save_every: int = 200
    """Steps between two saved states: what a killed run loses at most. 1 to 1,000,000."""
    seed: int = 0
    """Of masks, order and dropout. Same seed, texts, CPU and thread count: same weights. 0 to 2^63 - 1."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "max_steps" and value is None:
                continue
            low, high = _RANGES[field.name]
            whole = isinstance(low, int)
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise ConfigError(
                    f"{field.name}: expected {'a whole number' if whole else 'a number'}, found {value!r}"
                )
            if not low <= value <= high:
                raise ConfigError(f"{field.name}: expected {low} to {high}, found {value!r}")

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the outcome: all but how often the state is saved."""
        return {name: value for name, value in asdict(self).items() if name != "save_every"}


_RANGES: dict[str, tuple[float, float]] = {
    "epochs": (1, 1000),
    "learning_rate": (1e-7, 0.1),
    "warm_up": (0.0, 0.9),
    "weight_decay": (0.0, 1.0),
    "max_tokens": (8, 8192),
    "batch_tokens": (32, 1_000_000),
    "max_steps": (1, 1_000_000_000),
    "held_out": (0.001, 0.5),
    "patience": (1, 1000),
    "head_steps": (0, 100_000),
    "head_learning_rate": (1e-7, 0.1),
    "save_every": (1, 1_000_000),
    "seed": (0, 2**63 - 1),
}


@dataclass(frozen=True)
class PretrainingProgress:
    """One report of a running training."""

    phase: Phase
    step: int
    """1 to ``total``, in this phase."""
    total: int
    """Gradient steps of this phase, at most: early stopping may end it before."""
    epoch: int
    """1 is the first."""
    loss: float
    """Mean over the step's masked tokens, nats."""
    tokens: int
    """Read in this step, without padding."""
    held_out_loss: float | None = None
    """Nats per masked token; in the last report of an epoch only."""
