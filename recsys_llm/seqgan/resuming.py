"""A training that was interrupted goes on after its last whole epoch, as if it had never stopped."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from recsys_llm.seqgan.averaging import WeightAverage
from recsys_llm.training_state import (
    TrainingState,
    module_tensors,
    optimiser_tensors,
    random_tensors,
    restore_module,
    restore_optimiser,
    restore_random,
    under,
)


@dataclass(frozen=True)
class SavedTraining:
    """Where the state of a maximum-likelihood training is kept."""

    directory: Path
    run: str
    """From :func:`recsys_llm.training_state.run_name`: the state of another training is never taken up."""
    device: torch.device

    def keep(
        self,
        generator: nn.Module,
        optimiser: torch.optim.Optimizer,
        average: WeightAverage,
        rng: np.random.Generator,
        best: dict[str, Tensor],
        losses: list[float],
        scores: list[float],
    ) -> None:
        """Write everything that the epochs to come depend on."""
        tensors = {
            **module_tensors("generator", generator),
            **optimiser_tensors("optimiser", optimiser),
            **random_tensors("random", self.device),
            **{f"best.{name}": value for name, value in best.items()},
            **{f"average.{place}": mean for place, mean in enumerate(average.mean)},
        }
        values = {
            "losses": losses,
            "scores": scores,
            "average_count": average.count,
            "rng": rng.bit_generator.state,
        }
        TrainingState(self.run, len(scores), tensors, values).save(self.directory)

    def restore(
        self, generator: nn.Module, optimiser: torch.optim.Optimizer, average: WeightAverage, rng: np.random.Generator
    ) -> tuple[dict[str, Tensor], list[float], list[float]] | None:
        """Set everything to where the training stood; return the best weights, losses and scores so far.

        Returns
        -------
        tuple or None
            None: no epoch of this training was kept.

        Raises
        ------
        CheckpointError
            The state is damaged.
        """
        state = TrainingState.load(self.directory, run=self.run)
        if state is None:
            return None
        restore_module("generator", generator, state.tensors)
        restore_optimiser("optimiser", optimiser, state.tensors)
        restore_random("random", self.device, state.tensors)
        means = under("average", state.tensors)
        average.mean = [means[str(place)].to(self.device) for place in range(len(means))]
        average.count = state.values["average_count"]
        rng.bit_generator.state = state.values["rng"]
        best = {name: value.to(self.device) for name, value in under("best", state.tensors).items()}
        return best, state.values["losses"], state.values["scores"]
