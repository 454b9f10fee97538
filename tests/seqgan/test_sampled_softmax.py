from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from recsys_llm.seqgan import SeqGANConfig, TrainingProgress, train
from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.losses import weighted_nll
from recsys_llm.seqgan.sampled_softmax import draw_negatives, popularity_proposal, sampled_nll
from tests.seqgan.seqgan_data import ITEMS, SMALL, UNTIL, chain, vectors

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
        drawn = draw_negatives(proposal, negatives, rng)
        loss = sampled_nll(
            *given,
            rows=ROWS,
            targets=TARGETS,
            weights=WEIGHTS,
            negatives=drawn,
            log_proposal=(proposal if told is None else told)[drawn],
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


def test_an_item_that_is_twice_a_target_of_a_step_is_in_its_sum_once() -> None:
    given = parts()
    asked = {"rows": torch.tensor([0, 0, 1]), "targets": torch.tensor([3, 3, 5]), "weights": WEIGHTS[:3]}
    uniform = torch.full((V,), -math.log(V), dtype=torch.float64)
    loss = sampled_nll(*given, **asked, negatives=torch.arange(V).flip(0), log_proposal=uniform)
    torch.testing.assert_close(loss, weighted_nll(*given, **asked))
    # Nothing but the targets is drawn: the sum is theirs, and a step without targets has no part in it.
    alone = sampled_nll(*given, **asked, negatives=torch.tensor([5, 5]), log_proposal=uniform[:2])
    queries, table, bias = (part.detach() for part in given)
    chances = (queries[0] @ table[[3, 5]].T + bias[[3, 5]] + torch.tensor([0.0, math.log(V)])).log_softmax(0)
    torch.testing.assert_close(alone.detach(), -1.5 * chances[0])


def test_its_gradient_is_the_full_softmaxs_in_expectation() -> None:
    proposal, exact = popularity_proposal(COUNTS).double(), full_gradient()
    found = mean_gradient(400, 300, proposal)
    assert float((found - exact).norm() / exact.norm()) < 0.02
    uncorrected = mean_gradient(400, 20, proposal, told=torch.full((V,), -math.log(V), dtype=torch.float64))
    assert float((uncorrected - exact).norm() / exact.norm()) > 0.1


def test_its_bias_falls_with_more_negatives() -> None:
    proposal, exact = popularity_proposal(COUNTS).double(), full_gradient()
    errors = [float((mean_gradient(count, 1500, proposal) - exact).norm()) for count in (4, 16)]
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
            log_proposal=torch.zeros(0, dtype=torch.float64),
        )


def settings(**changes: object) -> SeqGANConfig:
    return replace(SMALL, adversarial_epochs=0, **{"softmax": "sampled", "softmax_negatives": 12, **changes})  # type: ignore[arg-type]


def test_training_on_a_sample_finds_what_the_full_softmax_finds() -> None:
    found = {
        name: train(chain(), settings(softmax=name), until=UNTIL, item_vectors=vectors(), device="cpu").manifest
        for name in ("full", "sampled")
    }
    full, sampled = (found[name]["scores"]["mle"]["ndcg_at_10"] for name in ("full", "sampled"))
    assert sampled > 0.95 * full and sampled > 2 * found["full"]["scores"]["popularity"]["ndcg_at_10"]
    assert found["full"]["losses"] != found["sampled"]["losses"]


def test_the_sample_goes_on_where_an_interrupted_training_stood(tmp_path: Path) -> None:
    class Interrupted(Exception):
        pass

    def interrupt(report: TrainingProgress) -> None:
        if report.epoch == 3:
            raise Interrupted

    events, config = chain(users=8), settings(mle_epochs=3)
    undisturbed = train(events, config, until=UNTIL, device="cpu")
    with pytest.raises(Interrupted):
        train(events, config, until=UNTIL, device="cpu", state=tmp_path / "state", progress=interrupt)
    resumed = train(events, config, until=UNTIL, device="cpu", state=tmp_path / "state")
    assert resumed.fingerprint == undisturbed.fingerprint
    assert resumed.manifest["losses"] == undisturbed.manifest["losses"]


def test_large_vocabularies_are_sampled_unless_told_otherwise() -> None:
    assert [SeqGANConfig().samples_softmax(items) for items in (50_000, 50_001)] == [False, True]
    assert not SeqGANConfig(softmax="full").samples_softmax(10**6) and settings().samples_softmax(2)


def test_a_part_of_the_item_table_is_those_rows_of_it() -> None:
    generator = Generator(torch.arange(ITEMS), torch.randn(ITEMS, 5), embedding_dim=4, hidden_dim=4)
    chosen, whole = torch.tensor([7, 0, 7, 3]), generator.item_table()
    part = generator.item_table(chosen)
    torch.testing.assert_close(part.vectors, whole.vectors[chosen])
    torch.testing.assert_close(part.bias, whole.bias[chosen])
