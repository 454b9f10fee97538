"""Sizes and recipes of the synthetic test."""

from __future__ import annotations

from dataclasses import dataclass

from recsys_llm.bench.oracle_training import Recipe


@dataclass(frozen=True)
class OracleSettings:
    """How large the test is; the defaults take some 10 minutes for a seed on one core."""

    items: int = 100
    """V, items of the oracle."""
    length: int = 20
    """T, items of a sequence."""
    sequences: int = 20_000
    """Of the oracle, to train on."""
    held_out: int = 5_000
    """Of the oracle to choose by, and as many to measure NLL_test on."""
    oracle_dim: int = 32
    """Width of the oracle's item vectors and state."""
    generator_dim: int = 8
    """Width of the generator's item vectors and state. Where it can learn the oracle, there is nothing to gain."""
    phi_dim: int = 48
    """Width of the density-ratio discriminator's language model."""
    discriminator_dim: int = 16
    """Width of the GRU and the CNN."""
    discriminator_pretraining: int = 200
    """Steps of the GRU and the CNN before the first generator step."""
    mle_steps: int = 4_000
    """Of the generator's pre-training."""
    mle_learning_rate: float = 0.01
    """Of Adam; falls linearly to a tenth."""
    phi_steps: int = 3_000
    """Of phi's pre-training."""
    phi_learning_rate: float = 0.005
    """Of Adam; falls linearly to a tenth."""
    mle_batch: int = 128
    """Sequences."""
    steps: int = 320
    """Generator steps of a recipe without rollouts, and of the control."""
    rollout_steps: int = 120
    """Generator steps of a recipe with rollouts."""
    reward_steps: int = 60
    """Generator steps with the oracle as reward: after more of them little entropy is left to compare at."""
    rollouts: int = 4
    """N, completions of each prefix."""
    batch: int = 256
    """Sequences of a generator step without rollouts, and of the control."""
    rollout_batch: int = 64
    """Sequences of a generator step with rollouts."""
    samples: int = 4_000
    """Of each generator, to measure it on."""
    points: int = 8
    """Measurements along each training, for the curves."""
    temperatures: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25)
    """Of the sweep."""


PAPER_SIZE = OracleSettings(
    items=5_000,
    sequences=10_000,
    generator_dim=32,
    phi_dim=64,
    discriminator_dim=64,
    mle_steps=18_000,
    phi_steps=6_000,
    mle_batch=64,
    rollouts=16,
    rollout_steps=800,
)
"""V = 5000, 10,000 sequences, widths, N and steps of Yu et al. 2017; hours on a CPU."""


def recipes(settings: OracleSettings) -> tuple[Recipe, ...]:
    """Return the adversarial recipes that are compared."""
    before = settings.discriminator_pretraining
    size = {"steps": settings.steps, "batch": settings.batch}
    slow = {
        "steps": settings.rollout_steps,
        "batch": settings.rollout_batch,
        "rollouts": settings.rollouts,
        "discriminator_pretraining": before,
    }
    return (
        Recipe("cnn, rollouts", "cnn", "rollouts", **slow),
        Recipe("gru, rollouts", "gru", "rollouts", **slow),
        Recipe("gru, rollouts_baseline", "gru", "rollouts_baseline", **slow),
        Recipe("cnn, reinforce", "cnn", "reinforce", discriminator_pretraining=before, **size),
        Recipe("gru, reinforce", "gru", "reinforce", discriminator_pretraining=before, **size),
        Recipe("density_ratio, reinforce", "density_ratio", "reinforce", discriminator_pretraining=0, **size),
        Recipe(
            "density_ratio with phi frozen, reinforce",
            "density_ratio",
            "reinforce",
            discriminator_pretraining=0,
            discriminator_steps=0,
            **size,
        ),
        Recipe("oracle as reward, reinforce", None, "reinforce", steps=settings.reward_steps, batch=settings.batch),
    )
