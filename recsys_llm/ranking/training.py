"""Fit the network on groups of one positive and its negatives: sampled softmax, early stop on the newest groups."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from recsys_llm.errors import ConfigError, TrainingError
from recsys_llm.ranking.events import Floats, Ints
from recsys_llm.ranking.model import DCN, DCNConfig, column_statistics, one_thread


@dataclass(frozen=True)
class RankerConfig:
    """How the ranker is trained."""

    network: DCNConfig = field(default_factory=DCNConfig)
    epochs: int = 30
    """At most, 1 or more."""
    patience: int = 4
    """Epochs without a better validation loss before training stops, 1 or more."""
    batch_groups: int = 128
    """Groups for each step, 1 or more."""
    learning_rate: float = 2e-3
    """Of AdamW, above 0."""
    weight_decay: float = 1e-2
    """Of AdamW, 0 or more."""
    hide: float = 0.02
    """Chance that a known value is hidden in training, 0 to below 1: every column learns its default and its flag."""
    validation: float = 0.15
    """Share of the groups, the newest ones, that decide when to stop, above 0 to below 1."""
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.epochs, self.patience, self.batch_groups) < 1 or self.learning_rate <= 0 or self.weight_decay < 0:
            raise ConfigError(
                "ranker: expected epochs, patience and batch_groups >= 1, learning_rate > 0, weight_decay >= 0, "
                f"found {self}"
            )
        if not 0 <= self.hide < 1 or not 0 < self.validation < 1:
            raise ConfigError(f"ranker: expected 0 <= hide < 1 and 0 < validation < 1, found {self}")


@dataclass(frozen=True)
class Epoch:
    """Progress: losses per group, in nats."""

    number: int
    loss: float
    validation_loss: float


@dataclass(frozen=True, eq=False)
class Targets:
    """What is to be learned from n rows.

    Attributes
    ----------
    labels : float32 (n,)
        1 for exactly one row of each group, else 0.
    groups : int64 (n,)
        Which rows belong together.
    micros : int64 (n,)
        Time of each row, microseconds since the epoch; equal within a group.
    log_q : float32 (n,)
        Log-probability with which each row's item is sampled, taken off its score in the loss (the logQ correction, Yi
        et al. 2019); equal values: all were sampled alike.
    """

    labels: Floats
    groups: Ints
    micros: Ints
    log_q: Floats


def fit_network(
    columns: Floats, targets: Targets, config: RankerConfig, *, progress: Callable[[Epoch], None] | None = None
) -> tuple[DCN, list[Epoch]]:
    """Return the network of the best epoch and the course of its losses.

    The loss of a group is the cross-entropy of its positive among all its candidates (sampled softmax).

    Parameters
    ----------
    columns : float32 (n, F)
        NaN where not known.

    Raises
    ------
    TrainingError
        A group has no positive or several, all groups are of one time, a value is infinite, or the loss is not finite.
    """
    table, moment = _group_table(columns, targets)
    train, held_out = _split(moment, config.validation)
    generator = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]), one_thread():
        torch.manual_seed(config.seed)
        seen = table[train]
        network = DCN(*column_statistics(columns[seen[seen >= 0]]), config.network)
        data = _Data(torch.from_numpy(columns), torch.from_numpy(targets.log_q))
        optimizer = torch.optim.AdamW(network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
        best, course = copy.deepcopy(network.state_dict()), list[Epoch]()
        for number in range(1, config.epochs + 1):
            loss = _epoch(network, optimizer, data, torch.from_numpy(seen), config, generator)
            epoch = Epoch(number, loss, _evaluate(network, data, torch.from_numpy(table[held_out])))
            if not math.isfinite(epoch.loss + epoch.validation_loss):
                raise TrainingError(f"ranker: the loss is not finite in epoch {number}; lower the learning rate")
            if all(epoch.validation_loss < earlier.validation_loss for earlier in course):
                best = copy.deepcopy(network.state_dict())
            course.append(epoch)
            if progress is not None:
                progress(epoch)
            if number - best_epoch(course) >= config.patience:
                break
    network.load_state_dict(best)
    return network.eval(), course


def best_epoch(course: list[Epoch]) -> int:
    """Return the number of the epoch with the lowest validation loss, the first of equal ones."""
    return min(course, key=lambda epoch: epoch.validation_loss).number


@dataclass(frozen=True)
class _Data:
    columns: Tensor  # (n, F)
    log_q: Tensor  # (n,)


def _epoch(
    network: DCN,
    optimizer: torch.optim.Optimizer,
    data: _Data,
    table: Tensor,
    config: RankerConfig,
    generator: torch.Generator,
) -> float:
    network.train()
    total = 0.0
    for chosen in _chunks(torch.randperm(len(table), generator=generator), config.batch_groups):
        rows = table[chosen]  # (B, K), the positive first
        x = data.columns[rows.clamp(min=0).flatten()]  # (B * K, F)
        if config.hide:
            x = x.masked_fill(torch.rand(x.shape, generator=generator) < config.hide, math.nan)
        loss = _loss(network, x, rows, data.log_q)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item() * len(rows)
    return total / len(table)


@torch.no_grad()
def _evaluate(network: DCN, data: _Data, table: Tensor) -> float:
    network.eval()
    total = 0.0
    for rows in _chunks(table, 1024):
        total += _loss(network, data.columns[rows.clamp(min=0).flatten()], rows, data.log_q).item() * len(rows)
    return total / len(table)


def _chunks(tensor: Tensor, size: int) -> Iterator[Tensor]:
    return (tensor[first : first + size] for first in range(0, len(tensor), size))


def _loss(network: DCN, x: Tensor, rows: Tensor, log_q: Tensor) -> Tensor:
    scores = (network(x).view(rows.shape) - log_q[rows.clamp(min=0)]).masked_fill(rows < 0, -math.inf)
    return functional.cross_entropy(scores, torch.zeros(len(rows), dtype=torch.long))


def _group_table(columns: Floats, targets: Targets) -> tuple[Ints, Ints]:
    """Return int64 (G, K), the rows of each group with its positive first (-1 pads), and the time of each group."""
    if np.isinf(columns).any():
        bad = sorted(set(np.flatnonzero(np.isinf(columns).any(axis=0)).tolist()))
        raise TrainingError(
            f"ranker: expected finite values or NaN, found infinity in columns {bad}; check the features"
        )
    labels, groups = targets.labels, targets.groups
    order = np.lexsort((np.arange(len(labels)), -labels, groups))
    distinct, begins, counts = np.unique(groups[order], return_index=True, return_counts=True)
    positives = np.add.reduceat(labels[order], begins)
    if (positives != 1).any():
        wrong = int(np.flatnonzero(positives != 1)[0])
        raise TrainingError(
            f"ranker: expected one row labelled 1 in each group, found {positives[wrong]:g} in group "
            f"{distinct[wrong]}; make examples with sample_examples"
        )
    place = np.arange(int(counts.max()))
    table = np.where(place < counts[:, None], begins[:, None] + place, -1)
    table[table >= 0] = order[table[table >= 0]]
    return table, targets.micros[order][begins]


def _split(moment: Ints, share: float) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Return which groups train and which, all of them later, are held out."""
    cut = np.sort(moment)[max(1, int(len(moment) * (1 - share))) if len(moment) > 1 else 0]
    train = moment < cut
    if not train.any():
        raise TrainingError(
            "ranker: expected groups of at least two different times, to hold out the newest; use a longer period"
        )
    return train, ~train
