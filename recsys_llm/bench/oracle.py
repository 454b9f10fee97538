"""``recsys-llm bench oracle``: does adversarial training make a generator better where the truth is known?

The synthetic test of Yu et al. 2017, section 4, with what its NLL_oracle leaves out. A lower temperature alone lowers
NLL_oracle further than any adversarial training does, so that a recipe is compared with maximum likelihood at the
temperature that has the recipe's own entropy, after as many steps (Caccia et al. 2020, "Language GANs Falling Short").
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from recsys_llm.bench.oracle_metrics import Figures, at_entropy, measure, tempered
from recsys_llm.bench.oracle_settings import OracleSettings, recipes
from recsys_llm.bench.oracle_training import OracleGame, Recipe, fit_mle
from recsys_llm.bench.oracle_world import Oracle, sequence_nll
from recsys_llm.bench.report import report
from recsys_llm.errors import TrainingError
from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.pretraining import copy_weights

MLE, CONTROL, PHI = "MLE", "MLE continued", "phi"
METRICS = tuple(entry.name for entry in fields(Figures))
MATCHED = ("nll_oracle", "nll_test")
TARGETS = {
    "density_ratio, reinforce": -0.11,
    "density_ratio with phi frozen, reinforce": -0.11,
    "oracle as reward, reinforce": -0.08,
}
"""NLL_oracle less that of the control at the same entropy, at most: what earlier experiments saw."""
Echo = Callable[[str], object]


@dataclass
class SeedRun:
    """One oracle, and everything that was trained on its sequences."""

    oracle_entropy: float
    """NLL of held-out sequences under the oracle itself: the least NLL_test that there is."""
    figures: dict[str, Figures] = field(default_factory=dict)
    """After the last step; of a training that ended early, where it was last measured."""
    matched: dict[str, dict[str, float | None]] = field(default_factory=dict)
    """Of each recipe, less the control's at the same entropy; None where the sweep doesn't reach that entropy."""
    curves: dict[str, list[dict[str, float | None]]] = field(default_factory=dict)
    """Figures along each training, by step; "matched_nll_oracle" and "matched_nll_test" are as ``matched``."""
    sweep: list[dict[str, float]] = field(default_factory=list)
    """The control's figures at each temperature."""
    seconds: dict[str, float] = field(default_factory=dict)
    stopped: dict[str, str] = field(default_factory=dict)
    """Why a training ended early."""


def bench_oracle(
    settings: OracleSettings | None = None,
    *,
    seeds: int = 3,
    chosen: Sequence[Recipe] | None = None,
    echo: Echo = lambda line: None,
) -> dict[str, Any]:
    """Train every recipe on the sequences of ``seeds`` random oracles, and return the report.

    Parameters
    ----------
    chosen
        Recipes; None: :func:`~recsys_llm.bench.oracle_settings.recipes`.
    echo
        Told every figure as soon as it is known.
    """
    settings = settings or OracleSettings()
    chosen = recipes(settings) if chosen is None else chosen
    runs = []
    for seed in range(seeds):
        with torch.random.fork_rng(devices=[]):  # the caller's random state is left alone
            torch.manual_seed(seed)
            runs.append(_run_seed(settings, chosen, seed, echo))
    return _report(settings, chosen, runs)


def _run_seed(settings: OracleSettings, chosen: Sequence[Recipe], seed: int, echo: Echo) -> SeedRun:
    rng = torch.Generator().manual_seed(seed)
    oracle = Oracle(settings.items, dim=settings.oracle_dim, rng=rng)
    drawn = oracle.sample(settings.sequences + 2 * settings.held_out, settings.length, rng)
    train, valid, test = torch.split(drawn, [settings.sequences, settings.held_out, settings.held_out])
    run = SeedRun(oracle_entropy=sequence_nll(oracle, test))
    echo(f"seed {seed}: oracle's entropy {run.oracle_entropy:.3f}")
    counts = torch.bincount(train.flatten(), minlength=settings.items)
    bench = _Bench(settings, oracle, train, valid, test, run, echo)

    generator = Generator(counts, None, embedding_dim=settings.generator_dim, hidden_dim=settings.generator_dim)
    batch = settings.mle_batch
    bench.mle(MLE, generator, steps=settings.mle_steps, batch=batch, learning_rate=settings.mle_learning_rate)
    phi = None
    if any(recipe.discriminator == "density_ratio" for recipe in chosen):
        phi = Generator(counts, None, embedding_dim=settings.phi_dim, hidden_dim=settings.phi_dim)
        bench.mle(PHI, phi, steps=settings.phi_steps, batch=batch, learning_rate=settings.phi_learning_rate)
    control = copy.deepcopy(generator)
    steps = max([recipe.steps for recipe in chosen], default=settings.steps)
    bench.mle(CONTROL, control, steps=steps, batch=settings.batch, learning_rate=Recipe.learning_rate)
    sweep = bench.sweep(control)
    for recipe in chosen:
        bench.adversarial(recipe, copy.deepcopy(generator), phi, sweep, seed)
    return run


@dataclass(frozen=True, eq=False)
class _Bench:
    settings: OracleSettings
    oracle: Oracle
    train: Tensor
    valid: Tensor
    test: Tensor
    run: SeedRun
    echo: Echo

    def measure(self, generator: Generator) -> Figures:
        # Always the same numbers are drawn, so that little of a difference is chance.
        return measure(generator, self.oracle, self.test, samples=self.settings.samples, seed=0)

    def mle(self, name: str, generator: Generator, *, steps: int, batch: int, learning_rate: float) -> None:
        started = time.perf_counter()
        fit_mle(
            generator,
            self.train,
            self.valid,
            steps=steps,
            batch=batch,
            learning_rate=learning_rate,
            every=max(1, steps // (4 * self.settings.points)),
            seed=0,
        )
        self._keep(name, self.measure(generator), started)

    def sweep(self, control: Generator) -> list[Figures]:
        found = [self.measure(tempered(control, temperature)) for temperature in self.settings.temperatures]
        for temperature, figures in zip(self.settings.temperatures, found, strict=True):
            self.run.sweep.append({"temperature": temperature, **asdict(figures)})
            self.echo(f"  {f'{CONTROL} at temperature {temperature}':<42}{_line(figures)}")
        return found

    def adversarial(
        self, recipe: Recipe, generator: Generator, phi: Generator | None, sweep: Sequence[Figures], seed: int
    ) -> None:
        started = time.perf_counter()
        curve = self.run.curves.setdefault(recipe.name, [])
        weights = copy_weights(generator)

        def record(step: int) -> None:
            figures = self.measure(generator)
            matched = {f"matched_{name}": value for name, value in _matched(figures, sweep).items()}
            curve.append({"step": step, **asdict(figures), **matched})
            weights.update(copy_weights(generator))

        record(0)
        game = OracleGame(
            recipe, generator, self.oracle, self.train, phi=phi, dim=self.settings.discriminator_dim, seed=seed
        )
        try:
            game.play(every=max(1, recipe.steps // self.settings.points), record=record)
        except TrainingError as error:
            self.run.stopped[recipe.name] = str(error)
            generator.load_state_dict(weights)
        figures = self.measure(generator)
        matched = _matched(figures, sweep)
        self.run.matched[recipe.name] = matched
        self._keep(recipe.name, figures, started)
        shown = ", ".join(
            f"{name} {'outside the sweep' if value is None else f'{value:+.3f}'}" for name, value in matched.items()
        )
        self.echo(f"    at the same entropy, to {CONTROL}: {shown}")

    def _keep(self, name: str, figures: Figures, started: float) -> None:
        self.run.figures[name] = figures
        self.run.seconds[name] = round(time.perf_counter() - started, 1)
        self.echo(f"  {name:<42}{_line(figures)} {self.run.seconds[name]:8.1f} s")


def _matched(figures: Figures, sweep: Sequence[Figures]) -> dict[str, float | None]:
    """Return a generator's figures less those of the sweep at its entropy."""
    references = {name: at_entropy(sweep, figures.entropy, name) for name in MATCHED}
    return {
        name: None if reference is None else getattr(figures, name) - reference
        for name, reference in references.items()
    }


def _line(figures: Figures) -> str:
    return (
        f"NLL_oracle {figures.nll_oracle:.3f}  NLL_test {figures.nll_test:.3f}  H(G) {figures.entropy:.3f}  "
        f"distinct-2 {figures.distinct_2:.4f}  self-BLEU {figures.self_bleu:.3f}"
    )


def _report(settings: OracleSettings, chosen: Sequence[Recipe], runs: list[SeedRun]) -> dict[str, Any]:
    results = []
    for name in runs[0].figures:
        result: dict[str, Any] = {"name": name, "seeds": len(runs)}
        result["metrics"] = {key: _figure([getattr(run.figures[name], key) for run in runs]) for key in METRICS}
        if name in runs[0].matched:
            result["difference_at_matched_entropy"] = {
                "versus": CONTROL,
                **{key: _figure([run.matched[name][key] for run in runs]) for key in MATCHED},
            }
            result["verdict"] = verdict(result["difference_at_matched_entropy"]["nll_oracle"])
        result["seconds"] = [run.seconds[name] for run in runs]
        results.append(result)
    targets = []
    for result in results:
        if result["name"] in TARGETS:
            most = TARGETS[result["name"]]
            value = result["difference_at_matched_entropy"]["nll_oracle"]["value"]
            met = value is not None and value <= most
            name = f"{result['name']}: NLL_oracle at matched entropy"
            targets.append({"name": name, "target": f"<= {most}", "value": value, "met": met})
    content = report(
        "bench oracle",
        settings={**asdict(settings), "seeds": len(runs), "recipes": [asdict(recipe) for recipe in chosen]},
        results=results,
        targets=targets,
    )
    return content | {"runs": [asdict(run) for run in runs]}


def verdict(difference: dict[str, Any]) -> str:
    """Return "gain" or "loss" where the interval of a difference in NLL excludes 0, else "no gain shown".

    Examples
    --------
    >>> verdict({"value": -0.2, "ci95": [-0.3, -0.1]}), verdict({"value": -0.2, "ci95": None})
    ('gain', 'no gain shown')
    """
    if difference["ci95"] is None or difference["ci95"][0] <= 0 <= difference["ci95"][1]:
        return "no gain shown"
    return "gain" if difference["value"] < 0 else "loss"


def _figure(values: Sequence[float | None]) -> dict[str, Any]:
    """Return the mean over seeds with its 95% t interval; None where a value is missing or there is one seed."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return {"value": None, "ci95": None, "by_seed": list(values)}
    mean, interval = float(np.mean(known)), None
    if len(known) > 1:
        half = float(stats.t.ppf(0.975, len(known) - 1) * np.std(known, ddof=1) / len(known) ** 0.5)
        interval = [mean - half, mean + half]
    return {"value": mean, "ci95": interval, "by_seed": known}
