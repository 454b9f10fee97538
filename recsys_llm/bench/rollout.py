"""``recsys-llm bench rollout``: a reward pass against the way of public SeqGAN ports, in one run on one thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.stats import chi2
from torch import Tensor

from recsys_llm.bench.report import report
from recsys_llm.bench.rollout_reference import complete_prefix, reference_rewards
from recsys_llm.bench.timing import interleaved
from recsys_llm.errors import ConfigError, ModelError
from recsys_llm.seqgan.cnn_discriminator import CNNDiscriminator
from recsys_llm.seqgan.discriminator import Discriminator, GRUDiscriminator, judge_of
from recsys_llm.seqgan.generator import Generator, ItemTable, logits
from recsys_llm.seqgan.judging import fast_judge
from recsys_llm.seqgan.rollout import Judge, complete_prefixes, rollout_rewards
from recsys_llm.seqgan.sampling import draw, has_compiler

REFERENCE, REFERENCE_CNN = "reference", "reference_cnn"
PLAIN, PLAIN_CNN, PLAIN_GRU = "plain_torch", "plain_torch_cnn", "plain_torch_gru"
FUSED, FUSED_CNN, FUSED_GRU = "fused", "fused_cnn", "fused_gru"
_CHECKED_DRAWS = 20_000
_BINS = 50
_LEAST_P = 1e-4
"""Of a chi-square test, below which a way is said to have another distribution: there are six tests."""
_TIE = 1e-6
"""Of the mass: as near to an item's bound, rounding may decide for either side."""


@dataclass(frozen=True)
class RolloutSize:
    """What is rolled out."""

    items: int = 5000
    """V."""
    length: int = 20
    """T, items of a sequence."""
    batch: int = 64
    """B, sequences."""
    hidden: int = 32
    """H, of the generator; its item vectors and the discriminators are as wide."""
    rollouts: int = 16
    """N, completions of each prefix."""


class World(NamedTuple):
    """A generator and what it has generated."""

    policy: Generator
    table: ItemTable
    states: Tensor
    """(B, state_dim) after the histories, which are empty."""
    items: Tensor
    """int64 (B, T)."""


def bench_rollout(size: RolloutSize | None = None, *, runs: int) -> dict[str, Any]:
    """Time the reward pass of each way, interleaved, in CPU seconds; the ways are first shown to agree.

    Raises
    ------
    ConfigError
        Numba is not installed.
    ModelError
        A way draws from another distribution, or a judge gives another probability.
    """
    if not has_compiler():
        raise ConfigError("bench rollout: expected Numba, found none; install it with: pip install 'recsys-llm[fast]'")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _bench(size or RolloutSize(), runs)
    finally:
        torch.set_num_threads(threads)


def make_world(size: RolloutSize) -> World:
    """Return a generator with random weights, far from uniform, and sequences that it might have generated."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        counts = (1000 / torch.arange(1, size.items + 1)).long()  # a few items have most of the events
        policy = Generator(counts.clamp_min(1), None, embedding_dim=size.hidden, hidden_dim=size.hidden)
        with torch.no_grad():
            policy.free.mul_(10.0)
            table = policy.item_table()
        items = torch.randint(size.items, (size.batch, size.length))
    return World(policy, table, torch.zeros(size.batch, policy.state_dim), items)


def _bench(size: RolloutSize, runs: int) -> dict[str, Any]:
    world = make_world(size)
    compiling = check_same_items(world)
    check_distributions(world)
    judges = make_judges(world, size)
    differences = check_judges(world, judges, size.rollouts)
    rng = torch.Generator().manual_seed(0)

    def ours(name: str | None, fused: bool) -> Callable[[], Tensor]:
        # A judge is made anew each time: in training its weights have changed since the last reward pass.
        return lambda: rollout_rewards(
            *world, _nothing if name is None else judges[name].fast(), size.rollouts, rng, fused=fused
        )

    def reference(name: str | None) -> Callable[[], Tensor]:
        judge = _nothing if name is None else judges[name].plain
        return partial(reference_rewards, *world, judge, size.rollouts, rng)

    sides = {
        REFERENCE: reference(None),
        REFERENCE_CNN: reference("cnn"),
        PLAIN: ours(None, False),
        PLAIN_CNN: ours("cnn", False),
        PLAIN_GRU: ours("gru", False),
        FUSED: ours(None, True),
        FUSED_CNN: ours("cnn", True),
        FUSED_GRU: ours("gru", True),
    }
    times = interleaved(sides, runs, clock=time.process_time)
    results = [
        {
            "name": f"{name}_cpu_s",
            "median": float(np.median(values)),
            "lowest": min(values),
            "highest": max(values),
            "runs": runs,
        }
        for name, values in times.items()
    ]
    results.append({"name": "compiling_s", "median": compiling, "runs": 1})
    results += [{"name": f"{name}_difference", "median": value, "runs": 1} for name, value in differences.items()]
    return report(
        "bench rollout",
        settings={**asdict(size), "discriminator_dim": size.hidden, "threads": 1},
        results=results,
        targets=_targets(times),
    )


_RATIOS = {
    "plain_torch": (REFERENCE, PLAIN, ">=", 5.0),
    "fused": (REFERENCE, FUSED, ">=", 15.0),
    "fused_with_cnn": (REFERENCE_CNN, FUSED_CNN, ">=", 10.0),
    "fused_with_gru_to_generator_alone": (FUSED_GRU, FUSED, "<=", 1.2),
    "plain_torch_with_gru_to_generator_alone": (PLAIN_GRU, PLAIN, "<=", 1.2),
}
"""Name -> (numerator, denominator, sign, bound)."""


def _targets(times: dict[str, list[float]]) -> list[dict[str, Any]]:
    found = []
    for name, (above, below, sign, bound) in _RATIOS.items():
        ratios = np.array(times[above]) / np.array(times[below])  # of each turn
        value = float(np.median(times[above]) / np.median(times[below]))
        met = value >= bound if sign == ">=" else value <= bound
        found.append(
            {
                "name": name,
                "target": f"{sign} {bound:g}",
                "value": value,
                "lowest": float(ratios.min()),
                "highest": float(ratios.max()),
                "met": bool(met),
            }
        )
    return found


def _nothing(items: Tensor, rows: Tensor) -> Tensor:
    """Judge in no time: the rewards are half."""
    return torch.full((len(items),), 0.5)


class _Judges(NamedTuple):
    plain: Judge
    fast: Callable[[], Judge]


def make_judges(world: World, size: RolloutSize) -> dict[str, _Judges]:
    """Return an untrained CNN and an untrained GRU discriminator, each as the plain module and as the fast judge."""
    dim, lengths = size.hidden, torch.full((size.batch,), size.length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        cnn = CNNDiscriminator(size.items, None, dim=dim, length=size.length, context=0, dropout=0.0)
        gru = GRUDiscriminator(size.items, None, dim=dim, dropout=0.0)
        modules: dict[str, tuple[Discriminator, Tensor]] = {
            "cnn": (cnn, torch.zeros(size.batch, 0)),
            "gru": (gru, torch.randn(size.batch, dim)),
        }
    return {
        name: _Judges(judge_of(module, history, lengths), partial(fast_judge, module, history, lengths))
        for name, (module, history) in modules.items()
    }


def check_judges(world: World, judges: dict[str, _Judges], rollouts: int) -> dict[str, float]:
    """Return each judge's largest difference, fast against plain, in the rewards of one set of completions.

    Raises
    ------
    ModelError
        One is above 1e-5.
    """
    differences = {}
    for name, judge in judges.items():
        rewards = [
            rollout_rewards(*world, one, min(rollouts, 2), torch.Generator().manual_seed(0))
            for one in (judge.plain, judge.fast())
        ]
        differences[name] = float((rewards[0] - rewards[1]).abs().max())
        if differences[name] > 1e-5:
            raise ModelError(f"bench rollout: rewards of the {name} differ by {differences[name]:.2g}; nothing timed")
    return differences


def check_same_items(world: World) -> float:
    """Check that both ways of drawing pick the same items for the same uniform numbers; return compile seconds.

    Raises
    ------
    ModelError
        They don't, away from ties.
    """
    rng = torch.Generator().manual_seed(0)
    queries = torch.randn(1000, world.table.vectors.shape[1], generator=rng)
    uniforms = torch.rand(1000, generator=rng, dtype=torch.float64)
    started = time.perf_counter()
    fused = draw(queries, world.table, uniforms, fused=True).items
    compiling = time.perf_counter() - started
    plain = draw(queries, world.table, uniforms, fused=False).items
    ends = logits(queries, world.table).double().softmax(1).cumsum(1)
    bounds = ends.gather(1, torch.minimum(fused, plain).unsqueeze(1)).squeeze(1)
    wrong = (fused != plain) & ((bounds - uniforms).abs() > _TIE)
    if bool(wrong.any()):
        raise ModelError(f"bench rollout: {int(wrong.sum())} of 1000 items differ between fused and plain drawing")
    return compiling


@torch.no_grad()
def check_distributions(world: World) -> dict[str, tuple[float, float]]:
    """Test the two items that each way draws after one prefix against their exact distributions (chi-square).

    Returns
    -------
    dict
        Way -> p-values of the first and of the second item.

    Raises
    ------
    ModelError
        A p-value is below 1e-4.
    """
    policy, table = world.policy, world.table
    states, items = world.states[:1], world.items[:1, :1].expand(1, 3).contiguous()
    first, second = exact_marginals(world)
    rng = torch.Generator().manual_seed(0)
    many = complete_prefix(policy, table, states.repeat(1000, 1), items.repeat(1000, 1), 1, rng)
    drawn = {REFERENCE: [many]}
    for _ in range(_CHECKED_DRAWS // 1000 - 1):
        drawn[REFERENCE].append(complete_prefix(policy, table, states.repeat(1000, 1), items.repeat(1000, 1), 1, rng))
    for name, fused in ((PLAIN, False), (FUSED, True)):
        drawn[name] = [complete_prefixes(policy, table, states, items, _CHECKED_DRAWS, rng, fused=fused)[0, :, 0]]
    found = {}
    for name, parts in drawn.items():
        sequences = torch.cat(parts)
        found[name] = (chi_square(sequences[:, 1], first), chi_square(sequences[:, 2], second))
        if min(found[name]) < _LEAST_P:
            raise ModelError(f"bench rollout: {name} draws from another distribution (p = {min(found[name]):.2g})")
    return found


@torch.no_grad()
def exact_marginals(world: World) -> tuple[Tensor, Tensor]:
    """Return the exact distributions, (V,) each, of the two items after the first item of the first sequence."""
    policy, table = world.policy, world.table
    queries, states = policy(table.vectors[world.items[:1, :1]], world.states[:1])
    first = logits(queries[:, -1], table).double().softmax(1)[0]
    second = torch.zeros_like(first)
    for block in torch.split(torch.arange(len(first)), 500):
        after, _ = policy(table.vectors[block].unsqueeze(1), states.repeat(len(block), 1))
        second += first[block] @ logits(after[:, 0], table).double().softmax(1)
    return first, second


def chi_square(drawn: Tensor, exact: Tensor) -> float:
    """Return the p-value of draws (n,) under probabilities (V,), in some 50 bins of about equal mass.

    Examples
    --------
    >>> exact = torch.tensor([0.5, 0.5])
    >>> chi_square(torch.tensor([0, 1] * 100), exact) > 0.9, chi_square(torch.tensor([0] * 200), exact) < 1e-9
    (True, True)
    """
    bins = (exact.cumsum(0) * _BINS - 1e-9).long().clamp(0, _BINS - 1)
    expected = torch.zeros(_BINS, dtype=torch.float64).index_add_(0, bins, exact.double()) * len(drawn)
    seen = torch.bincount(bins[drawn], minlength=_BINS).double()
    used = expected > 0
    statistic = float(((seen - expected)[used] ** 2 / expected[used]).sum())
    return float(chi2.sf(statistic, max(1, int(used.sum()) - 1)))
