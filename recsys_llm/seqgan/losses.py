"""The softmax over all items, fused with its loss: the (steps x items) matrix exists only one block at a time.

Teacher forcing and the policy gradient are both sums of weighted log-probabilities, so that they share
:func:`weighted_nll`: a step with several targets is several rows of ``targets``, a reward is a weight.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

BLOCK_FLOATS = 8 << 20
"""Largest block of logits that exists at once, in floats (32 MiB)."""


def block_rows(items: int) -> int:
    """Return how many rows of logits over ``items`` items make a block."""
    return max(1, BLOCK_FLOATS // max(1, items))


def weighted_nll(
    queries: Tensor, table: Tensor, bias: Tensor, *, rows: Tensor, targets: Tensor, weights: Tensor
) -> Tensor:
    """Return ``-sum_j weights[j] * log softmax(queries[rows[j]] @ table.T + bias)[targets[j]]``.

    Parameters
    ----------
    queries : float (n, E)
    table : float (V, E)
        Item vectors; tied: the same that the generator reads.
    bias : float (V,)
    rows, targets : int64 (m,)
        A step with k targets appears k times in ``rows``.
    weights : float (m,)
        Not differentiated. May be negative (an advantage).

    Returns
    -------
    Tensor, scalar
        Differentiable in ``queries``, ``table`` and ``bias``. Memory: one block of logits.
    """
    loss: Tensor = _WeightedNLL.apply(queries, table, bias, rows, targets, weights)  # type: ignore[no-untyped-call]
    return loss


class _WeightedNLL(torch.autograd.Function):
    """The gradient is formed block by block in the forward pass; the backward pass only scales it."""

    @staticmethod
    def forward(
        ctx: Any, queries: Tensor, table: Tensor, bias: Tensor, rows: Tensor, targets: Tensor, weights: Tensor
    ) -> Tensor:
        row_weights = torch.zeros(len(queries), dtype=queries.dtype, device=queries.device)
        row_weights.index_add_(0, rows, weights)
        needs_grad = any(ctx.needs_input_grad[:3])
        grads = [torch.zeros_like(tensor) for tensor in (queries, table, bias)] if needs_grad else []
        loss = -(weights * ((queries[rows] * table[targets]).sum(1) + bias[targets])).sum()
        step = block_rows(len(table))
        for start in range(0, len(queries), step):
            block = queries[start : start + step]
            logits = torch.addmm(bias, block, table.T)  # (block, V)
            top = logits.max(1, keepdim=True).values
            total = logits.sub_(top).exp_().sum(1)
            weight = row_weights[start : start + step]
            loss = loss + (weight * (total.log() + top.squeeze(1))).sum()
            if needs_grad:
                logits.mul_((weight / total).unsqueeze(1))  # weight * softmax
                grads[0][start : start + step] = logits @ table
                grads[1].addmm_(logits.T, block)
                grads[2].add_(logits.sum(0))
        if needs_grad:
            grads[0].index_add_(0, rows, weights.unsqueeze(1) * table[targets], alpha=-1)
            grads[1].index_add_(0, targets, weights.unsqueeze(1) * queries[rows], alpha=-1)
            grads[2].index_add_(0, targets, weights, alpha=-1)
            ctx.save_for_backward(*grads)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        scale = grad_outputs[0]
        return *(scale * grad for grad in ctx.saved_tensors), None, None, None


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
    """Return :func:`weighted_nll` with the softmax's sum over all items estimated from a sample of them.

    For vocabularies of 50,000 items and more. A negative counts ``exp(logit) / (m q)``, which leaves the estimated sum
    unbiased (the "logQ correction"); the target itself counts exactly, and isn't a negative of its own. The gradient's
    bias, that of a logarithm, falls with 1 / m. (Bengio and Senecal 2008, section III; Jean et al. 2015, section 3.1.)

    Parameters
    ----------
    queries, table, bias, rows, targets, weights
        As for :func:`weighted_nll`.
    negatives : int64 (m,)
        From :func:`draw_negatives`; the same for all rows.
    log_proposal : float (V,)
        Log-probability with which each item is drawn. Not differentiated.

    Returns
    -------
    Tensor, scalar
        Differentiable in ``queries``, ``table`` and ``bias``. Memory: two (targets, m) matrices.

    Raises
    ------
    ValueError
        There are no negatives.
    """
    if not len(negatives):
        raise ValueError("sampled softmax: expected at least 1 negative, found 0")
    chosen = queries[rows]
    own = (chosen * table[targets]).sum(1, keepdim=True) + bias[targets].unsqueeze(1)  # (targets, 1)
    correction = bias[negatives] - (log_proposal[negatives] + math.log(len(negatives))).detach()
    others = torch.addmm(correction, chosen, table[negatives].T)  # (targets, m)
    others = others.masked_fill(negatives == targets.unsqueeze(1), -torch.inf)
    return (weights.detach() * (torch.cat([own, others], 1).logsumexp(1) - own.squeeze(1))).sum()


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


def draw_negatives(log_proposal: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Return ``count`` items, int64, drawn with replacement.

    Parameters
    ----------
    log_proposal : float (V,)
        From :func:`popularity_proposal`.
    """
    ends = log_proposal.to(torch.float64).exp().cumsum(0)
    drawn = torch.rand(count, generator=rng, device=ends.device, dtype=torch.float64) * ends[-1]
    return torch.searchsorted(ends, drawn, right=True).clamp_max_(len(ends) - 1)
