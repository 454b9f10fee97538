"""Figures of next-item prediction: means and intervals over users, comparisons, targets, and the printed table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from recsys_llm.bench.next_items_baselines import KNN, POPULARITY
from recsys_llm.bench.next_items_generators import ADVERSARIAL, CHOSEN, CONTENT, CONTROL, ID_ONLY
from recsys_llm.bench.next_items_scoring import Floats, Measured
from recsys_llm.bench.next_items_world import World
from recsys_llm.bootstrap import Interval, paired_difference
from recsys_llm.seqgan.histories import Ints

SASREC, GRU4REC = "SASRec", "GRU4Rec"
NDCG = "ndcg_at_10"
COLD = "cold_among_cold_ndcg_at_10"
HISTORY = (0, 1, 5, 20, 100)
"""Lower bounds of the segments by groups read."""


@dataclass(frozen=True, eq=False)
class Run:
    """One contestant with one seed."""

    measured: Measured
    seconds: float
    validation: float | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What else is reported: chosen settings, for example."""


Contest = Mapping[str, Sequence[Run]]
"""Runs by contestant, one for each seed; a single one where nothing is drawn."""


def mean_metric(runs: Sequence[Run], metric: str) -> Floats:
    """Return a metric of each task, float64 (n,), averaged over the seeds; NaN where it doesn't apply."""
    return np.asarray(np.mean([run.measured.metrics[metric] for run in runs], axis=0), np.float64)


def compare(contest: Contest, users: Ints, contender: str, baseline: str, metric: str, factor: float = 1.0) -> Interval:
    """Return ``contender - factor * baseline``, paired, with its 95% interval over resampled users."""
    before, after = (mean_metric(contest[name], metric) for name in (baseline, contender))
    kept = np.isfinite(before) & np.isfinite(after)
    return paired_difference(factor * before[kept], after[kept], users[kept])


def result_of(name: str, runs: Sequence[Run], world: World) -> dict[str, Any]:
    """Return a contestant's figures in the shape of a report's ``results``."""
    users, metrics = world.tasks.users, {}
    for metric in runs[0].measured.metrics:
        values = mean_metric(runs, metric)
        kept = np.isfinite(values)
        if not kept.any():
            continue
        found = paired_difference(np.zeros(kept.sum()), values[kept], users[kept])
        metrics[metric] = {
            "value": found.difference,
            "ci95": list(found.ci95),
            "users": found.users,
            "groups": int(kept.sum()),
            "by_seed": [float(np.nanmean(run.measured.metrics[metric])) for run in runs],
        }
    measured = [run.measured for run in runs]
    diversity = float(np.mean([one.diversity for one in measured]))
    return {
        "name": name,
        "seeds": len(runs),
        "metrics": metrics,
        "by_history": _by_history(runs, world),
        "coverage": float(np.mean([one.coverage for one in measured])),
        "mean_popularity": float(np.mean([one.popularity for one in measured])),
        "intra_list_diversity": diversity if np.isfinite(diversity) else None,
        "training_seconds": [round(run.seconds, 1) for run in runs],
        "validation_ndcg_at_10": [run.validation for run in runs],
        **runs[0].facts,
    }


def _by_history(runs: Sequence[Run], world: World) -> dict[str, Any]:
    values, found = mean_metric(runs, NDCG), {}
    for low, high in zip(HISTORY, (*HISTORY[1:], None), strict=True):
        rows = (world.tasks.read >= low) & (world.tasks.read < (np.inf if high is None else high))
        label = f"{low}+" if high is None else str(low) if high == low + 1 else f"{low}-{high - 1}"
        if rows.any():
            found[label] = {"groups": int(rows.sum()), NDCG: float(values[rows].mean())}
    return found


def targets_of(contest: Contest, world: World) -> list[dict[str, Any]]:
    """Return the targets of predicted next items, met or not, each with what it compares."""
    targets = [
        _ratio(contest, world, "chosen_to_popularity", CHOSEN, POPULARITY, 2.0),
        _ratio(contest, world, "chosen_to_item_knn", CHOSEN, KNN, 1.0),
        _ratio(contest, world, "chosen_to_sasrec", CHOSEN, SASREC, 0.95),
        _faster(contest),
        _ratio(contest, world, "content_to_id_only", CONTENT, ID_ONLY, 1.3),
        _ratio(contest, world, "content_to_id_only_cold", CONTENT, ID_ONLY, 2.0, COLD),
    ]
    if ADVERSARIAL in contest:
        found = compare(contest, world.tasks.users, ADVERSARIAL, CONTROL, NDCG)
        helps = found.low > 0
        targets.append(
            {
                "name": "adversarial_minus_control",
                "target": "> 0",
                "value": found.difference,
                "ci95": list(found.ci95),
                "met": helps,
                "verdict": "adversarial helps" if helps else "no gain",
            }
        )
    return targets


def _ratio(
    contest: Contest, world: World, name: str, contender: str, baseline: str, factor: float, metric: str = NDCG
) -> dict[str, Any]:
    target: dict[str, Any] = {"name": name, "target": f">= {factor:g}", "metric": metric}
    missing = [one for one in (contender, baseline) if one not in contest or metric not in _names(contest[one])]
    if missing:
        return target | {"value": None, "met": False, "verdict": f"not measured: {', '.join(missing)}"}
    found = compare(contest, world.tasks.users, contender, baseline, metric, factor)
    low, high = (float(np.nanmean(mean_metric(contest[one], metric))) for one in (baseline, contender))
    verdict = {} if low else {"verdict": f"{baseline} is at 0, {contender} at {high:.4f}"}
    return target | {
        "value": high / low if low else None,
        "met": high >= factor * low and high > 0,
        "difference_to_target": {"value": found.difference, "ci95": list(found.ci95)},
        **verdict,
    }


def _names(runs: Sequence[Run]) -> set[str]:
    return {name for name, values in runs[0].measured.metrics.items() if np.isfinite(values).any()}


def _faster(contest: Contest) -> dict[str, Any]:
    target: dict[str, Any] = {"name": "training_seconds_to_sasrec", "target": "< 1"}
    if SASREC not in contest:
        return target | {"value": None, "met": False, "verdict": f"not measured: {SASREC}"}
    own, peer = (float(np.mean([run.seconds for run in contest[name]])) for name in (CHOSEN, SASREC))
    return target | {"value": own / peer, "met": own < peer}


def show_report(content: Mapping[str, Any], echo: Callable[[str], object]) -> None:
    """Print the results as one table, the segments, and the targets."""
    echo(
        f"{'':<20} {'NDCG@10 (95% interval)':<26} {'HR@10':>6} {'MRR':>6} {'cover':>6} {'popul.':>7} {'divers.':>7} "
        f"{'cold':>7} {'cold/cold':>9} {'seconds':>8}"
    )
    for result in content["results"]:
        metrics = result["metrics"]
        low, high = metrics[NDCG]["ci95"]
        cold = [metrics[name]["value"] if name in metrics else None for name in ("cold_ndcg_at_10", COLD)]
        echo(
            f"{result['name']:<20} {metrics[NDCG]['value']:.4f} ({low:.4f} to {high:.4f})  "
            f"{metrics['hr_at_10']['value']:>7.4f} {metrics['mrr']['value']:>6.4f} {result['coverage']:>6.3f} "
            f"{result['mean_popularity']:>7.1f} {_number(result['intra_list_diversity'], 7, 3)} "
            f"{_number(cold[0], 7, 4)} {_number(cold[1], 9, 4)} {np.mean(result['training_seconds']):>8.1f}"
        )
    echo("NDCG@10 by groups read before")
    for result in content["results"]:
        parts = (f"{label}: {found[NDCG]:.4f} (n={found['groups']:,})" for label, found in result["by_history"].items())
        echo(f"{result['name']:<20} {'  '.join(parts)}")
    for name in content["settings"].get("not_run", {}):
        echo(f"{name:<20} not run: {content['settings']['not_run'][name]}")
    for target in content["targets"]:
        met = "met" if target["met"] else "NOT met"
        verdict = f"  {target['verdict']}" if "verdict" in target else ""
        echo(f"{target['name']:<28} {_number(target['value'], 9, 4)}  target {target['target']:<8} {met}{verdict}")


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:>{width}.{digits}f}"
