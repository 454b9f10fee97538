"""Maximum-likelihood training of the generator: teacher forcing over windows of histories."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from recsys_llm.errors import TrainingError
from recsys_llm.seqgan.averaging import WeightAverage
from recsys_llm.seqgan.generator import Generator, ItemTable
from recsys_llm.seqgan.histories import Ints
from recsys_llm.seqgan.losses import weighted_nll
from recsys_llm.seqgan.reading import LANES, segment_inputs
from recsys_llm.seqgan.resuming import SavedTraining
from recsys_llm.seqgan.sampled_softmax import draw_negatives, popularity_proposal, sampled_nll
from recsys_llm.seqgan.sequences import Batch, Sequences, Windows, make_batch
from recsys_llm.seqgan.settings import SeqGANConfig, TrainingProgress

Progress = Callable[[TrainingProgress], None]
Weights = dict[str, Tensor]
FINAL_RATE = 0.1
"""The learning rate falls linearly, epoch by epoch, to this share of itself."""
GRADIENT_NORM = 1.0
"""Gradients are scaled down to this norm."""


@dataclass(frozen=True)
class Pretrained:
    """What maximum-likelihood training found."""

    weights: Weights
    """Of the epoch with the best validation score."""
    score: float
    """Its NDCG@10 on the validation slice."""
    losses: list[float]
    """Mean training loss of each epoch, nats per step."""
    scores: list[float]
    """Validation NDCG@10 after each epoch."""
    stopped: str | None
    """Why training ended early, if it diverged."""


def pretrain(
    generator: Generator,
    sequences: Sequences,
    config: SeqGANConfig,
    *,
    validate: Callable[[], float],
    rng: np.random.Generator,
    progress: Progress,
    saved: SavedTraining | None = None,
) -> Pretrained:
    """Train ``generator`` by maximum likelihood; it ends with the weights of its best epoch.

    Parameters
    ----------
    saved
        Where to keep the state of each epoch, and to go on from one.

    Raises
    ------
    TrainingError
        The loss is not finite before the first epoch has ended. Later, training stops and keeps the best epoch.
    """
    windows = Windows.cut(sequences, config.max_groups)
    optimiser = make_optimiser(generator, config.learning_rate, config.weight_decay)
    average = WeightAverage(generator)
    per_epoch = sum(1 for _ in windows.batches(config.batch_steps, np.random.default_rng(0)))
    total = per_epoch * config.mle_epochs
    best, stopped = copy_weights(generator), None
    losses: list[float] = []
    scores: list[float] = []
    if saved is not None and (kept := saved.restore(generator, optimiser, average, rng)) is not None:
        best, losses, scores = kept
    for epoch in range(len(scores) + 1, config.mle_epochs + 1):
        if scores and len(scores) - 1 - int(np.argmax(scores)) >= config.patience:
            break
        for group in optimiser.param_groups:
            group["lr"] = config.learning_rate * (1.0 - (1.0 - FINAL_RATE) * (epoch - 1) / config.mle_epochs)
        try:
            loss = _epoch(
                generator, optimiser, average, sequences, windows, config, epoch, (per_epoch, total), rng, progress
            )
        except TrainingError as error:
            if not scores:
                raise
            stopped = str(error)
            break
        losses.append(loss)
        with average.in_place():
            scores.append(validate())
            if scores[-1] >= max(scores):
                best = copy_weights(generator)
        if saved is not None:
            saved.keep(generator, optimiser, average, rng, best, losses, scores)
        progress(TrainingProgress("mle", epoch * per_epoch, total, epoch, loss, ndcg_at_10=scores[-1]))
    generator.load_state_dict(best)
    return Pretrained(best, max(scores), losses, scores, stopped)


def continue_training(
    generator: Generator,
    sequences: Sequences,
    config: SeqGANConfig,
    *,
    epochs: int,
    steps: int,
    validate: Callable[[], float],
    rng: np.random.Generator,
) -> list[float]:
    """Take ``epochs`` times ``steps`` more teacher-forced steps, at ``adversarial_learning_rate``.

    The control for adversarial training: as many steps on real data, chosen by the same validation. The generator ends
    with the weights of its best epoch, or as it was given where that is better.

    Returns
    -------
    list of float
        Validation NDCG@10 before, and after each epoch.
    """
    windows = Windows.cut(sequences, config.max_groups)
    optimiser = make_optimiser(generator, config.adversarial_learning_rate, config.weight_decay)
    batches = windows.endless_batches(config.batch_steps, rng)
    scores, best = [validate()], copy_weights(generator)
    for epoch in range(1, epochs + 1):
        states = states_before(generator, sequences, windows)
        for _ in range(steps):
            chosen = next(batches)
            batch = make_batch(sequences, windows, chosen, generator.start.device)
            loss = teacher_forcing_loss(generator, batch, states[torch.from_numpy(chosen)], config)
            update(generator, optimiser, loss, f"control epoch {epoch}")
        scores.append(validate())
        if scores[-1] > max(scores[:-1]):
            best = copy_weights(generator)
    generator.load_state_dict(best)
    return scores


def _epoch(
    generator: Generator,
    optimiser: torch.optim.Optimizer,
    average: WeightAverage,
    sequences: Sequences,
    windows: Windows,
    config: SeqGANConfig,
    epoch: int,
    size: tuple[int, int],
    rng: np.random.Generator,
    progress: Progress,
) -> float:
    states = states_before(generator, sequences, windows)
    per_epoch, total = size
    losses = []
    for step, chosen in enumerate(windows.batches(config.batch_steps, rng), start=1):
        batch = make_batch(sequences, windows, chosen, generator.start.device)
        loss = teacher_forcing_loss(generator, batch, states[torch.from_numpy(chosen)], config)
        update(generator, optimiser, loss, f"maximum-likelihood epoch {epoch}")
        average.follow(1.0 / per_epoch)
        losses.append(float(loss.detach()))
        if step < per_epoch:
            progress(TrainingProgress("mle", (epoch - 1) * per_epoch + step, total, epoch, losses[-1]))
    return float(np.mean(losses))


def teacher_forcing_loss(generator: Generator, batch: Batch, states: Tensor, config: SeqGANConfig) -> Tensor:
    """Return the cross-entropy of the next groups, nats per step.

    Parameters
    ----------
    states : (B, state_dim)
        Before each window.
    config
        For ``dropout``, ``item_dropout`` and the kind of softmax.
    """
    if config.samples_softmax(len(generator.counts)):
        return _sampled_loss(generator, batch, states, config)
    table = generator.item_table()
    queries, _ = generator(input_grid(generator, table, batch, config.item_dropout), states, dropout=config.dropout)
    return weighted_nll(
        queries.flatten(0, 1)[batch.place],
        table.vectors,
        table.bias,
        rows=batch.target_rows,
        targets=batch.targets,
        weights=batch.target_weights,
    )


def _sampled_loss(generator: Generator, batch: Batch, states: Tensor, config: SeqGANConfig) -> Tensor:
    """Return the loss over a sample of the items; no other item's vector is made."""
    proposal = popularity_proposal(generator.counts).to(generator.free.dtype)
    negatives = draw_negatives(proposal, config.softmax_negatives)
    known = batch.input_items >= 0
    parts = [batch.input_items[known], batch.targets, negatives]
    used, places = torch.unique(torch.cat(parts), return_inverse=True)
    read, targets, drawn = places.split([len(part) for part in parts])
    inputs = batch.input_items.clone()
    inputs[known] = read
    table = generator.item_table(used)
    grid = input_grid(generator, table, replace(batch, input_items=inputs), config.item_dropout)
    queries, _ = generator(grid, states, dropout=config.dropout)
    return sampled_nll(
        queries.flatten(0, 1)[batch.place],
        table.vectors,
        table.bias,
        rows=batch.target_rows,
        targets=targets,
        weights=batch.target_weights,
        negatives=drawn,
        log_proposal=proposal[negatives],
    )


def input_grid(generator: Generator, table: ItemTable, batch: Batch, item_dropout: float = 0.0) -> Tensor:
    """Return the inputs of a batch's steps, (B, T, E), zero where a window is shorter; some items hidden at random."""
    items = batch.input_items
    if item_dropout > 0:
        hidden = torch.rand(len(items), device=items.device) < item_dropout
        items = items.masked_fill(hidden, -1)
    groups = generator.read_groups(table.vectors, items, batch.input_offsets)
    groups = torch.where(batch.start_steps.unsqueeze(1), generator.start, groups)  # (steps, E)
    lanes, width = batch.shape
    grid = groups.new_zeros(lanes * width, groups.shape[1]).index_copy(0, batch.place, groups)
    return grid.view(lanes, width, -1)


@torch.no_grad()
def states_before(generator: Generator, sequences: Sequences, windows: Windows) -> Tensor:
    """Return the state before each window, (windows, state_dim), with the weights as they are now.

    Windows are drawn in random order in training; this lets each begin with its user's past all the same.
    """
    vectors = generator.item_table().vectors
    states = vectors.new_zeros(len(windows), generator.state_dim)
    opening = np.flatnonzero(windows.opens)
    per_user = np.diff(np.append(opening, len(windows)))
    users = np.searchsorted(sequences.user_offsets, windows.first[opening], side="right") - 1
    several = np.flatnonzero(per_user > 1)
    width = int(windows.length.max())  # where a user has several windows, all but the last have this length
    for lane in range(0, len(several), LANES):
        chosen = several[lane : lane + LANES]
        _carry(generator, vectors, sequences, (users[chosen], opening[chosen], per_user[chosen]), width, states)
    return states


def _carry(
    generator: Generator, vectors: Tensor, sequences: Sequences, lanes: tuple[Ints, Ints, Ints], width: int, out: Tensor
) -> None:
    users, first_window, count = lanes
    steps = np.diff(sequences.user_offsets)[users]
    state: Tensor | None = None
    for window in range(int(count.max()) - 1):
        inputs = segment_inputs(generator, vectors, sequences, users, steps, window * width, width)
        _, state = generator(inputs, state)
        follows = np.flatnonzero(window + 1 < count)
        out[torch.from_numpy(first_window[follows] + window + 1)] = state[torch.from_numpy(follows)]


def make_optimiser(generator: Generator, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Return Adam with decoupled weight decay on the free item embedding only."""
    rest = [parameter for name, parameter in generator.named_parameters() if name != "free"]
    groups = [{"params": [generator.free], "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=learning_rate)


def update(module: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor, where: str) -> None:
    """Take one gradient step.

    Raises
    ------
    TrainingError
        The loss or a gradient is not finite; the weights are as before the step.
    """
    if not bool(torch.isfinite(loss)):
        raise TrainingError(f"{where}: expected a finite loss, found {float(loss.detach())}; lower the learning rate")
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(module.parameters(), GRADIENT_NORM)
    if not bool(torch.isfinite(norm)):
        raise TrainingError(f"{where}: expected finite gradients, found norm {float(norm)}; lower the learning rate")
    optimiser.step()


def copy_weights(module: nn.Module) -> Weights:
    """Return a copy of a module's parameters and saved buffers."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
