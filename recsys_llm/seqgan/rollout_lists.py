"""What comes within the next steps, not only at the next one: how often each item occurs in sampled continuations."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from recsys_llm.seqgan.checkpoint import Checkpoint
from recsys_llm.seqgan.devices import resolve_device
from recsys_llm.seqgan.generator import Generator, ItemTable
from recsys_llm.seqgan.histories import Ints
from recsys_llm.seqgan.sampling import draw
from recsys_llm.seqgan.states import UserStates
from recsys_llm.seqgan.stepping import Stepper

_ROWS = 64
"""Histories that are continued together."""


class RolloutLists(NamedTuple):
    """The items of n histories that continuations hold most often, best first."""

    items: pa.Array
    """list<string> of n rows."""
    shares: pa.Array
    """list<float> of n rows: the share of continuations with the item."""


@torch.no_grad()
def rollout_lists(
    checkpoint: Checkpoint,
    states: UserStates,
    seeds: Ints,
    top_n: int,
    *,
    samples: int,
    steps: int,
    filter_seen: bool | None = None,
    device: str = "auto",
) -> RolloutLists:
    """Continue each history ``samples`` times by ``steps`` items, one at a time, drawn from the generator.

    Parameters
    ----------
    states
        Of n histories; made with the same ``filter_seen``.
    seeds : int64 (n,)
        Of the random numbers of each: a row doesn't depend on the rows beside it.
    top_n
        Items per row; fewer where fewer were drawn. Of two items that are drawn as often, the first in the vocabulary
        comes first.
    filter_seen
        Leave out what the user has had; None: as the training data suggests.
    """
    model = checkpoint.generator("chosen").to(resolve_device(device)).eval()
    table = model.item_table()
    stepper = Stepper(model, table, reads=len(seeds) * samples * (steps - 1))
    vectors = torch.from_numpy(states.vectors).to(table.vectors.device)
    hide = checkpoint.filter_seen if filter_seen is None else filter_seen
    names = np.array(checkpoint.vocabulary.item_ids, object)
    items: list[list[str]] = []
    shares: list[npt.NDArray[np.float64]] = []
    for start in range(0, len(seeds), _ROWS):
        rows = slice(start, start + _ROWS)
        uniforms = np.stack([np.random.default_rng(int(seed)).random((steps, samples)) for seed in seeds[rows]])
        drawn = _continued(model, table, stepper, vectors[rows], torch.from_numpy(uniforms).to(vectors.device))
        for row, found in enumerate(drawn.cpu().numpy(), start=start):
            had = _had(states, row) if hide else np.zeros(0, np.int64)
            best, share = _most_frequent(found, had, top_n)
            items.append(names[best].tolist())
            shares.append(share)
    return RolloutLists(pa.array(items, pa.list_(pa.string())), pa.array(shares, pa.list_(pa.float32())))


def _continued(model: Generator, table: ItemTable, stepper: Stepper, states: Tensor, uniforms: Tensor) -> Tensor:
    """Return the items drawn, int64 (n, samples, steps), for uniform numbers (n, steps, samples)."""
    rows, steps, samples = uniforms.shape
    first = draw(model.queries_of(states), table, uniforms[:, 0]).items  # one distribution for all samples
    drawn = [first]
    lanes = stepper.open(states.repeat_interleave(samples, 0))
    for step in range(1, steps):
        stepper.read(drawn[-1].flatten(), lanes)
        drawn.append(draw(lanes.queries, table, uniforms[:, step].flatten()).items.view(rows, samples))
    return torch.stack(drawn, 2)


def _had(states: UserStates, row: int) -> Ints:
    memory = states.memory
    first, last = memory.group_offsets[memory.user_offsets[row : row + 2]]
    return memory.items[first:last]


def _most_frequent(drawn: Ints, had: Ints, count: int) -> tuple[Ints, npt.NDArray[np.float64]]:
    """Return the items that occur in most rows of ``drawn`` (samples, steps), and in which share of them."""
    ordered = np.sort(drawn, 1)
    is_first = np.concatenate([np.ones((len(drawn), 1), np.bool_), np.diff(ordered, axis=1) > 0], 1)
    items, times = np.unique(ordered[is_first], return_counts=True)
    fresh = ~np.isin(items, had)
    items, times = items[fresh], times[fresh]
    best = np.argsort(-times, kind="stable")[:count]
    return items[best], times[best] / len(drawn)
