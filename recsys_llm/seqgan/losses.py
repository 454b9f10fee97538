"""The softmax over all items, fused with its loss: the (steps x items) matrix exists only one block at a time.

Teacher forcing and the policy gradient are both sums of weighted log-probabilities, so that they share
:func:`weighted_nll`: a step with several targets is several rows of ``targets``, a reward is a weight.
"""

from __future__ import annotations

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
