"""From a generator's queries to ranked items: logits in blocks, the seen filter, the best k."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from recsys_llm.seqgan.generator import ItemTable, logits
from recsys_llm.seqgan.histories import Ints
from recsys_llm.seqgan.losses import block_rows
from recsys_llm.seqgan.sequences import Sequences, ranges

Entries = tuple[Tensor, Tensor]
"""Flat places in a matrix of scores, and what is added there."""
FAINT = 0.01
"""Strength of a re-buy, before the logarithm, that is passed over."""


class Rebuy(NamedTuple):
    """The term of :mod:`recsys_llm.seqgan.rebuy`."""

    weight: float = 0.0
    """0: off."""
    scale: float = 1.0
    decay: float = 0.0

    @property
    def horizon(self) -> int:
        """Groups that count: an older one would add less than :data:`FAINT`.

        Without a limit, a backfill of long histories would cost their square.
        """
        return 1 + int(max(0.0, math.log(FAINT / self.scale) / math.log(self.decay))) if self.decay > 0 else 1


class Ranked(NamedTuple):
    """The best items of n rows, best first."""

    items: Tensor
    """int64 (n, k) vocabulary indexes; -1 past the last candidate."""
    log_probs: Tensor
    """float (n, k) over the whole vocabulary, nats, the generator's own; NaN past the last candidate."""
    entropy: Tensor
    """float (n,) of the next-item distribution over the whole vocabulary, nats."""
    log_totals: Tensor
    """float (n,) log of the sum of all items' exp(logit): a logit less this is a log-probability."""


def rank(
    queries: Tensor,
    table: ItemTable,
    sequences: Sequences,
    users: Ints,
    read: Ints,
    *,
    k: int,
    filter_seen: bool,
    rebuy: Tensor | None = None,
) -> Ranked:
    """Return the ``k`` most probable next items of each row.

    Parameters
    ----------
    queries : (n, E)
        From :func:`recsys_llm.seqgan.reading.queries_after` of ``users`` and ``read``.
    table
        The vocabulary's items.
    sequences, users, read
        What each row has read; ``users`` must be sorted where ``filter_seen``.
    k
        Cut down to the size of the vocabulary.
    filter_seen
        Leave out items that the row's user had in the groups read. Probabilities stay those over all items.
    rebuy : (3,), optional
        :attr:`recsys_llm.seqgan.generator.Generator.rebuy`: moves items that the user has had up in the order.
    """
    setting = Rebuy(*rebuy.tolist()) if rebuy is not None else Rebuy()
    k = min(k, len(table.bias))
    # Allocated at once: small results between freed blocks of logits would keep the heap from shrinking.
    items = torch.empty(len(queries), k, dtype=torch.long, device=queries.device)
    rows = (queries.new_empty(len(queries)) for _ in range(2))
    out = Ranked(items, queries.new_empty(len(queries), k), *rows)
    step = block_rows(len(table.bias))
    for start in range(0, len(queries), step):
        block = slice(start, start + step)
        scores = logits(queries[block], table)
        best = _best(scores, sequences, users[block], read[block], k, filter_seen, setting)
        for whole, part in zip(out, best, strict=True):
            whole[block] = part
    return out


def _best(
    scores: Tensor,
    sequences: Sequences,
    users: Ints,
    read: Ints,
    k: int,
    filter_seen: bool,
    rebuy: Rebuy,
) -> Ranked:
    total = torch.logsumexp(scores, 1, keepdim=True)
    log_probs = scores.sub_(total)
    entropy = -(log_probs.exp() * log_probs).sum(1)
    if filter_seen:
        hide_seen(log_probs, sequences, users, read)
    if filter_seen or not rebuy.weight:
        values, items = best_first(log_probs, k)
    else:
        entries = rebuy_entries(sequences, users, read, log_probs.shape[1], rebuy)
        _, items = best_first(add_rebuy(log_probs.clone(), entries, rebuy.weight), k)
        values = log_probs.gather(1, items)
    absent = values.isinf()
    return Ranked(items.masked_fill(absent, -1), values.masked_fill(absent, float("nan")), entropy, total.squeeze(1))


def rebuy_entries(sequences: Sequences, users: Ints, read: Ints, items: int, setting: Rebuy) -> Entries:
    """Return where, and how strongly, each row's user has had an item lately.

    Parameters
    ----------
    sequences, users, read
        What each row has read.
    items
        V; items outside are passed over.
    setting
        Its scale and decay; the weight is left to :func:`add_rebuy`.

    Returns
    -------
    flat : int64 (m,)
        ``row * V + item``, each once.
    strength : float32 (m,)
        ``log(1 + scale * sum of decay ** age)``.
    """
    _, scale, decay = setting
    count = np.minimum(read, setting.horizon)
    group = ranges(sequences.user_offsets[users] + read - count, count)
    row = np.repeat(np.arange(len(users)), count)
    age = ranges(np.zeros(len(count), np.int64), count)
    age = np.repeat(count, count) - 1 - age
    sizes = sequences.group_offsets[group + 1] - sequences.group_offsets[group]
    had = sequences.items[ranges(sequences.group_offsets[group], sizes)]
    flat, weight = np.repeat(row, sizes) * items + had, np.repeat(np.power(decay, age), sizes)
    known = (had >= 0) & (had < items)
    flat, place = np.unique(flat[known], return_inverse=True)
    strength = np.log1p(scale * np.bincount(place, weights=weight[known], minlength=len(flat)))
    return torch.from_numpy(flat), torch.from_numpy(strength.astype(np.float32))


def add_rebuy(scores: Tensor, entries: Entries, weight: float) -> Tensor:
    """Add ``weight`` times the entries' strength to contiguous scores (n, V), in place, and return them."""
    flat, strength = (part.to(scores.device) for part in entries)
    scores.view(-1).index_add_(0, flat, weight * strength.to(scores.dtype))
    return scores


def best_first(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest of each row and their indexes, equal scores in order of index.

    Examples
    --------
    >>> best_first(torch.tensor([[1.0, 2.0, 2.0]]), 2)[1].tolist()
    [[1, 2]]
    """
    values, items = scores.topk(k, 1)
    by_item = items.argsort(dim=1)
    values, items = values.gather(1, by_item), items.gather(1, by_item)
    by_value = values.argsort(dim=1, descending=True, stable=True)
    values, items = values.gather(1, by_value), items.gather(1, by_value)
    last = values[:, -1:]
    tied = torch.nonzero(((scores >= last).sum(1) > k) & last.squeeze(1).isfinite()).squeeze(1)
    if len(tied):  # topk says nothing about which of several equal scores it keeps
        ordered = scores[tied].sort(dim=1, descending=True, stable=True)
        values[tied], items[tied] = ordered.values[:, :k], ordered.indices[:, :k]
    return values, items


def hide_seen(scores: Tensor, sequences: Sequences, users: Ints, read: Ints) -> None:
    """Set to -inf, in place, the scores (n, V) of items in the first ``read[i]`` groups of ``users[i]``.

    Each user's items are looked at once, so that the cost doesn't grow with the square of a history's length.
    """
    bounds = np.flatnonzero(np.diff(users)) + 1
    for rows in np.split(np.arange(len(users)), bounds):
        if not len(rows):
            continue
        first = first_had(sequences, users[rows[0]], int(read[rows].max()), scores.shape[1])
        hidden = torch.from_numpy(first[None, :] < read[rows][:, None]).to(scores.device)
        scores[rows[0] : rows[-1] + 1].masked_fill_(hidden, float("-inf"))


def first_had(sequences: Sequences, user: int, read: int, items: int) -> Ints:
    """Return at which of their first ``read`` groups a user had each of ``items`` items first, int64 (items,).

    An item that they didn't have is at the largest int64, after any group.
    """
    start = sequences.user_offsets[user]
    groups = np.arange(start, start + read)
    sizes = sequences.group_offsets[groups + 1] - sequences.group_offsets[groups]
    had = sequences.items[ranges(sequences.group_offsets[groups], sizes)]
    steps = np.repeat(groups - start, sizes)
    known = (had >= 0) & (had < items)
    first = np.full(items, np.iinfo(np.int64).max)
    first[had[known][::-1]] = steps[known][::-1]  # the first occurrence is assigned last
    return first
