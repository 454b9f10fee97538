"""A GRU4Rec-style peer in plain PyTorch: one item at a time, no text, no groups.

Hidasi and Karatzoglou 2018, "Recurrent Neural Networks with Top-k Gains for Session-based Recommendations": a GRU over
item embeddings that the output shares, cross-entropy against negatives that a batch has in common, drawn by
``count ** 0.5``, which is corrected for (logQ). Items of a group follow each other in an arbitrary order.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from time import perf_counter, process_time
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys_llm.bench.next_items_scoring import Scorer, validation_ndcg
from recsys_llm.bench.next_items_world import Tasks, World
from recsys_llm.bench.peers.exchange import flat_events, in_arbitrary_order
from recsys_llm.seqgan.sequences import Sequences

WINDOW = 50
"""Items per training window."""
READ = 200
"""Most recent items that are read for a prediction."""


@dataclass(frozen=True)
class GRU4RecConfig:
    """Settings; see :data:`GRID` for those that are tried."""

    dim: int = 64
    dropout: float = 0.2
    learning_rate: float = 0.003
    negatives: int = 1024
    batch: int = 16
    """Windows per gradient step."""
    epochs: int = 30
    """At most; of the chosen settings, as many as were best on the validation slice."""
    patience: int = 3


GRID = (GRU4RecConfig(), GRU4RecConfig(dim=128, dropout=0.4))


class GRU4Rec(nn.Module):
    """Item embedding, GRU, and the same embedding as the output."""

    def __init__(self, items: int, config: GRU4RecConfig) -> None:
        super().__init__()
        self.embedding = nn.Embedding(items + 1, config.dim, padding_idx=items)
        nn.init.normal_(self.embedding.weight, std=0.1)
        self.gru = nn.GRU(config.dim, config.dim, batch_first=True)
        self.bias = nn.Parameter(torch.zeros(items))
        self.dropout = config.dropout

    def forward(self, items: Tensor) -> Tensor:
        """Return the state after each item, (B, T, dim), for items (B, T)."""
        inputs = F.dropout(self.embedding(items), self.dropout, self.training)
        hidden: Tensor = self.gru(inputs)[0]
        return F.dropout(hidden, self.dropout, self.training)


@dataclass(frozen=True, eq=False)
class Tuned:
    """The chosen settings."""

    config: GRU4RecConfig
    validation: float
    seconds: float


def tune(
    world: World, share: float, largest: int, budget: float, grid: tuple[GRU4RecConfig, ...] | None = None
) -> Tuned:
    """Choose settings and epochs by NDCG@10 on the validation slice; none is begun after ``budget`` CPU seconds."""
    started = process_time()
    grid = grid or GRID
    events, tasks = world.validation(share, largest)
    best, score = replace(grid[0], epochs=1), -1.0
    for config in grid:
        if score >= 0 and process_time() - started > budget:
            break
        scores: list[float] = []
        for model in epochs(events, len(world.item_ids), config, seed=0):
            scores.append(validation_ndcg(scorer(model, world), world, tasks))
            if scores[-1] > score:
                best, score = replace(config, epochs=len(scores)), scores[-1]
            if len(scores) - 1 - int(np.argmax(scores)) >= config.patience or process_time() - started > budget:
                break
    return Tuned(best, score, process_time() - started)


def fit(world: World, config: GRU4RecConfig, seed: int) -> tuple[Scorer, float]:
    """Train on everything before T for ``config.epochs``; return the scorer and the seconds."""
    started = perf_counter()
    (model,) = deque(epochs(world.before(), len(world.item_ids), config, seed), maxlen=1)
    return scorer(model, world), perf_counter() - started


def facts(tuned: Tuned) -> dict[str, Any]:
    """Return what a report says of the tuning."""
    return {"chosen_settings": asdict(tuned.config), "tuning_seconds": round(tuned.seconds, 1)}


def epochs(sequences: Sequences, items: int, config: GRU4RecConfig, seed: int) -> Iterator[GRU4Rec]:
    """Yield the model after each epoch, in eval mode; it is trained on when the next one is asked for."""
    windows = training_windows(in_arbitrary_order(sequences), items)
    chance = torch.from_numpy(np.sqrt(np.bincount(sequences.items, minlength=items)).astype(np.float32))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = GRU4Rec(items, config)
        state = torch.get_rng_state()
    optimiser = torch.optim.Adam(model.parameters(), lr=config.learning_rate)
    for _ in range(config.epochs):
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(state)
            model.train()
            for rows in torch.split(torch.randperm(len(windows)), config.batch):
                negatives = torch.multinomial(chance, config.negatives, replacement=True)
                loss = sampled_loss(model, windows[rows], negatives, chance)
                optimiser.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimiser.step()
            state = torch.get_rng_state()
        yield copy.deepcopy(model).eval()


def training_windows(sequences: Sequences, items: int) -> Tensor:
    """Return runs of each user's items, int64 (windows, WINDOW + 1), padded with ``items``."""
    flat = flat_events(sequences)
    ends = np.cumsum(np.bincount(flat["user"], minlength=len(sequences.user_offsets) - 1))
    rows = []
    for first, last in zip(np.concatenate([[0], ends[:-1]]), ends, strict=True):
        for begin in range(first, last - 1, WINDOW):
            row = np.full(WINDOW + 1, items)
            part = flat["item"][begin : min(begin + WINDOW + 1, last)]
            row[: len(part)] = part
            rows.append(row)
    return torch.from_numpy(np.array(rows))


def sampled_loss(model: GRU4Rec, windows: Tensor, negatives: Tensor, chance: Tensor) -> Tensor:
    """Return the cross-entropy of the next item against shared negatives; a negative that is the target is left out.

    Parameters
    ----------
    windows : int64 (B, T + 1)
    negatives : int64 (n,)
        Drawn by ``chance``, whose logarithm is taken off the logits: else the popular would be held down.
    chance : float (items,)
    """
    offset = torch.log(chance.clamp_min(1e-9))
    padding = len(model.bias)
    inputs, targets = windows[:, :-1], windows[:, 1:]
    wanted = targets != padding
    hidden, targets = model(inputs)[wanted], targets[wanted]
    own = (hidden * model.embedding(targets)).sum(1) + model.bias[targets] - offset[targets]
    others = hidden @ model.embedding(negatives).T + model.bias[negatives] - offset[negatives]
    others = others.masked_fill(negatives.unsqueeze(0) == targets.unsqueeze(1), float("-inf"))
    loss: Tensor = (torch.logsumexp(torch.cat([own.unsqueeze(1), others], 1), 1) - own).mean()
    return loss


def scorer(model: GRU4Rec, world: World) -> Scorer:
    """Return the scores of all items after the last :data:`READ` items of each task."""
    items = len(world.item_ids)

    @torch.no_grad()
    def scores(tasks: Tasks) -> npt.NDArray[np.float32]:
        histories, lengths = recent_items(world.sequences, tasks, items)
        out = np.empty((len(tasks), items), np.float32)
        for start in range(0, len(tasks), 256):
            rows = slice(start, start + 256)
            width = int(lengths[rows].max(initial=1))
            hidden = model(torch.from_numpy(histories[rows, :width]))
            last = hidden[torch.arange(len(hidden)), torch.from_numpy(np.maximum(lengths[rows], 1) - 1)]
            last = last * torch.from_numpy(lengths[rows] > 0).unsqueeze(1)  # nothing read: the biases decide
            out[rows] = (last @ model.embedding.weight[:-1].T + model.bias).numpy()
        return out

    return scores


def recent_items(sequences: Sequences, tasks: Tasks, items: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the last known items before each task, oldest first, (n, READ) with ``items`` after them, and how many."""
    histories = np.full((len(tasks), READ), items)
    lengths = np.zeros(len(tasks), np.int64)
    sequences = in_arbitrary_order(sequences)
    begin = sequences.group_offsets[tasks.groups - tasks.read]
    end = sequences.group_offsets[tasks.groups]
    for row, (first, last) in enumerate(zip(begin, end, strict=True)):
        part = sequences.items[first:last]
        part = part[part >= 0][-READ:]
        histories[row, : len(part)] = part
        lengths[row] = len(part)
    return histories, lengths
