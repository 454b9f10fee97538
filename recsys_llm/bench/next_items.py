"""``recsys-llm evaluate next-items``: who predicts best what a user has next, over the whole catalogue.

Every contestant is trained on the same events before T, chooses its settings on the same slice before T, and ranks the
same catalogue for the same later groups, under the same seen filter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from recsys_llm.bench.next_items_baselines import (
    EASE,
    KNN,
    MARKOV,
    Fitted,
    fit_ease,
    fit_knn,
    fit_markov,
    fit_popularity,
)
from recsys_llm.bench.next_items_generators import train_generators
from recsys_llm.bench.next_items_report import GRU4REC, NDCG, SASREC, Contest, Run, result_of, targets_of
from recsys_llm.bench.next_items_scoring import measure, measure_lists
from recsys_llm.bench.next_items_world import World
from recsys_llm.bench.peers import gru4rec
from recsys_llm.bench.peers.exchange import ENVIRONMENT, peers_python, run_sasrec
from recsys_llm.bench.report import report
from recsys_llm.errors import ConfigError, did_you_mean
from recsys_llm.seqgan import SeqGANConfig, TrainingProgress

FITS: Mapping[str, Callable[[World, float, int], Fitted]] = {MARKOV: fit_markov, KNN: fit_knn, EASE: fit_ease}


@dataclass(frozen=True)
class NextItemsSettings:
    """What is compared."""

    seeds: int = 3
    """Trainings of each kind, at least 1."""
    skip: tuple[str, ...] = ()
    """Contestants to leave out: Markov, item-kNN, EASE, SASRec or GRU4Rec."""
    peer_budget: float = 600.0
    """Seconds of tuning of each peer: SASRec, GRU4Rec."""
    training: SeqGANConfig = field(default_factory=SeqGANConfig)
    """Of the generators; its validation slice is everybody's."""


def evaluate_world(
    world: World,
    settings: NextItemsSettings | None = None,
    *,
    device: str = "auto",
    echo: Callable[[str], object] = lambda line: None,
    progress: Callable[[TrainingProgress], None] | None = None,
) -> dict[str, Any]:
    """Train and measure every contestant, and return the report.

    Parameters
    ----------
    echo
        Told each contestant's figure as soon as there is one.
    progress
        Called after every gradient step of a generator.

    Raises
    ------
    ConfigError
        ``skip`` names no contestant.
    DataError
        EASE's matrices would be too large.
    TrainingError
        There is nothing to train on.
    """
    settings = settings or NextItemsSettings()
    for name in settings.skip:
        if name not in (*FITS, SASREC, GRU4REC):
            raise ConfigError(f"skip: unknown contestant {name!r}; {did_you_mean(name, [*FITS, SASREC, GRU4REC])}")
    contest: dict[str, list[Run]] = {}

    def enter(name: str, run: Run) -> None:
        contest.setdefault(name, []).append(run)
        ndcg = float(run.measured.metrics[NDCG].mean())
        echo(f"{name:<20} NDCG@10 {ndcg:.4f}  trained in {run.seconds:,.1f} s")

    share, largest = settings.training.validation_share, settings.training.validation_groups
    popularity = fit_popularity(world)
    enter(popularity.name, _run(popularity, world))
    for name, fit in FITS.items():
        if name not in settings.skip:
            enter(name, _run(fit(world, share, largest), world))
    for seed in range(settings.seeds):
        for trained in train_generators(world, settings.training, seed, device=device, progress=progress):
            enter(trained.name, Run(measure(trained.scorer, world), trained.seconds, trained.validation))
    not_run = {name: "skipped" for name in settings.skip}
    if GRU4REC not in settings.skip:
        tuned = gru4rec.tune(world, share, largest, settings.peer_budget)
        for seed in range(settings.seeds):
            scorer, seconds = gru4rec.fit(world, tuned.config, seed)
            enter(GRU4REC, Run(measure(scorer, world), seconds, tuned.validation, gru4rec.facts(tuned)))
    if SASREC not in settings.skip:
        python = peers_python()
        if python is None:
            not_run[SASREC] = f"no {ENVIRONMENT} here; run `make peers` first"
        else:
            budget = settings.peer_budget
            for answer in run_sasrec(
                world, python, share=share, largest=largest, seeds=settings.seeds, budget=budget, echo=echo
            ):
                measured = measure_lists(answer.lists, world)
                enter(SASREC, Run(measured, answer.seconds, answer.validation, answer.facts))
    return _report(contest, world, settings, not_run)


def _run(fitted: Fitted, world: World) -> Run:
    facts = {"chosen_settings": fitted.settings, "tuning_seconds": round(fitted.tuning_seconds, 1)}
    return Run(measure(fitted.scorer, world), fitted.seconds, fitted.validation, facts)


def _report(contest: Contest, world: World, settings: NextItemsSettings, not_run: dict[str, str]) -> dict[str, Any]:
    return report(
        "evaluate next-items",
        settings={
            "seeds": settings.seeds,
            "until": world.until.isoformat(),
            "catalogue": len(world.item_ids),
            "vocabulary": len(world.vocabulary),
            "groups": len(world.tasks),
            "users": len(set(world.tasks.users.tolist())),
            "filter_seen": world.filter_seen,
            "training": asdict(settings.training),
            "peer_budget_s": settings.peer_budget,
            "not_run": not_run,
        },
        results=[result_of(name, runs, world) for name, runs in contest.items()],
        targets=targets_of(contest, world),
    )
