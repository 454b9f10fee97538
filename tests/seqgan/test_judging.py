from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from recsys_llm.seqgan import judging
from recsys_llm.seqgan.cnn_discriminator import CNNDiscriminator
from recsys_llm.seqgan.discriminator import Discriminator, GRUDiscriminator, judge_of
from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.judging import CNNJudge, GRUJudge, fast_judge
from recsys_llm.seqgan.rollout import PrefixJudge, complete_prefixes, rollout_rewards

V, B, L, DIM, N = 30, 5, 6, 8, 3
LENGTHS = torch.tensor([6, 1, 3, 6, 5])


def discriminator(kind: str, context: int = 4) -> tuple[Discriminator, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = torch.randn(V, 3)
        if kind == "gru":
            return GRUDiscriminator(V, text, dim=DIM, dropout=0.5), torch.randn(B, DIM)
        cnn = CNNDiscriminator(V, text, dim=DIM, length=L, context=context, dropout=0.5)
        return cnn, torch.randn(B, context * DIM)


def sequences(length: int = L) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    items = torch.randint(V, (B, length), generator=rng)
    completed = torch.randint(V, (length - 1, N, B, length), generator=rng)
    for t in range(1, length):
        completed[t - 1, :, :, :t] = items[:, :t]
    return items, completed


@pytest.mark.parametrize(("kind", "context"), [("gru", 0), ("cnn", 0), ("cnn", 4), ("cnn", 9)])
@pytest.mark.parametrize("lengths", [LENGTHS, torch.full((B,), L)], ids=["short", "full"])
def test_a_fast_judge_says_what_the_module_says(kind: str, context: int, lengths: Tensor) -> None:
    module, history = discriminator(kind, context)
    items, completed = sequences()
    rows = torch.arange(B).expand(L - 1, N, B).flatten()
    plain, fast = judge_of(module, history, lengths), fast_judge(module, history, lengths)
    torch.testing.assert_close(fast(items, torch.arange(B)), plain(items, torch.arange(B)))
    expected = plain(completed.flatten(0, 2), rows)
    torch.testing.assert_close(fast(completed.flatten(0, 2), rows), expected)
    assert isinstance(fast, PrefixJudge)
    reached = lengths > torch.arange(1, L).unsqueeze(1)  # (L - 1, B): prefixes that are not whole sequences
    judged, expected = fast.completions(items, completed), expected.view(L - 1, N, B)
    for sample in range(N):
        torch.testing.assert_close(judged[:, sample][reached], expected[:, sample][reached])
    assert not judged.requires_grad


@pytest.mark.parametrize("kind", ["gru", "cnn"])
def test_blocks_and_tables_of_few_items_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, history = discriminator(kind)
    items, completed = sequences()
    whole = fast_judge(module, history, LENGTHS)
    assert isinstance(whole, PrefixJudge)
    expected = whole.completions(items, completed)
    for name in ("ROWS", "CNN_ROWS"):
        monkeypatch.setattr(judging, name, 7)
    monkeypatch.setattr(judging, "TABLE_FLOATS", 1)
    small = fast_judge(module, history, LENGTHS)
    assert isinstance(small, PrefixJudge)
    torch.testing.assert_close(small.completions(items, completed), expected)
    torch.testing.assert_close(small(items, torch.arange(B)), whole(items, torch.arange(B)))


def test_continuations_shorter_than_the_cnn_is_made_for() -> None:
    module, history = discriminator("cnn")
    items, completed = sequences(4)
    lengths = LENGTHS.clamp_max(4)
    fast = CNNJudge(module, history, lengths)  # type: ignore[arg-type]
    plain = judge_of(module, history, lengths)
    torch.testing.assert_close(fast(items, torch.arange(B)), plain(items, torch.arange(B)))
    rows = torch.arange(B).expand(3, N, B).flatten()
    judged, expected = fast.completions(items, completed), plain(completed.flatten(0, 2), rows).view(3, N, B)
    torch.testing.assert_close(judged, expected)


@pytest.mark.parametrize("kind", ["gru", "cnn"])
def test_rewards_are_those_of_the_plain_judge(kind: str) -> None:
    module, history = discriminator(kind)
    assert isinstance(module, nn.Module)
    module.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        policy = Generator(torch.ones(V).long(), None, embedding_dim=4, hidden_dim=4)
    table, states = policy.item_table(), torch.zeros(B, policy.state_dim)
    items, _ = sequences()
    lengths = torch.full((B,), L)
    rewards = [
        rollout_rewards(policy, table, states, items, judge, 4, torch.Generator().manual_seed(0))
        for judge in (judge_of(module, history, lengths), fast_judge(module, history, lengths))
    ]
    torch.testing.assert_close(rewards[1], rewards[0])
    assert not module.training


def test_completions_of_a_changed_prefix_are_judged_otherwise() -> None:
    """Windows across the end of a prefix, and its state, do count."""
    for kind in ("gru", "cnn"):
        module, history = discriminator(kind)
        items, completed = sequences()
        fast = fast_judge(module, history, torch.full((B,), L))
        assert isinstance(fast, PrefixJudge)
        before = fast.completions(items, completed)
        items, completed = items.clone(), completed.clone()
        items[:, 2] = (items[:, 2] + 1) % V
        completed[2:, :, :, 2] = items[:, 2]
        changed = (fast.completions(items, completed) != before).flatten(1).any(1)
        assert changed.tolist() == [False, False, True, True, True]


def test_other_discriminators_are_judged_by_the_module() -> None:
    class Constant(nn.Module):
        def forward(self, history: Tensor, items: Tensor, lengths: Tensor) -> Tensor:
            return torch.zeros(len(items))

    module, history = discriminator("gru")
    assert isinstance(fast_judge(module, history, LENGTHS), GRUJudge)
    judge = fast_judge(Constant(), history, LENGTHS)  # type: ignore[arg-type]
    assert judge(sequences()[0], torch.arange(B)).tolist() == [0.5] * B


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", ["gru", "cnn"])
def test_cuda_judges_as_the_cpu_does(kind: str) -> None:
    module, history = discriminator(kind)
    items, completed = sequences()
    on_cpu = fast_judge(module, history, LENGTHS)
    assert isinstance(on_cpu, PrefixJudge)
    expected = on_cpu.completions(items, completed)
    assert isinstance(module, nn.Module)
    on_device = fast_judge(module.cuda(), history.cuda(), LENGTHS.cuda())  # type: ignore[arg-type]
    assert isinstance(on_device, PrefixJudge)
    torch.testing.assert_close(on_device.completions(items.cuda(), completed.cuda()).cpu(), expected, atol=1e-4, rtol=0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_completes_prefixes() -> None:
    policy = Generator(torch.ones(V).long(), None, embedding_dim=4, hidden_dim=4).cuda()
    items = sequences()[0].cuda()
    states = torch.zeros(B, policy.state_dim, device="cuda")
    rng = torch.Generator("cuda").manual_seed(0)
    completed = complete_prefixes(policy, policy.item_table(), states, items, N, rng)
    assert completed.is_cuda
    assert completed.shape == (L - 1, N, B, L)
    for t in range(1, L):
        assert torch.equal(completed[t - 1, :, :, :t], items[:, :t].expand(N, B, t))
