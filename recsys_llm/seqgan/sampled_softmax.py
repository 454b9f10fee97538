"""The softmax over a large vocabulary, estimated from a sample of it: "sampled softmax" with the logQ correction.

Above some 50,000 items, the product of all queries with all items is most of a training step. A sample of some thousand
items, the same for all steps of a batch, stands in for them::

    Z  =  sum of exp(logit) over a step's targets  +  sum over the other negatives of exp(logit) / (m q)

The expectation of that is the full sum; the gradient's bias, that of a logarithm, falls with 1 / m. (Bengio and Senecal
2008, section III; Jean et al. 2015, section 3.1; Yi et al. 2019.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sampled_nll(
    queries: Tensor,
    table: Tensor,
    bias: Tensor,
    *,
    rows: Tensor,
    targets: Tensor,
    weights: Tensor,
    negatives: Tensor,
    log_proposal: Tensor,
) -> Tensor:
    """Return :func:`recsys_llm.seqgan.losses.weighted_nll` with the sum over all items estimated from a sample.

    A step's targets count exactly, and are no negatives of it.

    Parameters
    ----------
    queries, table, bias, rows, targets, weights
        As for :func:`~recsys_llm.seqgan.losses.weighted_nll`; ``table`` and ``bias`` may be any rows of the vocabulary
        that hold targets and negatives.
    negatives : int64 (m,)
        From :func:`draw_negatives`; the same for all rows.
    log_proposal : float (m,)
        Log-probability with which each of the negatives was drawn. Not differentiated.

    Returns
    -------
    Tensor, scalar
        Differentiable in ``queries``, ``table`` and ``bias``. Memory: three (n, m) matrices.

    Raises
    ------
    ValueError
        There are no negatives.
    """
    if not len(negatives):
        raise ValueError("sampled softmax: expected at least 1 negative, found 0")
    correction = bias[negatives] - (log_proposal + math.log(len(negatives))).detach()
    others = torch.addmm(correction, queries, table[negatives].T)  # (n, m)
    keys = torch.unique(rows * len(table) + targets)  # an item that is a step's target twice is in its sum once
    row, target = keys // len(table), keys % len(table)
    own = (queries[row] * table[target]).sum(1) + bias[target]  # (targets,)
    others = others.index_put(_among(row, target, negatives), others.new_tensor(-torch.inf))
    with torch.no_grad():
        top = others.max(1).values.scatter_reduce(0, row, own, "amax")  # (n,)
    total = (others - top.unsqueeze(1)).exp().sum(1).index_add(0, row, (own - top[row]).exp())
    row_weights = torch.zeros_like(top).index_add_(0, rows, weights.detach())
    given = (queries[rows] * table[targets]).sum(1) + bias[targets]
    return (row_weights * (total.log() + top)).sum() - (weights.detach() * given).sum()


def _among(row: Tensor, target: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    """Return row and place of each negative that is a target of the row."""
    ordered, order = negatives.sort(stable=True)
    first, end = torch.searchsorted(ordered, target), torch.searchsorted(ordered, target, right=True)
    found = end - first
    step = torch.arange(int(found.sum()), device=row.device) - (found.cumsum(0) - found).repeat_interleave(found)
    return row.repeat_interleave(found), order[first.repeat_interleave(found) + step]


def popularity_proposal(counts: Tensor, *, power: float = 0.75) -> Tensor:
    """Return the log-probabilities (V,) of a proposal near the softmax it stands for: popularity, flattened.

    Parameters
    ----------
    counts : (V,)
        Events of each item; those without any are drawn as if they had half of one.
    power
        1: popularity itself; 0: uniform.

    Examples
    --------
    >>> [round(q, 3) for q in popularity_proposal(torch.tensor([27, 8, 0]), power=1 / 3).exp().tolist()]
    [0.518, 0.345, 0.137]
    """
    return (power * counts.to(torch.get_default_dtype()).clamp_min(0.5).log()).log_softmax(0)


def draw_negatives(log_proposal: Tensor, count: int, rng: torch.Generator | None = None) -> Tensor:
    """Return ``count`` items, int64, drawn with replacement.

    Parameters
    ----------
    log_proposal : float (V,)
        From :func:`popularity_proposal`.
    rng
        None: torch's own, whose state a training keeps and restores with its epochs.
    """
    ends = log_proposal.to(torch.float64).exp().cumsum(0)
    drawn = torch.rand(count, generator=rng, device=ends.device, dtype=torch.float64) * ends[-1]
    return torch.searchsorted(ends, drawn, right=True).clamp_max_(len(ends) - 1)
