"""Fine-tuning of an encoder's top layers, with the start as a contestant.

The start is epoch 0: where no epoch validates better, the start is what is returned, and the scores say so. On request
the weights between the start and the best epoch are tried, too (WiSE-FT, Wortsman et al. 2022): a fine-tuning that has
learned a catalogue may have lost some of what the encoder knew of language, which items without events need.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from recsys_llm.text.adapters import State, blend
from recsys_llm.text.events import Ints
from recsys_llm.text.finetuning_settings import FinetuningConfig, FinetuningProgress
from recsys_llm.text.fingerprint import encoder_fingerprint
from recsys_llm.text.model_files import ModelFiles
from recsys_llm.text.objectives import Objective
from recsys_llm.text.optimiser import gradient_step, make_optimiser, warm_up_and_decay
from recsys_llm.text.tunable import TunableEncoder
from recsys_llm.training_state import (
    TrainingState,
    module_tensors,
    optimiser_tensors,
    random_tensors,
    restore_module,
    restore_optimiser,
    restore_random,
    run_name,
    under,
)

SHARES = (0.25, 0.5, 0.75)
"""Between the start (0) and the best epoch (1)."""

Scores = dict[str, Any]
Progress = Callable[[FinetuningProgress], None]


@dataclass(frozen=True, eq=False)
class Finetuned:
    """What :func:`finetune` returns."""

    model: nn.Module
    """The transformers encoder that validates best; additions are merged."""
    scores: Scores
    """See :func:`fit`."""


def finetune(
    files: ModelFiles,
    objective: Objective,
    settings: FinetuningConfig,
    *,
    pooling: str = "mean",
    normalize: bool = True,
    device: torch.device,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Finetuned:
    """Load an encoder, fine-tune it, and return it with its scores.

    Parameters
    ----------
    files
        From :func:`~recsys_llm.text.resolve_model`: what training starts from.
    pooling, normalize
        As the encoder is used.
    state
        Directory of the training's state. One of the same model, data and settings is taken up; another is replaced.
        None: nothing is saved.

    Raises
    ------
    ConfigError
        The model reads fewer than ``max_tokens`` tokens.
    ModelError
        The model can't be loaded.
    TrainingError
        The architecture can't be fine-tuned here, or the loss is no longer finite.
    CheckpointError
        ``state`` is damaged, or holds something else.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # low-rank additions start at random; the caller's state is left alone
        torch.manual_seed(settings.seed)
        encoder = TunableEncoder.load(
            files,
            train_layers=settings.train_layers,
            rank=settings.lora_rank,
            alpha=settings.lora_alpha,
            dropout=settings.dropout,
            max_tokens=settings.max_tokens,
            pooling=pooling,
            normalize=normalize,
            device=device,
        )
    encoder.remember(objective.texts)
    base = encoder_fingerprint(files, pooling=pooling, normalize=normalize, max_tokens=settings.max_tokens)
    run = run_name(training="fine-tuning", base=base, data=objective.digest(), settings=settings.identity())
    scores = fit(encoder, objective, settings, state=state, run=run, progress=progress)
    encoder.merge()
    return Finetuned(encoder.model.eval(), scores)


def fit(
    encoder: TunableEncoder,
    objective: Objective,
    settings: FinetuningConfig,
    *,
    state: Path | None = None,
    run: str = "",
    progress: Progress | None = None,
) -> Scores:
    """Train the top layers; the encoder is left with the weights that validate best.

    Parameters
    ----------
    encoder
        It has remembered the objective's texts.
    state
        Directory where the training's state is kept. A state of the same ``run`` is gone on with.

    Returns
    -------
    dict
        ``epochs``: for each its mean training ``loss`` (None for epoch 0, the start) and validation figures;
        ``interpolation``: the same for weights between; ``chosen``: epoch and share of the way from the start;
        ``helped``: whether that is better than the start.

    Raises
    ------
    TrainingError
        A loss or gradient is not finite.
    """
    devices = [encoder.device] if encoder.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):  # the caller's random state is left alone
        torch.manual_seed(settings.seed)
        training = _Training(encoder, objective, settings, state, run, progress)
        training.go_on()
        return training.finish()


class _Training:
    def __init__(
        self,
        encoder: TunableEncoder,
        objective: Objective,
        settings: FinetuningConfig,
        directory: Path | None,
        run: str,
        progress: Progress | None,
    ) -> None:
        self.encoder, self.objective, self.settings = encoder, objective, settings
        self.directory, self.run, self.progress = directory, run, progress
        self.steps_per_epoch = max(1, len(objective) // settings.batch_size)
        self.total = min(settings.epochs * self.steps_per_epoch, settings.max_steps or 2**62)
        self.batches = lru_cache(maxsize=1)(self._batches)
        self.step = 0
        self.epochs: list[Scores] = []
        self.losses: list[float] = []
        self.start = encoder.top.trained_state()
        saved = None if directory is None else TrainingState.load(directory, run=run)
        objective.prepare(encoder, fit=saved is None)
        self.optimiser = make_optimiser([encoder.top, objective.head], weight_decay=settings.weight_decay)
        self.best, self.best_head = self.start, _copy(objective.head)
        if saved is None:
            self._close_epoch()
        else:
            self._restore(saved)

    def go_on(self) -> None:
        """Take the steps that are left."""
        self.encoder.top.train()
        while self.step < self.total and not self._is_stopped():
            epoch, place = divmod(self.step, self.steps_per_epoch)
            loss = self.objective.loss(self.encoder, self.batches(epoch)[place])
            factor = warm_up_and_decay(self.step + 1, self.total, warm_up=self.settings.warm_up)
            where = f"fine-tuning, step {self.step + 1} of {self.total}"
            rate = self.settings.rate * factor
            self.losses.append(gradient_step(self.optimiser, loss, learning_rate=rate, where=where))
            self.step += 1
            if self.progress is not None:
                self.progress(FinetuningProgress(self.step, self.total, self.losses[-1]))
            closes = place + 1 == self.steps_per_epoch or self.step == self.total
            if closes:
                self._close_epoch()
            if closes or self.step % self.settings.save_every == 0:
                self._save()

    def finish(self) -> Scores:
        """Set the best weights and return all scores."""
        best = self._best_epoch()
        share, interpolation = 1.0 if best else 0.0, []
        if best and self.settings.interpolate:
            highest = self.epochs[best][self.objective.metric]
            for tried in reversed(SHARES):
                self._set(blend(self.start, self.best, tried))
                interpolation.append({"share": tried, **self.objective.validate(self.encoder)})
                if interpolation[-1][self.objective.metric] > highest:
                    share, highest = tried, interpolation[-1][self.objective.metric]
        self._set(blend(self.start, self.best, share) if best else self.start)
        self.encoder.top.eval()
        return {
            "metric": self.objective.metric,
            "epochs": self.epochs,
            "interpolation": interpolation,
            "chosen": {"epoch": best, "share": share},
            "helped": bool(best),
        }

    def _set(self, weights: State) -> None:
        self.encoder.top.restore(weights)
        self.objective.head.load_state_dict(self.best_head)

    def _batches(self, epoch: int) -> list[Ints]:
        order = np.random.default_rng([self.settings.seed, epoch]).permutation(len(self.objective))
        return np.array_split(order, self.steps_per_epoch)

    def _close_epoch(self) -> None:
        loss = math.fsum(self.losses) / len(self.losses) if self.losses else None
        self.losses = []
        self.epochs.append({"epoch": len(self.epochs), "loss": loss, **self.objective.validate(self.encoder)})
        if self._best_epoch() == len(self.epochs) - 1:
            self.best, self.best_head = self.encoder.top.trained_state(), _copy(self.objective.head)

    def _best_epoch(self) -> int:
        """Return the first epoch with the highest score; the start wins a tie."""
        return int(np.argmax([epoch[self.objective.metric] for epoch in self.epochs]))

    def _is_stopped(self) -> bool:
        return len(self.epochs) - 1 - self._best_epoch() >= self.settings.patience

    def _save(self) -> None:
        if self.directory is None:
            return
        tensors = {f"top.{name}": value for name, value in self.encoder.top.trained_state().items()}
        tensors |= {f"start.{name}": value for name, value in self.start.items()}
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        tensors |= {f"best_head.{name}": value for name, value in self.best_head.items()}
        tensors |= module_tensors("head", self.objective.head)
        tensors |= optimiser_tensors("optimiser", self.optimiser)
        tensors |= random_tensors("random", self.encoder.device)
        TrainingState(self.run, self.step, tensors, {"epochs": self.epochs, "losses": self.losses}).save(self.directory)

    def _restore(self, saved: TrainingState) -> None:
        tensors, device = saved.tensors, self.encoder.device
        self.step, self.epochs, self.losses = saved.step, saved.values["epochs"], saved.values["losses"]
        self.encoder.top.restore(under("top", tensors))
        self.start, self.best, self.best_head = (
            {name: value.to(device) for name, value in under(part, tensors).items()}
            for part in ("start", "best", "best_head")
        )
        restore_module("head", self.objective.head, tensors)
        restore_optimiser("optimiser", self.optimiser, tensors)
        restore_random("random", device, tensors)


def _copy(module: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
