"""``bench oracle``: its truth, its measures, and a tiny run of every recipe."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from recsys_llm.bench import oracle_plot
from recsys_llm.bench.oracle import CONTROL, MLE, PHI, bench_oracle, verdict
from recsys_llm.bench.oracle_command import run_oracle
from recsys_llm.bench.oracle_metrics import Figures, at_entropy, distinct_bigrams, measure, self_bleu, tempered
from recsys_llm.bench.oracle_settings import PAPER_SIZE, OracleSettings, recipes
from recsys_llm.bench.oracle_training import OracleGame, Recipe
from recsys_llm.bench.oracle_world import Oracle, opening, sequence_nll
from recsys_llm.bench.report import write_report
from recsys_llm.cli import app
from recsys_llm.errors import ConfigError
from recsys_llm.seqgan.density_ratio import item_log_probs
from recsys_llm.seqgan.generator import Generator, logits

TINY = OracleSettings(
    items=6,
    length=4,
    sequences=60,
    held_out=40,
    oracle_dim=4,
    generator_dim=2,
    phi_dim=4,
    discriminator_dim=4,
    discriminator_pretraining=1,
    mle_steps=4,
    phi_steps=4,
    mle_batch=8,
    steps=2,
    rollout_steps=2,
    reward_steps=2,
    rollouts=2,
    batch=8,
    rollout_batch=4,
    samples=60,
    points=2,
    temperatures=(0.1, 1.0, 3.0),
)
QUICK = recipes(TINY)
ONLY_REWARD = OracleSettings(
    length=10,
    sequences=4_000,
    held_out=1_000,
    generator_dim=6,
    mle_steps=500,
    mle_learning_rate=0.02,
    samples=2_000,
    points=1,
    temperatures=(0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)


@pytest.fixture
def truth() -> Oracle:
    return Oracle(3, dim=2, rng=torch.Generator().manual_seed(0))


def small_generator(seed: int = 0) -> Generator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Generator(torch.tensor([3, 1, 2]), None, embedding_dim=4, hidden_dim=4)


def test_the_oracle_is_an_lstm_with_a_softmax(truth: Oracle) -> None:
    items = torch.tensor([[0, 2, 1], [1, 1, 0]])
    inputs = torch.cat([truth.opening.expand(2, 1, -1), truth.inputs[items[:, :-1]]], 1)
    hidden, _ = truth.lstm(inputs)
    expected = (hidden @ truth.outputs.T + truth.bias).log_softmax(2).gather(2, items.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(item_log_probs(opening(truth, 2), items), expected)
    assert sequence_nll(truth, items) == pytest.approx(-float(expected.mean()))
    assert not any(parameter.requires_grad for parameter in truth.parameters())


def test_its_samples_have_its_distribution(truth: Oracle) -> None:
    drawn = truth.sample(30_000, 2, torch.Generator().manual_seed(0))
    for pair in itertools.product(range(3), repeat=2):
        exact = math.exp(float(item_log_probs(opening(truth, 1), torch.tensor([pair])).sum()))
        assert float((drawn == torch.tensor(pair)).all(1).double().mean()) == pytest.approx(exact, abs=0.01)


def test_its_weights_are_standard_normal() -> None:
    weights = torch.cat([value.flatten() for value in Oracle(100, dim=32, rng=torch.Generator()).parameters()])
    assert float(weights.mean()) == pytest.approx(0.0, abs=0.02) and float(weights.std()) == pytest.approx(1, abs=0.02)


def test_a_tempered_generator_has_its_logits_divided() -> None:
    generator = small_generator()
    cooler, items = tempered(generator, 0.5), torch.tensor([[0, 1, 2]])
    found, expected = opening(cooler, 1), opening(generator, 1)
    torch.testing.assert_close(
        logits(found.queries(items)[0], found.table), 2 * logits(expected.queries(items)[0], expected.table)
    )


def test_entropy_and_likelihood_are_those_of_enumeration(truth: Oracle) -> None:
    generator = small_generator()
    items = torch.tensor(list(itertools.product(range(3), repeat=3)))
    with torch.no_grad():
        log_q, log_p = (item_log_probs(opening(policy, 27), items).sum(1) for policy in (generator, truth))
    found = measure(generator, truth, items, samples=30_000, seed=0)
    assert found.entropy == pytest.approx(-float((log_q.exp() * log_q).sum()) / 3, abs=0.01)
    assert found.nll_oracle == pytest.approx(-float((log_q.exp() * log_p).sum()) / 3, abs=0.02)
    assert found.nll_test == pytest.approx(-float(log_q.mean()) / 3, abs=1e-5)


def test_variety_of_known_sequences() -> None:
    assert distinct_bigrams(torch.tensor([[1, 2, 3], [1, 2, 4]])) == 0.75
    alike, apart = [[1, 2, 3, 4]] * 3, [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert self_bleu(alike) == pytest.approx(1.0)
    # nothing in common: 0.1 of 3 unigrams, 2 bigrams, 1 trigram
    assert self_bleu(apart) == pytest.approx((0.1 / 3 * 0.1 / 2 * 0.1 / 1) ** (1 / 3))
    # unigrams 1 2 match, the bigram 1 2 matches, no trigram does
    assert self_bleu([[1, 2, 3], [1, 2, 4]]) == pytest.approx((2 / 3 * 1 / 2 * 0.1 / 1) ** (1 / 3))


def test_nothing_is_compared_outside_a_sweep() -> None:
    sweep = [Figures(2.0, 5.0, 3.0, 0.5, 0.5), Figures(1.0, 9.0, 1.0, 0.5, 0.5)]
    assert at_entropy(sweep, 2.0, "nll_test") == 7.0
    assert at_entropy(sweep, 0.9, "nll_oracle") is None and at_entropy(sweep, 3.1, "nll_oracle") is None


@pytest.fixture(scope="module")
def tiny_report() -> dict[str, Any]:
    return bench_oracle(TINY, seeds=2, chosen=QUICK)


def test_every_contestant_is_measured_by_everything(tiny_report: dict[str, Any], tmp_path: Path) -> None:
    write_report(tmp_path / "oracle.json", tiny_report)
    content = json.loads((tmp_path / "oracle.json").read_text())
    names = [result["name"] for result in content["results"]]
    assert names == [MLE, PHI, CONTROL, *(recipe.name for recipe in QUICK)]
    for result in content["results"]:
        assert set(result["metrics"]) == {"nll_oracle", "nll_test", "entropy", "distinct_2", "self_bleu"}
        for figure in result["metrics"].values():
            low, high = figure["ci95"]
            assert len(figure["by_seed"]) == 2 and low <= figure["value"] <= high
        assert ("difference_at_matched_entropy" in result) == (result["name"] not in (MLE, PHI, CONTROL))
    for run in content["runs"]:
        assert run["stopped"] == {}
        assert [at["temperature"] for at in run["sweep"]] == [0.1, 1.0, 3.0]
        assert all([at["step"] for at in curve] == [0, 1, 2] for curve in run["curves"].values())


def test_a_recipe_is_compared_at_its_own_entropy(tiny_report: dict[str, Any]) -> None:
    run = tiny_report["runs"][1]
    sweep = [Figures(**{key: value for key, value in at.items() if key != "temperature"}) for at in run["sweep"]]
    for name, found in run["matched"].items():
        figures = run["figures"][name]
        expected = at_entropy(sweep, figures["entropy"], "nll_oracle")
        assert expected is not None
        assert found["nll_oracle"] == pytest.approx(figures["nll_oracle"] - expected)
        last = run["curves"][name][-1]
        assert (last["matched_nll_oracle"], last["matched_nll_test"]) == (found["nll_oracle"], found["nll_test"])


def test_a_gain_is_claimed_only_where_its_interval_excludes_zero() -> None:
    assert verdict({"value": -0.2, "ci95": [-0.41, 0.01]}) == "no gain shown"
    assert verdict({"value": -0.2, "ci95": [-0.3, -0.1]}) == "gain"
    assert verdict({"value": 0.2, "ci95": [0.1, 0.3]}) == "loss"
    assert verdict({"value": None, "ci95": None}) == "no gain shown"


def test_runs_are_deterministic_and_leave_the_random_state_alone(tiny_report: dict[str, Any]) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    again = bench_oracle(TINY, seeds=1, chosen=QUICK)["runs"][0]
    assert torch.equal(torch.rand(1), expected)
    assert {**again, "seconds": None} == {**tiny_report["runs"][0], "seconds": None}


def test_a_diverging_recipe_does_not_end_the_others() -> None:
    wild = replace(QUICK[4], name="wild", learning_rate=float("inf"))
    content = bench_oracle(TINY, seeds=1, chosen=[wild, QUICK[4]])
    run = content["runs"][0]
    assert "expected finite weights" in run["stopped"]["wild"]
    assert run["figures"]["wild"]["nll_oracle"] == run["curves"]["wild"][-1]["nll_oracle"]  # as it was last measured
    assert list(content["runs"][0]["curves"]) == ["wild", QUICK[4].name]


def test_the_oracle_as_reward_is_for_reinforce_only(truth: Oracle) -> None:
    game = OracleGame(
        Recipe("r", None, "rollouts", 1, 2), small_generator(), truth, torch.zeros(4, 3).long(), phi=None, dim=2, seed=0
    )
    with pytest.raises(NotImplementedError, match="reinforce"):
        game.generator_step()


def test_the_policy_gradient_alone_beats_maximum_likelihood_at_the_same_entropy() -> None:
    """With the oracle as reward: independent of any discriminator. After as many steps of each."""
    reward = Recipe("oracle as reward, reinforce", None, "reinforce", steps=60, batch=128, learning_rate=3e-3)
    content = bench_oracle(ONLY_REWARD, seeds=1, chosen=[reward])
    found = content["results"][-1]["difference_at_matched_entropy"]
    assert found["versus"] == CONTROL
    assert found["nll_oracle"]["value"] <= -0.08
    assert content["targets"][0]["met"]


def test_the_curves_are_drawn(tiny_report: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    oracle_plot.plot_oracle(tiny_report, tmp_path / "oracle.png")
    assert (tmp_path / "oracle.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_drawn_is_refused_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(plot: Path) -> None:
        run_oracle(paper_size=False, seeds=1, plot=plot, json_file=None, echo=print, settings=TINY)

    with pytest.raises(ConfigError, match=r"ends in \.png, found 'curve\.gif'"):
        run(tmp_path / "curve.gif")
    monkeypatch.setattr(oracle_plot, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"recsys-llm\[bench\]"):
        run(tmp_path / "curve.png")


def test_the_command_refuses_it_too(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "oracle", "--plot", str(tmp_path / "curve.gif")])
    assert isinstance(result.exception, ConfigError)


def test_the_command_prints_what_it_found(tmp_path: Path) -> None:
    lines: list[str] = []
    file = tmp_path / "oracle.json"
    run_oracle(paper_size=False, seeds=1, plot=None, json_file=file, echo=lines.append, settings=TINY)
    content = json.loads(file.read_text())
    assert content["command"] == "bench oracle" and content["settings"]["seeds"] == 1
    assert len(lines) == 1 + 3 + 3 + 2 * 8 + 8 + 3  # oracle, MLE twice and phi, sweep, recipes, verdicts, targets
    assert sum("no gain shown" in line for line in lines) == 8  # one seed shows nothing
    assert sum("target <= -0.11" in line for line in lines) == 2


def test_the_papers_size_is_the_papers() -> None:
    assert (PAPER_SIZE.items, PAPER_SIZE.length, PAPER_SIZE.sequences) == (5_000, 20, 10_000)
    assert (PAPER_SIZE.generator_dim, PAPER_SIZE.oracle_dim, PAPER_SIZE.rollouts) == (32, 32, 16)
