from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_llm.bench.rollout import chi_square
from recsys_llm.seqgan import sampling
from recsys_llm.seqgan.generator import ItemTable, logits
from recsys_llm.seqgan.sampling import CHUNK, TILE, block_size, draw

TIE = 1e-6
WAYS = [False, True]


def made(items: int, *, rows: int = 50, dim: int = 8, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ItemTable]:
    rng = torch.Generator().manual_seed(items)
    queries, vectors = (torch.randn(n, dim, generator=rng, dtype=dtype) for n in (rows, items))
    return queries, ItemTable(vectors * 0.5, torch.randn(items, generator=rng, dtype=dtype))


def exact(queries: Tensor, table: ItemTable) -> Tensor:
    return torch.softmax(queries.double() @ table.vectors.double().T + table.bias.double(), 1)


def assert_inverse(items: Tensor, probabilities: Tensor, uniforms: Tensor) -> None:
    """Each uniform number lies between its item's bounds in the exact distribution function, but for rounding."""
    upper = probabilities.cumsum(1)
    columns = items.view(len(items), -1)
    ends = upper.gather(1, columns)
    starts = ends - probabilities.gather(1, columns)
    sought = uniforms.view(columns.shape)
    assert bool(((sought >= starts - TIE) & (sought <= ends + TIE)).all())


@pytest.mark.parametrize("fused", WAYS)
def test_known_uniforms_give_known_items(fused: bool) -> None:
    table = ItemTable(torch.zeros(4, 2), torch.tensor([0.1, 0.2, 0.3, 0.4]).log())
    uniforms = torch.tensor([0.0, 0.05, 0.15, 0.5, 0.65, 0.999], dtype=torch.float64)
    drawn = draw(torch.zeros(6, 2), table, uniforms, fused=fused)
    assert drawn.items.tolist() == [0, 0, 1, 2, 3, 3]
    assert drawn.entropy is None


@pytest.mark.parametrize("fused", WAYS)
@pytest.mark.parametrize("items", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 1000, TILE + 1, 2 * TILE + 3 * CHUNK + 5])
def test_every_size_is_inverted_exactly(items: int, fused: bool) -> None:
    queries, table = made(items)
    uniforms = torch.rand(len(queries), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    probabilities = exact(queries, table)
    drawn = draw(queries, table, uniforms, entropy=True, fused=fused)
    assert_inverse(drawn.items, probabilities, uniforms)
    assert drawn.entropy is not None
    entropy = torch.special.entr(probabilities).sum(1).float()
    torch.testing.assert_close(drawn.entropy, entropy, atol=2e-5, rtol=1e-5)


def test_both_ways_pick_the_same_items() -> None:
    queries, table = made(3000, rows=4000, dim=16)
    uniforms = torch.rand(4000, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    fused, plain = (draw(queries, table, uniforms, fused=way).items for way in (True, False))
    ends = exact(queries, table).cumsum(1).gather(1, torch.minimum(fused, plain).unsqueeze(1)).squeeze(1)
    assert bool(((fused == plain) | ((ends - uniforms).abs() < TIE)).all())


@pytest.mark.parametrize("fused", WAYS)
def test_draws_have_the_softmax_as_distribution(fused: bool) -> None:
    query, table = made(300, rows=1)
    uniforms = torch.rand(1, 40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    drawn = draw(query, table, uniforms, fused=fused).items[0]
    assert chi_square(drawn, exact(query, table)[0]) > 1e-3
    assert chi_square(drawn, exact(query, table)[0].roll(1)) < 1e-6  # the test can fail


@pytest.mark.parametrize("fused", WAYS)
def test_logits_far_apart_lose_nothing(fused: bool) -> None:
    queries = torch.zeros(200, 1)
    bias = torch.full((500,), -float("inf"))
    bias[[3, 250, 499]] = torch.tensor([1e4, 1e4, -1e4])
    uniforms = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    drawn = draw(queries, ItemTable(torch.zeros(500, 1), bias), uniforms, entropy=True, fused=fused)
    assert drawn.items.unique().tolist() == [3, 250]
    assert drawn.entropy is not None
    assert np.allclose(drawn.entropy, np.log(2), atol=1e-6)


@pytest.mark.parametrize("fused", WAYS)
@pytest.mark.parametrize("chosen", [0, 63, 64, 130])
def test_the_last_of_the_mass_goes_to_an_item_that_has_some(fused: bool, chosen: int) -> None:
    bias = torch.full((131,), -float("inf"))
    bias[chosen] = 0.3
    uniforms = torch.tensor([[0.0, 1.0 - 2.0**-53]], dtype=torch.float64)
    assert draw(torch.zeros(1, 1), ItemTable(torch.zeros(131, 1), bias), uniforms, fused=fused).items.tolist() == [
        [chosen, chosen]
    ]


@given(st.integers(1, 200), st.integers(0, 2**31), st.floats(0.01, 30.0))
@settings(deadline=None, max_examples=40)
def test_any_sharpness_is_inverted_by_both_ways(items: int, seed: int, scale: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    queries, vectors = torch.randn(5, 4, generator=rng), torch.randn(items, 4, generator=rng)
    table = ItemTable(vectors * scale, torch.randn(items, generator=rng))
    uniforms = torch.rand(5, dtype=torch.float64, generator=rng)
    # What a float32 logit can't hold is no fault of drawing: compare with its own rounding.
    slack = 4e-7 * float(logits(queries, table).abs().max())
    for fused in WAYS:
        drawn = draw(queries, table, uniforms, fused=fused).items
        upper = exact(queries, table).cumsum(1)
        ends = upper.gather(1, drawn.unsqueeze(1)).squeeze(1)
        starts = ends - exact(queries, table).gather(1, drawn.unsqueeze(1)).squeeze(1)
        assert bool(((uniforms >= starts - TIE - slack) & (uniforms <= ends + TIE + slack)).all())


def test_double_precision_is_kept() -> None:
    queries, table = made(500, dtype=torch.float64)
    uniforms = torch.rand(50, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    drawn = draw(queries, table, uniforms, entropy=True)
    assert drawn.entropy is not None
    assert drawn.entropy.dtype == torch.float64
    torch.testing.assert_close(drawn.entropy, torch.special.entr(exact(queries, table)).sum(1), atol=1e-12, rtol=1e-12)


def test_blocks_do_not_change_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, table = made(700, rows=200)
    uniforms = torch.rand(200, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    whole = [draw(queries, table, uniforms, fused=way).items for way in WAYS]
    monkeypatch.setattr(sampling, "FEWEST_ROWS", 7)
    monkeypatch.setattr(sampling, "CACHED_FLOATS", 1)
    assert block_size(700, queries.device) == 7
    for way, items in zip(WAYS, whole, strict=True):
        again = draw(queries, table, uniforms, fused=way).items
        assert int((again != items).sum()) <= 1  # a product of other rows may round otherwise


def test_without_rows_nothing_is_drawn() -> None:
    _, table = made(5)
    assert draw(torch.zeros(0, 8), table, torch.zeros(0, dtype=torch.float64), fused=False).items.shape == (0,)


def test_mistakes_are_named() -> None:
    queries, table = made(5, dtype=torch.float64)
    with pytest.raises(ValueError, match="expected float32 on a CPU, found torch.float64"):
        draw(queries, table, torch.rand(50), fused=True)
    with pytest.raises(ValueError, match="found one of 0 items"):
        draw(queries, ItemTable(torch.zeros(0, 8), torch.zeros(0)), torch.rand(50))


def test_numba_is_imported_by_the_first_fused_draw_only() -> None:
    code = """
import sys, torch
import recsys_llm.cli, recsys_llm.bench.rollout
from recsys_llm.seqgan import rollout
from recsys_llm.seqgan.generator import ItemTable
rollout.sample_items(torch.zeros(2, 3), ItemTable(torch.zeros(9, 3), torch.zeros(9)), torch.Generator())
assert "numba" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_numba_torch_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "WORTH_COMPILING", 1)
    monkeypatch.setattr(sampling, "has_compiler", lambda: False)
    monkeypatch.setattr(sampling, "_draw_fused", None)
    queries, table = made(100)
    assert draw(queries, table, torch.rand(50, dtype=torch.float64)).items.shape == (50,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_draws_from_the_softmax_of_bfloat16_factors() -> None:
    queries, table = made(5000, rows=300, dim=32)
    uniforms = torch.rand(300, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    on_device = ItemTable(*(part.cuda() for part in table))
    drawn = draw(queries.cuda(), on_device, uniforms.cuda(), entropy=True)
    rounded = (queries * sampling.LOG2E).bfloat16().double() @ table.vectors.bfloat16().double().T / sampling.LOG2E
    probabilities = torch.softmax(rounded + table.bias.double(), 1)
    upper = probabilities.cumsum(1)
    ends = upper.gather(1, drawn.items.cpu())
    starts = ends - probabilities.gather(1, drawn.items.cpu())
    assert bool(((uniforms >= starts - 1e-5) & (uniforms <= ends + 1e-5)).all())
    assert drawn.entropy is not None
    entropy = torch.special.entr(probabilities).sum(1).float()
    torch.testing.assert_close(drawn.entropy.cpu(), entropy, atol=1e-4, rtol=1e-4)
