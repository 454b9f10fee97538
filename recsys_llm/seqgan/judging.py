"""Discriminators as judges of many completions of few sequences: what is shared is computed once.

- The GRU's state after a prefix is the same for all of its completions; its input projections are looked up by item.
- A convolution over items is a sum of rows: the product of each item with each slice of a filter is looked up.

Each gives what the plain module gives, within rounding. A judge holds tables made of the weights at its making; make a
new one after every step of the discriminator.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys_llm.seqgan.cnn_discriminator import CNNDiscriminator
from recsys_llm.seqgan.density_ratio import DensityRatioDiscriminator
from recsys_llm.seqgan.discriminator import Discriminator, GRUDiscriminator, HistoryReader, judge_of
from recsys_llm.seqgan.discriminators import AnyDiscriminator
from recsys_llm.seqgan.policy import Position
from recsys_llm.seqgan.rollout import Judge

ROWS = 2048
"""Read at once: what a step touches of them stays in a core's cache."""
CNN_ROWS = 512
"""The same of a CNN."""
TABLE_FLOATS = 1 << 26
"""Largest table of a CNN's windows, in floats (256 MiB)."""


def fast_judge(discriminator: Discriminator, history: Tensor, lengths: Tensor) -> Judge:
    """Return what :func:`~recsys_llm.seqgan.discriminator.judge_of` returns, faster for a GRU and for a CNN.

    Parameters
    ----------
    history : (B, H)
        From ``discriminator.read``.
    lengths : int64 (B,)
        Of the continuations.
    """
    if isinstance(discriminator, GRUDiscriminator):
        return GRUJudge(discriminator, history, lengths)
    if isinstance(discriminator, CNNDiscriminator):
        return CNNJudge(discriminator, history, lengths)
    return judge_of(discriminator, history, lengths)


@torch.no_grad()
def critic(discriminator: AnyDiscriminator, histories: HistoryReader, lengths: Tensor) -> tuple[Judge, Position | None]:
    """Return a discriminator as a judge of continuations, and the policy it compares with, where it has one.

    Parameters
    ----------
    lengths : int64 (B,)
        Of the continuations.
    """
    discriminator.eval()
    history = discriminator.read(histories)
    target = discriminator.target(history) if isinstance(discriminator, DensityRatioDiscriminator) else None
    return fast_judge(discriminator, history, lengths), target


class GRUJudge:
    """A GRU discriminator that reads the prefix of each group of completions once.

    Parameters
    ----------
    discriminator, history, lengths
        As for :func:`fast_judge`.
    """

    @torch.no_grad()
    def __init__(self, discriminator: GRUDiscriminator, history: Tensor, lengths: Tensor) -> None:
        discriminator.train(False)
        gru = dict(discriminator.continuation.named_parameters())
        size = discriminator.continuation.hidden_size
        self._history, self._lengths = history, lengths
        self._module = discriminator
        # The reset gate is inside the third gate, which is a tanh: sigmoid(2 x) with the 2 in its weights and biases.
        doubled = history.new_ones(3 * size, 1)
        doubled[2 * size :] = 2.0
        flat = doubled.squeeze(1)
        self._inputs = torch.addmm(
            gru["bias_ih_l0"] * flat, discriminator.vectors(), (gru["weight_ih_l0"] * doubled).T
        )  # (V, 3 * dim)
        self._recurrent, self._bias = (gru["weight_hh_l0"] * doubled).T, gru["bias_hh_l0"] * flat

    @torch.no_grad()
    def __call__(self, items: Tensor, rows: Tensor) -> Tensor:
        """Return the probability of each continuation, (R,), as a :data:`~recsys_llm.seqgan.rollout.Judge` does."""
        states = self._history[rows]
        self._read(states, items, self._lengths[rows], 0)
        return self._probabilities(states, self._history[rows])

    @torch.no_grad()
    def completions(self, items: Tensor, completed: Tensor) -> Tensor:
        """Return the probability of each completion, as :class:`~recsys_llm.seqgan.rollout.PrefixJudge` says."""
        count, rollouts, batch, length = completed.shape
        own = self._history.clone()  # after the prefix
        judged = own.new_empty(count, rollouts, batch)
        step = max(1, ROWS // batch)
        for t in range(1, length):
            self._read(own, items[:, t - 1 : t], self._lengths, t - 1)
            for start in range(0, rollouts, step):
                some = completed[t - 1, start : start + step]  # (N, B, L)
                times = len(some)
                states = own.repeat(times, 1)
                self._read(states, some[:, :, t:].flatten(0, 1), self._lengths.repeat(times), t)
                found = self._probabilities(states, self._history.repeat(times, 1))
                judged[t - 1, start : start + step] = found.view(times, batch)
        return judged

    def _read(self, states: Tensor, items: Tensor, lengths: Tensor, before: int) -> None:
        """Read items (n, steps) that follow ``before`` others into states (n, dim), in place."""
        shortest = int(lengths.min())
        for number in range(items.shape[1]):
            inputs = self._inputs.index_select(0, items[:, number])
            hidden = torch.addmm(self._bias, states, self._recurrent)
            size = states.shape[1]
            hidden[:, : 2 * size].add_(inputs[:, : 2 * size]).sigmoid_()
            reset, keep, fresh = hidden.chunk(3, 1)
            fresh.mul_(reset).add_(inputs[:, 2 * size :]).sigmoid_().mul_(2.0).sub_(1.0)
            if before + number < shortest:
                states.sub_(fresh).mul_(keep).add_(fresh)  # keep * h + (1 - keep) * fresh
            else:
                going = (before + number < lengths).unsqueeze(1)
                states.copy_(torch.where(going, fresh + keep * (states - fresh), states))

    def _probabilities(self, states: Tensor, history: Tensor) -> Tensor:
        return torch.sigmoid(self._module.logits(history, states))


class CNNJudge:
    """A CNN discriminator that looks its windows up: per window, one row for each of its items.

    Parameters
    ----------
    discriminator, history, lengths
        As for :func:`fast_judge`.
    """

    @torch.no_grad()
    def __init__(self, discriminator: CNNDiscriminator, history: Tensor, lengths: Tensor) -> None:
        discriminator.train(False)
        self._module = discriminator
        self._history, self._lengths = history, lengths
        self._convolutions = [layer for layer in discriminator.convolutions if isinstance(layer, nn.Conv1d)]
        context = history.view(len(history), discriminator.context, discriminator.dim).transpose(1, 2)
        alone = F.pad(context, (0, discriminator.length))  # as if the continuation were all zero
        self._opening = [layer(alone).transpose(1, 2).contiguous() for layer in self._convolutions]  # (B, windows, F)
        self._vectors = F.pad(discriminator.vectors(), (0, 0, 0, 1))  # the last is for where there is no item
        floats = sum(layer.weight[:, 0].numel() for layer in self._convolutions)  # of one item
        self._known = self._tables(self._vectors) if floats * len(self._vectors) <= TABLE_FLOATS else None

    @torch.no_grad()
    def __call__(self, items: Tensor, rows: Tensor) -> Tensor:
        """Return the probability of each continuation, (R,), as a :data:`~recsys_llm.seqgan.rollout.Judge` does."""
        places, tables = self._places(items, rows)
        found = [
            self._probabilities(self._features(tables, place, row))
            for place, row in zip(torch.split(places, CNN_ROWS), torch.split(rows, CNN_ROWS), strict=True)
        ]
        return torch.cat(found)

    @torch.no_grad()
    def completions(self, items: Tensor, completed: Tensor) -> Tensor:
        """Return the probability of each completion, as :class:`~recsys_llm.seqgan.rollout.PrefixJudge` says.

        Windows that lie within a prefix are summed once for all of its completions.
        """
        count, rollouts, batch, length = completed.shape
        every = torch.arange(batch, device=items.device)
        rows = every.repeat(count * rollouts + 1)
        places, tables = self._places(torch.cat([completed.flatten(0, 2), items]), rows)
        highest = [
            self._windows(table, number, places[-batch:], every).cummax(1).values for number, table in enumerate(tables)
        ]  # (B, windows, F) of each window and those before it
        judged = self._history.new_empty(count, rollouts * batch)
        for t in range(1, length):
            group = slice((t - 1) * rollouts * batch, t * rollouts * batch)
            for start in range(0, rollouts * batch, CNN_ROWS):
                block = slice(group.start + start, min(group.start + start + CNN_ROWS, group.stop))
                pooled = self._features(tables, places[block], rows[block], highest, self._module.context + t)
                judged[t - 1, start : start + CNN_ROWS] = self._probabilities(pooled)
        return judged.view(count, rollouts, batch)

    def _tables(self, vectors: Tensor) -> list[Tensor]:
        """Return the product of each item with each slice of each filter: (items * width, F) of each width."""
        return [
            torch.einsum("vd,fdk->vkf", vectors, layer.weight).reshape(-1, len(layer.weight))
            for layer in self._convolutions
        ]

    def _places(self, items: Tensor, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the row in the tables of each step of continuations (R, L), (R, context + length), and the tables."""
        module = self._module
        absent = torch.arange(module.length, device=items.device) >= self._lengths[rows].unsqueeze(1)
        padded = F.pad(items, (0, module.length - items.shape[1])).masked_fill(absent, len(self._vectors) - 1)
        padded = F.pad(padded, (module.context, 0), value=len(self._vectors) - 1)
        if self._known is not None:
            return padded, self._known
        distinct, places = torch.unique(padded, return_inverse=True)
        return places, self._tables(self._vectors[distinct])

    def _windows(self, table: Tensor, number: int, places: Tensor, rows: Tensor, first: int = 0) -> Tensor:
        """Return one convolution's windows from the ``first`` on, (R, windows, F), before the ReLU."""
        (width,) = self._convolutions[number].kernel_size
        steps = torch.arange(width, device=places.device)
        bags = (places[:, first:].unfold(1, width, 1) * width + steps).reshape(-1, width)
        sums = F.embedding_bag(bags, table, mode="sum").view(len(places), -1, table.shape[1])
        opening = self._opening[number][:, first:]
        return sums.add_(opening[rows])

    def _features(
        self, tables: list[Tensor], places: Tensor, rows: Tensor, shared: list[Tensor] | None = None, known: int = 0
    ) -> Tensor:
        """Return the features after max over time, (R, features); ``shared`` has the windows within ``known`` steps."""
        features = []
        for number, table in enumerate(tables):
            (width,) = self._convolutions[number].kernel_size
            first = max(0, known - width + 1)
            pooled = self._windows(table, number, places, rows, first).amax(1)
            if shared is not None and first > 0:
                pooled = torch.maximum(pooled, shared[number][:, first - 1][rows])
            features.append(pooled)
        return F.relu_(torch.cat(features, 1))  # max and ReLU change places

    def _probabilities(self, features: Tensor) -> Tensor:
        module = self._module
        gate = torch.sigmoid(module.gate(features))
        mixed = torch.lerp(features, F.relu(module.transform(features)), gate)
        return torch.sigmoid(module.head(mixed).squeeze(1))
