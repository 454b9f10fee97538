"""A generator that reads one item per row at a time, without autograd, in buffers that are allocated once.

It computes what :class:`~recsys_llm.seqgan.generator.Generator` computes, in another order:

- An item's part of the LSTM's gates and of the query is the same wherever it occurs, and is looked up.
- A running mean reaches nothing but the query, and the map to the query is linear, so that the mean of the *mapped*
  item vectors is kept, and the map costs nothing per step.
- ``tanh(x)`` is ``2 sigmoid(2 x) - 1``, so that all four gates are one sigmoid; the factors are in the weights.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from recsys_llm.seqgan.generator import DECAYS, Generator, ItemTable

ROWS = 2048
"""Read at once: what a step touches of them stays in a core's cache."""


class Lanes(NamedTuple):
    """Rows that read in step: what a :class:`Stepper` keeps of each; H and E as in the generator."""

    hidden: Tensor
    """(n, H)."""
    cell: Tensor
    """(n, H)."""
    means: Tensor
    """(n, decays * E), mapped; of those :data:`DECAYS` that are not 0."""
    queries: Tensor
    """(n, E) of the next item."""

    def rows(self, rows: slice) -> Lanes:
        """Return some of the rows, as views."""
        return Lanes(*(part[rows] for part in self))

    def copy_repeated(self, source: Lanes, times: int) -> None:
        """Write the rows of ``source``, ``times`` over, into these (times * n) rows."""
        for part, rows in zip(self, source, strict=True):
            part.view(times, len(rows), -1).copy_(rows)


class Stepper:
    """A generator as it is now: later changes of its weights don't reach it.

    Parameters
    ----------
    policy, table
        The generator and its :meth:`~recsys_llm.seqgan.generator.Generator.item_table`.
    reads
        How many items will be read in all: for fewer than the vocabulary has, nothing is looked up.
    """

    @torch.no_grad()
    def __init__(self, policy: Generator, table: ItemTable, *, reads: int) -> None:
        lstm, size = dict(policy.lstm.named_parameters()), table.vectors.shape[1]
        hidden = policy.lstm.hidden_size
        doubled = torch.ones(4 * hidden, 1, dtype=table.vectors.dtype, device=table.vectors.device)
        doubled[2 * hidden : 3 * hidden] = 2.0  # the gate under tanh
        self._recurrent = (lstm["weight_hh_l0"] * doubled).T  # (H, 4 H)
        self._output = policy.output.weight.T.clone()  # (H, E)
        decays = table.vectors.new_tensor(DECAYS)
        kept = decays > 0
        # Columns of the map from item vectors: gates, then the query's own part, then that of each running mean.
        fresh = policy.skip.view(len(DECAYS), size, size) * (1 - decays)[:, None, None]
        columns = [(lstm["weight_ih_l0"] * doubled).T, fresh[~kept].sum(0), *fresh[kept]]
        self._input = torch.cat(columns, 1)  # (E, 4 H + E + decays * E)
        self._bias = table.vectors.new_zeros(self._input.shape[1])
        gates = len(doubled)
        self._bias[:gates] = (lstm["bias_ih_l0"] + lstm["bias_hh_l0"]) * doubled.squeeze(1)
        self._bias[gates : gates + size] = policy.output.bias
        self._split = (gates, gates + size)
        self._decays = decays[kept].repeat_interleave(size)
        self._maps = policy.skip.view(len(DECAYS), size, size)[kept]
        self._kept = kept
        self._vectors = table.vectors
        self._known: Tensor | None = None
        if reads >= len(table.vectors):
            self._known = torch.addmm(self._bias, table.vectors, self._input)

    def room(self, rows: int) -> Lanes:
        """Return ``rows`` rows, uninitialised."""
        widths = len(self._recurrent), len(self._recurrent), len(self._decays), len(self._output.T)
        return Lanes(*(self._vectors.new_empty(rows, width) for width in widths))

    @torch.no_grad()
    def open(self, states: Tensor) -> Lanes:
        """Return rows at ``states`` (n, state_dim) of the generator; their queries are not known yet."""
        lanes = self.room(len(states))
        size = lanes.hidden.shape[1]
        hidden, cell, means = torch.split(states, [size, size, states.shape[1] - 2 * size], 1)
        lanes.hidden.copy_(hidden)
        lanes.cell.copy_(cell)
        before = means.reshape(len(states), len(DECAYS), -1)[:, self._kept]  # (n, decays, E)
        lanes.means.copy_(torch.einsum("nde,def->ndf", before, self._maps).flatten(1))
        return lanes

    @torch.no_grad()
    def read(self, items: Tensor, lanes: Lanes) -> None:
        """Read one more item per row, int64 (n,), in place."""
        for start in range(0, len(items), ROWS):
            block = slice(start, start + ROWS)
            self._read(items[block], lanes.rows(block))

    def _read(self, items: Tensor, lanes: Lanes) -> None:
        if self._known is not None:
            inputs = self._known.index_select(0, items)
        else:
            inputs = torch.addmm(self._bias, self._vectors.index_select(0, items), self._input)
        gate_end, query_end = self._split
        gates = torch.addmm(inputs[:, :gate_end], lanes.hidden, self._recurrent).sigmoid_()
        enter, keep, value, leave = gates.chunk(4, 1)
        lanes.cell.mul_(keep).addcmul_(enter, value, value=2.0).sub_(enter)
        torch.mul(leave, torch.sigmoid(2.0 * lanes.cell), out=lanes.hidden).mul_(2.0).sub_(leave)
        lanes.means.mul_(self._decays).add_(inputs[:, query_end:])
        torch.addmm(inputs[:, gate_end:query_end], lanes.hidden, self._output, out=lanes.queries)
        for mapped in lanes.means.chunk(len(self._maps), 1):
            lanes.queries.add_(mapped)
