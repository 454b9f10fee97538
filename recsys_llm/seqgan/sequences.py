"""Histories as numbers, and the training windows cut from them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys_llm.seqgan.histories import Histories, Ints
from recsys_llm.seqgan.vocabulary import UNKNOWN, Vocabulary


@dataclass(frozen=True, eq=False)
class Sequences:
    """Histories with items as vocabulary indexes; -1 is an unknown item."""

    items: Ints
    group_offsets: Ints
    user_offsets: Ints
    timestamps: Ints

    @classmethod
    def encode(cls, histories: Histories, vocabulary: Vocabulary) -> Sequences:
        """Return ``histories`` in the indexes of ``vocabulary``."""
        return cls(
            vocabulary.encode(histories.item_ids), histories.group_offsets, histories.user_offsets, histories.timestamps
        )

    def group_sizes(self) -> Ints:
        """(groups,) number of items in each group."""
        return np.diff(self.group_offsets)

    def read_before(self, groups: Ints) -> tuple[Ints, Ints]:
        """Return the user of each group (flat indexes, int64 (n,)), and how many groups of theirs come before it."""
        users = np.searchsorted(self.user_offsets, groups, side="right") - 1
        return users, groups - self.user_offsets[users]

    def repeat_share(self) -> float:
        """Return the share of events that repeat an item of their user."""
        users, _ = self.read_before(np.arange(len(self.timestamps)))
        known = self.items + 1  # 0 is an unknown item
        pairs = np.repeat(users, self.group_sizes()) * (int(known.max(initial=0)) + 1) + known
        return 1.0 - len(np.unique(pairs)) / len(pairs)

    def before(self, micros: int) -> Sequences:
        """Return only the groups strictly before a time; users stay, some with no group."""
        keep = self.timestamps < micros
        kept_before = np.concatenate([[0], np.cumsum(keep)])
        sizes = self.group_sizes()
        return Sequences(
            self.items[np.repeat(keep, sizes)],
            np.concatenate([[0], np.cumsum(sizes[keep])]),
            kept_before[self.user_offsets],
            self.timestamps[keep],
        )

    def capped(self, largest: int, rng: np.random.Generator) -> Sequences:
        """Return the sequences with a random subset of ``largest`` items in each larger group."""
        sizes = self.group_sizes()
        if not len(sizes) or sizes.max() <= largest:
            return self
        keep = np.ones(len(self.items), np.bool_)
        for group in np.flatnonzero(sizes > largest):
            start, size = self.group_offsets[group], sizes[group]
            keep[start + rng.permutation(size)[largest:]] = False
        kept = np.minimum(sizes, largest)
        return Sequences(self.items[keep], np.concatenate([[0], np.cumsum(kept)]), self.user_offsets, self.timestamps)


@dataclass(frozen=True, eq=False)
class Windows:
    """Runs of at most ``max_groups`` consecutive target groups of a user; a target's input is the group before it."""

    first: Ints
    """(windows,) flat index of the first target group."""
    length: Ints
    """(windows,) number of target groups."""
    opens: npt.NDArray[np.bool_]
    """(windows,) whether the window begins a history: its first input is the start vector."""

    @classmethod
    def cut(cls, sequences: Sequences, max_groups: int) -> Windows:
        """Cut every user's groups, windows of a user one after the other."""
        counts = np.diff(sequences.user_offsets)
        per_user = -(-counts // max_groups)
        user = np.repeat(np.arange(len(counts)), per_user)
        place = np.arange(len(user)) - np.repeat(np.cumsum(per_user) - per_user, per_user)
        first = sequences.user_offsets[:-1][user] + place * max_groups
        length = np.minimum(max_groups, sequences.user_offsets[1:][user] - first)
        return cls(first, length, place == 0)

    def __len__(self) -> int:
        return len(self.first)

    def batches(self, batch_steps: int, rng: np.random.Generator) -> Iterator[Ints]:
        """Yield windows in random order, about ``batch_steps`` steps at a time; every window once."""
        order = rng.permutation(len(self))
        ends = np.cumsum(self.length[order])
        number = (ends - 1) // batch_steps
        yield from np.split(order, np.flatnonzero(np.diff(number)) + 1)

    def endless_batches(self, batch_steps: int, rng: np.random.Generator) -> Iterator[Ints]:
        """Yield :meth:`batches` again and again, each time in a new order."""
        while True:
            yield from self.batches(batch_steps, rng)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some windows as tensors. Inputs and targets are flat; ``place`` says where a step is in the (B, T) grid."""

    input_items: Tensor
    input_offsets: Tensor
    """Of each step's input group; a start step's group is empty."""
    start_steps: Tensor
    """bool (steps,)."""
    place: Tensor
    """int64 (steps,) ``window * T + step`` in the grid."""
    shape: tuple[int, int]
    """B, T."""
    target_rows: Tensor
    targets: Tensor
    target_weights: Tensor
    """1 / (group size * steps): the mean over steps of the mean over a group's items."""


def make_batch(sequences: Sequences, windows: Windows, chosen: Ints, device: torch.device) -> Batch:
    """Return the windows ``chosen`` as tensors."""
    length = windows.length[chosen]
    steps = int(length.sum())
    window = np.repeat(np.arange(len(chosen)), length)
    step = np.arange(steps) - np.repeat(np.cumsum(length) - length, length)
    target_group = windows.first[chosen][window] + step
    start_steps = windows.opens[chosen][window] & (step == 0)
    sizes = sequences.group_sizes()
    input_sizes = np.where(start_steps, 0, sizes[target_group - 1])
    input_items = ranges(sequences.group_offsets[target_group - 1], input_sizes)
    target_sizes = sizes[target_group]
    target_items = sequences.items[ranges(sequences.group_offsets[target_group], target_sizes)]
    rows = np.repeat(np.arange(steps), target_sizes)
    weights = np.repeat(1.0 / (target_sizes * steps), target_sizes)
    known = target_items != UNKNOWN
    width = int(length.max())
    return Batch(
        input_items=tensor(sequences.items[input_items], device),
        input_offsets=tensor(np.concatenate([[0], np.cumsum(input_sizes)]), device),
        start_steps=tensor(start_steps, device),
        place=tensor(window * width + step, device),
        shape=(len(chosen), width),
        target_rows=tensor(rows[known], device),
        targets=tensor(target_items[known], device),
        target_weights=tensor(weights[known].astype(np.float32), device),
    )


def tensor(array: npt.NDArray[Any], device: torch.device) -> Tensor:
    """Return a numpy array as a tensor on ``device``."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def ranges(starts: Ints, sizes: Ints) -> Ints:
    """Return the concatenation of ``arange(start, start + size)`` over all pairs."""
    ends = np.cumsum(sizes)
    out: Ints = np.arange(int(ends[-1]) if len(ends) else 0) + np.repeat(starts - (ends - sizes), sizes)
    return out
