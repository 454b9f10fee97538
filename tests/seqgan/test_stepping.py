from __future__ import annotations

import pytest
import torch

from recsys_llm.seqgan import stepping
from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.stepping import Stepper


@torch.no_grad()
@pytest.mark.parametrize("reads", [0, 1000], ids=["computed", "looked up"])
def test_steps_give_what_the_generator_gives(toy: Generator, reads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "ROWS", 2)
    rng = torch.Generator().manual_seed(0)
    _, states = toy(torch.randn(5, 3, 3, generator=rng, dtype=torch.float64))
    table, items = toy.item_table(), torch.randint(4, (5, 6), generator=rng)
    expected, _ = toy(table.vectors[items], states)
    stepper = Stepper(toy, table, reads=reads)
    lanes = stepper.open(states)
    for step in range(6):
        stepper.read(items[:, step], lanes)
        torch.testing.assert_close(lanes.queries, expected[:, step])


@torch.no_grad()
def test_copied_rows_go_on_alone(toy: Generator) -> None:
    table = toy.item_table()
    stepper = Stepper(toy, table, reads=0)
    own, many = stepper.open(torch.zeros(2, toy.state_dim, dtype=torch.float64)), stepper.room(6)
    stepper.read(torch.tensor([1, 2]), own)
    many.copy_repeated(own, 3)
    assert torch.equal(many.queries, own.queries.repeat(3, 1))
    before = own.queries.clone()
    stepper.read(torch.tensor([0, 1, 2, 3, 0, 1]), many)
    assert torch.equal(own.queries, before)
    histories = torch.tensor([[1, 0], [2, 1], [1, 2], [2, 3], [1, 0], [2, 1]])
    expected, _ = toy(table.vectors[histories])
    torch.testing.assert_close(many.queries, expected[:, -1])


@torch.no_grad()
def test_later_changes_of_the_weights_do_not_reach_a_stepper(toy: Generator) -> None:
    table, items = toy.item_table(), torch.tensor([1, 2])
    stepper = Stepper(toy, table, reads=1000)
    expected, _ = toy(table.vectors[items].unsqueeze(1))
    for parameter in toy.parameters():
        parameter.add_(1.0)
    lanes = stepper.open(torch.zeros(2, toy.state_dim, dtype=torch.float64))
    stepper.read(items, lanes)
    torch.testing.assert_close(lanes.queries, expected[:, 0])


def test_a_stepper_keeps_no_autograd(toy: Generator) -> None:
    stepper = Stepper(toy, toy.item_table(), reads=1000)
    lanes = stepper.open(torch.zeros(1, toy.state_dim, dtype=torch.float64, requires_grad=True))
    stepper.read(torch.tensor([1]), lanes)
    assert not any(part.requires_grad for part in lanes)
