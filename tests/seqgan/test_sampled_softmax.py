from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from recsys_llm.seqgan.losses import draw_negatives, popularity_proposal, sampled_nll, weighted_nll

V, E = 12, 3
ROWS, TARGETS = torch.tensor([0, 0, 1, 2]), torch.tensor([3, 7, 3, 0])
WEIGHTS = torch.tensor([1.0, 0.5, -0.7, 2.0], dtype=torch.float64)
COUNTS = torch.tensor([20, 1, 0, 5, 9, 2, 2, 40, 1, 1, 3, 8])


def parts() -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = ((3, E), (V, E), (V,))
    queries, table, bias = (torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes)
    return tuple(part.requires_grad_() for part in (queries, table, bias))  # type: ignore[return-value]


def gradient(loss: Tensor, of: tuple[Tensor, ...]) -> Tensor:
    return torch.cat([part.flatten() for part in torch.autograd.grad(loss, of)])


def full_gradient() -> Tensor:
    given = parts()
    return gradient(weighted_nll(*given, rows=ROWS, targets=TARGETS, weights=WEIGHTS), given)


def mean_gradient(negatives: int, draws: int, proposal: Tensor, *, told: Tensor | None = None) -> Tensor:
    """Mean gradient over many samples of negatives; `told` is the proposal that the loss is told of."""
    given, rng = parts(), torch.Generator().manual_seed(1)
    total = torch.zeros(sum(part.numel() for part in given), dtype=torch.float64)
    for _ in range(draws):
        loss = sampled_nll(
            *given,
            rows=ROWS,
            targets=TARGETS,
            weights=WEIGHTS,
            negatives=draw_negatives(proposal, negatives, rng),
            log_proposal=proposal if told is None else told,
        )
        total += gradient(loss, given)
    return total / draws


def test_every_item_once_is_the_full_softmax() -> None:
    given = parts()
    loss = sampled_nll(
        *given,
        rows=ROWS,
        targets=TARGETS,
        weights=WEIGHTS,
        negatives=torch.arange(V),
        log_proposal=torch.full((V,), -math.log(V), dtype=torch.float64),
    )
    expected = weighted_nll(*given, rows=ROWS, targets=TARGETS, weights=WEIGHTS)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, given), full_gradient())


def test_its_gradient_is_the_full_softmaxs_in_expectation() -> None:
    proposal, exact = popularity_proposal(COUNTS).double(), full_gradient()
    found = mean_gradient(400, 300, proposal)
    assert float((found - exact).norm() / exact.norm()) < 0.02
    uncorrected = mean_gradient(400, 20, proposal, told=torch.full((V,), -math.log(V), dtype=torch.float64))
    assert float((uncorrected - exact).norm() / exact.norm()) > 0.1


def test_its_bias_falls_with_more_negatives() -> None:
    proposal, exact = popularity_proposal(COUNTS).double(), full_gradient()
    errors = [float((mean_gradient(count, 3000, proposal) - exact).norm()) for count in (4, 16)]
    assert errors[1] < 0.6 * errors[0]


def test_negatives_come_from_the_proposal() -> None:
    proposal = popularity_proposal(COUNTS)
    drawn = draw_negatives(proposal, 200_000, torch.Generator().manual_seed(2))
    seen = torch.bincount(drawn, minlength=V) / len(drawn)
    torch.testing.assert_close(seen, proposal.exp(), atol=0.005, rtol=0)


def test_no_negatives_are_refused() -> None:
    with pytest.raises(ValueError, match="expected at least 1 negative, found 0"):
        sampled_nll(
            *parts(),
            rows=ROWS,
            targets=TARGETS,
            weights=WEIGHTS,
            negatives=torch.zeros(0, dtype=torch.int64),
            log_proposal=popularity_proposal(COUNTS).double(),
        )
