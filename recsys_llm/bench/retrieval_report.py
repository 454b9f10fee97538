"""Figures of next-item retrieval in the shape of every report, and as lines of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from recsys_llm.bootstrap import Interval
from recsys_llm.text.evaluation import METRICS, RetrievalScores, paired_interval

Runs = Sequence[RetrievalScores]
"""Of one contestant on the same pairs, one for each seed."""


def mean_of(runs: Runs) -> RetrievalScores:
    """Return each user's mean over the seeds, so that users can be resampled."""
    means = {metric: np.mean([run.values(metric) for run in runs], axis=0) for metric in METRICS}
    return replace(runs[0], **means)


def result_of(name: str, runs: Runs, *, baseline: tuple[str, Runs] | None = None) -> dict[str, Any]:
    """Return a contestant's figures: means over users and seeds, with 95% bootstrap intervals over users.

    Parameters
    ----------
    baseline
        Name and runs of another contestant: the paired difference to it is added.
    """
    scores = mean_of(runs)
    figures: dict[str, Any] = {}
    for metric in METRICS:
        found = scores.interval(metric)
        if found is None:
            continue
        figure = {"value": found.difference, "ci95": list(found.ci95), "users": found.users}
        if len(runs) > 1:
            figure["by_seed"] = [run.mean(metric) for run in runs]
        if baseline is not None:
            figure["difference"] = _difference(paired_interval(mean_of(baseline[1]), scores, metric))
        figures[scores.name(metric)] = figure
    versus = {} if baseline is None else {"versus": baseline[0]}
    return {"name": name, "seeds": len(runs), **versus, "metrics": figures}


def _difference(found: Interval | None) -> dict[str, Any] | None:
    return None if found is None else {"value": found.difference, "ci95": list(found.ci95)}


def show_results(results: Sequence[dict[str, Any]], echo: Callable[[str], object]) -> None:
    """Print a line per contestant and metric."""
    for result in results:
        seeds = "" if result["seeds"] == 1 else f", {result['seeds']} seeds"
        echo(f"{result['name']}{seeds}")
        for name, figure in result["metrics"].items():
            low, high = figure["ci95"]
            line = f"  {name:<28} {figure['value']:.4f} (95% {low:.4f} to {high:.4f}, {figure['users']:,} users)"
            found = figure.get("difference")
            if found is not None:
                low, high = found["ci95"]
                line += f"  {found['value']:+.4f} ({low:+.4f} to {high:+.4f}) to {result['versus']}"
            echo(line)
