"""What comes within the next steps, not only at the next one: how often each item occurs in sampled continuations."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from recsys_llm.seqgan.checkpoint import Checkpoint
from recsys_llm.seqgan.devices import resolve_device
from recsys_llm.seqgan.generator import Generator, ItemTable
from recsys_llm.seqgan.histories import Histories, Ints
from recsys_llm.seqgan.ranking import first_had
from recsys_llm.seqgan.reading import states_at
from recsys_llm.seqgan.sampling import draw
from recsys_llm.seqgan.sequences import Sequences
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
    histories: Histories,
    positions: Ints,
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
    histories, positions
        As for :func:`recsys_llm.seqgan.next_items`: continue what ends with each of n groups.
    seeds : int64 (n,)
        Of the random numbers of each: a row doesn't depend on the rows beside it.
    top_n
        Items per row; fewer where fewer were drawn. Of two items that are drawn as often, the first in the vocabulary
        comes first.
    filter_seen
        Leave out what the user has had; None: as the training data suggests.
    """
    model = checkpoint.generator("chosen").to(resolve_device(device)).eval()
    table = checkpoint.table(model)
    sequences = Sequences.encode(histories, checkpoint.vocabulary)
    users, read = sequences.read_before(positions)
    read = read + 1
    states = states_at(model, table.vectors, sequences, users, read)
    stepper = Stepper(model, table, reads=len(seeds) * samples * (steps - 1))
    hide = checkpoint.filter_seen if filter_seen is None else filter_seen
    names = checkpoint.vocabulary.names

    @lru_cache(maxsize=1)  # a user's rows follow each other
    def first(user: int) -> Ints:
        groups = int(np.diff(sequences.user_offsets)[user])
        return first_had(sequences, user, groups, len(table.bias))

    items: list[list[str]] = []
    shares: list[npt.NDArray[np.float64]] = []
    for start in range(0, len(seeds), _ROWS):
        rows = slice(start, start + _ROWS)
        uniforms = np.stack([np.random.default_rng(int(seed)).random((steps, samples)) for seed in seeds[rows]])
        drawn = _continued(model, table, stepper, states[rows], torch.from_numpy(uniforms).to(states.device))
        for row, found in enumerate(drawn.cpu().numpy(), start=start):
            seen = first(int(users[row])) < read[row] if hide else None
            best, share = _most_frequent(found, seen, top_n)
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


def _most_frequent(drawn: Ints, had: npt.NDArray[np.bool_] | None, count: int) -> tuple[Ints, npt.NDArray[np.float64]]:
    """Return the items that occur in most rows of ``drawn`` (samples, steps), and in which share of them."""
    ordered = np.sort(drawn, 1)
    is_first = np.concatenate([np.ones((len(drawn), 1), np.bool_), np.diff(ordered, axis=1) > 0], 1)
    items, times = np.unique(ordered[is_first], return_counts=True)
    if had is not None:
        items, times = items[~had[items]], times[~had[items]]
    best = np.argsort(-times, kind="stable")[:count]
    return items[best], times[best] / len(drawn)
