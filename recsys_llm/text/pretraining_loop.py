"""The steps of :func:`recsys_llm.text.pretraining.pretrain`, and what a saved state of them holds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from recsys_llm.errors import TrainingError
from recsys_llm.text.masked_language_model import (
    MaskedBatch,
    MaskedLanguageModel,
    held_out_loss,
    make_batch,
    perplexity,
    start_from_frequencies,
    vocabulary_of,
)
from recsys_llm.text.masked_word_head import word_embeddings
from recsys_llm.text.optimiser import gradient_step, make_optimiser, warm_up_and_decay
from recsys_llm.text.pretraining_settings import PretrainingConfig, PretrainingProgress
from recsys_llm.text.training_texts import Ints, TokenTexts, similar_lengths
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

Progress = Callable[[PretrainingProgress], None]
Save = Callable[[int, dict[str, Tensor], dict[str, Any]], None]

_ORDER, _MASKS, _HEAD_MASKS, _HELD_OUT_MASKS = range(4)
"""Streams of random numbers."""

_logger = logging.getLogger(__name__)


@dataclass
class History:
    """What training measured so far; the losses are nats per masked token."""

    head_from_checkpoint: bool
    """False: the checkpoint had no head, and a fresh one was trained first."""
    untrained_loss: float | None = None
    """Held-out loss with the fresh head as it starts; None where the checkpoint has a head."""
    loss_before: float = 0.0
    """Held-out loss of the encoder as it came, with the checkpoint's head or the trained fresh one."""
    losses: list[float] = field(default_factory=list)
    """Mean training loss of each epoch."""
    held_out_losses: list[float] = field(default_factory=list)
    """After each epoch; the masks are the same every time."""
    running: list[float] = field(default_factory=list)
    """Training losses in the epoch that is under way."""

    @property
    def best_epoch(self) -> int:
        """Epoch with the lowest held-out loss; 1 is the first."""
        return 1 + int(np.argmin(self.held_out_losses))

    def as_scores(self) -> dict[str, Any]:
        """Return the figures for a manifest."""
        untrained = None if self.untrained_loss is None else perplexity(self.untrained_loss)
        return {
            "head": "checkpoint" if self.head_from_checkpoint else "fresh",
            "losses": self.losses,
            "held_out_losses": self.held_out_losses,
            "best_epoch": self.best_epoch,
            "perplexity": {
                "untrained_head": untrained,
                "before": perplexity(self.loss_before),
                "after": perplexity(min(self.held_out_losses)),
            },
        }


class Trainer:
    """A model in training, and everything that a saved state of it holds."""

    def __init__(
        self,
        model: MaskedLanguageModel,
        texts: tuple[TokenTexts, TokenTexts],
        config: PretrainingConfig,
        tokenizer: Any,
        *,
        name: str,
        progress: Progress,
    ) -> None:
        self.model = model
        self.history = History(head_from_checkpoint=False)
        self.best: dict[str, Tensor] = {}
        self.step = 0
        self._texts, measure = texts
        self._config = config
        self._progress = progress
        self._vocabulary = vocabulary_of(tokenizer, name=name)
        self._pad = int(tokenizer.pad_token_id or 0)
        self._device = model.head.bias.device
        self._optimiser = make_optimiser([model], weight_decay=config.weight_decay)
        self._per_epoch = len(self._order(0))
        self._total = min(config.epochs * self._per_epoch, config.max_steps or config.epochs * self._per_epoch)
        fixed = np.random.default_rng([_HELD_OUT_MASKS])
        batches = similar_lengths(measure.lengths, config.batch_tokens, fixed)
        self._measure = [self._batch(measure, rows, fixed) for rows in batches]

    def prepare(self, *, is_stored: bool) -> None:
        """Measure the encoder as it came; a fresh head is trained first."""
        self.history.head_from_checkpoint = is_stored
        if not is_stored:
            start_from_frequencies(self.model.head, self._texts)
            self.history.untrained_loss = self._held_out("untrained head")
            self._train_head()
        self.history.loss_before = self._held_out("before training")

    def restore(self, saved: TrainingState) -> None:
        """Go on from a state."""
        restore_module("model", self.model, saved.tensors)
        restore_optimiser("optimiser", self._optimiser, saved.tensors)
        restore_random("random", self._device, saved.tensors)
        self.best = under("best", saved.tensors)
        self.history = History(**saved.values)
        self.step = saved.step
        _logger.info("going on after step %d of %d", self.step, self._total)

    def train(self, save: Save) -> None:
        """Train encoder and head to the last step, or until held-out losses no longer fall."""
        self.model.train()
        if self.step == 0:
            save(self.step, *self._state())
        order: list[Ints] = []
        while self.step < self._total and not self._is_stale():
            epoch, place = divmod(self.step, self._per_epoch)
            if place == 0 or not order:
                order = self._order(epoch)
            batch, loss = self._encoder_step(order[place])
            ends = place + 1 == self._per_epoch or self.step == self._total
            found = self._end_epoch(epoch + 1) if ends else None
            self._progress(PretrainingProgress("encoder", self.step, self._total, epoch + 1, loss, batch.tokens, found))
            if ends or self.step % self._config.save_every == 0:
                save(self.step, *self._state())

    def _encoder_step(self, rows: Ints) -> tuple[MaskedBatch, float]:
        number = self.step + 1
        batch = self._batch(self._texts, rows, np.random.default_rng([self._config.seed, _MASKS, number]))
        factor = warm_up_and_decay(number, self._total, warm_up=self._config.warm_up)
        loss = gradient_step(
            self._optimiser,
            self.model.loss(batch),
            learning_rate=self._config.learning_rate * factor,
            where=f"masked-language-model training, step {number}",
        )
        self.step = number
        self.history.running.append(loss)
        return batch, loss

    def _end_epoch(self, epoch: int) -> float:
        found = self._held_out(f"epoch {epoch}")
        self.history.losses.append(float(np.mean(self.history.running)))
        self.history.running = []
        self.history.held_out_losses.append(found)
        if self.history.best_epoch == epoch:
            self.best = {name: value.detach().cpu().clone() for name, value in self.model.backbone.state_dict().items()}
        return found

    def _is_stale(self) -> bool:
        done = len(self.history.held_out_losses)
        return done > 0 and done - self.history.best_epoch >= self._config.patience

    def _train_head(self) -> None:
        steps, rows = self._config.head_steps, [order for epoch in range(2) for order in self._order(epoch)]
        optimiser = make_optimiser([self.model.head], weight_decay=self._config.weight_decay)
        words = word_embeddings(self.model.backbone).weight.detach()
        self.model.eval()
        for step in range(1, steps + 1):
            masks = np.random.default_rng([self._config.seed, _HEAD_MASKS, step])
            batch = self._batch(self._texts, rows[step % len(rows)], masks)
            with torch.no_grad():
                states = self.model.states(batch)
            loss = gradient_step(
                optimiser,
                functional.cross_entropy(self.model.scores(states, words), batch.targets),
                learning_rate=self._config.head_learning_rate * warm_up_and_decay(step, steps, warm_up=0.1),
                where=f"training of the fresh head, step {step}",
            )
            self._progress(PretrainingProgress("head", step, steps, 1, loss, batch.tokens))
        self.model.zero_grad()

    def _held_out(self, where: str) -> float:
        found = held_out_loss(self.model, self._measure)
        if not np.isfinite(found):
            raise TrainingError(f"{where}: expected a finite held-out loss, found {found}; lower the learning rate")
        return found

    def _order(self, epoch: int) -> list[Ints]:
        rng = np.random.default_rng([self._config.seed, _ORDER, epoch])
        return similar_lengths(self._texts.lengths, self._config.batch_tokens, rng)

    def _batch(self, texts: TokenTexts, rows: Ints, rng: np.random.Generator) -> MaskedBatch:
        return make_batch(texts, rows, self._vocabulary, rng, pad=self._pad, device=self._device)

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        tensors = module_tensors("model", self.model)
        tensors |= optimiser_tensors("optimiser", self._optimiser)
        tensors |= random_tensors("random", self._device)
        tensors |= {f"best.{name}": value for name, value in self.best.items()}
        return tensors, dict(vars(self.history))
