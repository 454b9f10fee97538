from __future__ import annotations

import json

import pytest
import torch

from recsys_llm.bench import rollout as bench
from recsys_llm.bench.report import write_report
from recsys_llm.bench.rollout import RolloutSize, bench_rollout, check_distributions, check_same_items, make_world
from recsys_llm.bench.rollout_reference import reference_rewards
from recsys_llm.errors import ConfigError, ModelError
from recsys_llm.seqgan.rollout import rollout_rewards

SMALL = RolloutSize(items=40, length=3, batch=2, hidden=4, rollouts=2)


def test_a_small_run_reports_every_side_and_target(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "_CHECKED_DRAWS", 2000)
    content = bench_rollout(SMALL, runs=3)
    names = {result["name"] for result in content["results"]}
    assert {f"{side}_cpu_s" for side in (bench.REFERENCE, bench.REFERENCE_CNN, bench.PLAIN, bench.FUSED_GRU)} < names
    assert [target["name"] for target in content["targets"]] == list(bench._RATIOS)
    assert all(target["lowest"] <= target["highest"] for target in content["targets"])
    write_report(tmp_path / "rollout.json", content)
    assert json.loads((tmp_path / "rollout.json").read_text())["settings"]["items"] == 40


def test_the_reference_gives_the_same_expected_rewards():
    world = make_world(SMALL)
    rewards = [
        way(*world, lambda items, rows: (items < 5).double().mean(1).float(), 4000, torch.Generator().manual_seed(0))
        for way in (reference_rewards, rollout_rewards)
    ]
    torch.testing.assert_close(rewards[0], rewards[1], atol=0.03, rtol=0)


def test_other_distributions_are_caught(monkeypatch):
    world = make_world(SMALL)
    real = bench.complete_prefixes
    monkeypatch.setattr(bench, "_CHECKED_DRAWS", 2000)
    assert min(min(values) for values in check_distributions(world).values()) > 1e-4
    monkeypatch.setattr(bench, "complete_prefixes", lambda *rest, **how: (real(*rest, **how) + 1) % SMALL.items)
    with pytest.raises(ModelError, match="draws from another distribution"):
        check_distributions(world)


def test_other_items_for_the_same_uniforms_are_caught(monkeypatch):
    world = make_world(SMALL)
    assert check_same_items(world) >= 0
    real = bench.draw

    def shifted(*rest, fused):
        drawn = real(*rest, fused=fused)
        return drawn._replace(items=(drawn.items + fused) % SMALL.items)

    monkeypatch.setattr(bench, "draw", shifted)
    with pytest.raises(ModelError, match="differ between fused and plain"):
        check_same_items(world)


def test_without_numba_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(bench, "has_compiler", lambda: False)
    with pytest.raises(ConfigError, match=r"recsys-llm\[fast\]"):
        bench_rollout(SMALL, runs=3)
