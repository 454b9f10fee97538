"""Settings of a fine-tuning."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from recsys_llm.errors import ConfigError, did_you_mean

ObjectiveName = Literal["contrastive", "category"]


@dataclass(frozen=True)
class FinetuningConfig:
    """How an encoder is fine-tuned; the defaults suit a few thousand items and a CPU."""

    objective: ObjectiveName = "contrastive"
    """``contrastive``: texts of items that follow each other become alike; ``category``: categories can be read off."""
    train_layers: int = 2
    """The last layers of the encoder, which alone are trained. Those below are computed once per text."""
    lora_rank: int | None = None
    """Train low-rank additions to the attention of these layers instead of the layers, at least 1; None: the layers."""
    lora_alpha: float = 16.0
    """An addition is scaled by this over the rank."""
    epochs: int = 3
    """Passes over the pairs, at least 1."""
    max_steps: int | None = None
    """Gradient steps at most; None: all epochs."""
    batch_size: int = 64
    """Pairs in a gradient step, at least 2; all other targets of the batch are negatives."""
    learning_rate: float | None = None
    """The highest, after the warm-up, above 0; None: 2e-4 for layers, 1e-3 for additions."""
    warm_up: float = 0.1
    """Share of the steps in which the learning rate grows, 0 to 1."""
    weight_decay: float = 0.01
    """Of weight matrices, per step and learning rate."""
    dropout: float = 0.1
    """In the trained layers, 0 to 1."""
    max_tokens: int = 64
    """Tokens read of each text in training, at least 8; an encoder that reads fewer keeps to its own number."""
    temperature: float = 0.1
    """Cosines are divided by it, above 0."""
    correct_popularity: bool = True
    """Subtract the log of each item's share of the pairs from its logit (logQ)."""
    both_directions: bool = False
    """Also find the query of each target."""
    item_pairs: int = 20_000
    """Pairs of an item and the next one at most, at least 1; more are sampled."""
    user_pairs: int = 10_000
    """Pairs of a user's text and the next item at most, at least 0."""
    validation_share: float = 0.1
    """Share of the pairs (of the items, for categories), the last in time, to validate on; above 0, below 0.5."""
    validation_pairs: int = 20_000
    """At most, at least 1. They cost little: what costs is to encode their items."""
    validation_items: int = 4_000
    """Items that a target is ranked among, at least 2; fewer pairs are used where they have more items."""
    patience: int = 1
    """Epochs without a better validation score after which training stops, at least 1."""
    interpolate: bool = False
    """Try weights between the start and the best epoch, too (WiSE-FT), and keep what validates best. It costs three
    validations; on films and retail the best epoch itself was best."""
    save_every: int = 200
    """Gradient steps after which the state is written; also after each epoch."""
    seed: int = 0
    """Of sampling, order and dropout."""

    def __post_init__(self) -> None:
        if self.objective not in get_args(ObjectiveName):
            raise ConfigError(
                f"objective: unknown {self.objective!r}; {did_you_mean(self.objective, get_args(ObjectiveName))}"
            )
        least = {"train_layers": 1, "epochs": 1, "batch_size": 2, "max_tokens": 8, "item_pairs": 1, "user_pairs": 0}
        least |= {"validation_pairs": 1, "validation_items": 2, "patience": 1, "save_every": 1, "seed": 0}
        least |= {name: 1 for name in ("lora_rank", "max_steps") if getattr(self, name) is not None}
        for name, value in least.items():
            if not getattr(self, name) >= value:
                raise ConfigError(f"{name}: expected {value} or more, found {getattr(self, name)}")
        for name in ("lora_alpha", "temperature", "rate", "validation_share"):
            if not 0 < getattr(self, name) < float("inf"):
                shown = "learning_rate" if name == "rate" else name
                raise ConfigError(f"{shown}: expected a number above 0, found {getattr(self, name)}")
        for name, highest in (("warm_up", 1.0), ("dropout", 1.0), ("validation_share", 0.5), ("weight_decay", 1.0)):
            if not 0 <= getattr(self, name) < highest:
                raise ConfigError(f"{name}: expected 0 to below {highest}, found {getattr(self, name)}")

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return self.learning_rate if self.learning_rate is not None else 2e-4 if self.lora_rank is None else 1e-3

    def identity(self) -> dict[str, Any]:
        """Return what decides the outcome, JSON values."""
        return {name: value for name, value in asdict(self).items() if name != "save_every"}


@dataclass(frozen=True)
class FinetuningProgress:
    """Where a fine-tuning stands, after a gradient step."""

    step: int
    total: int
    loss: float
