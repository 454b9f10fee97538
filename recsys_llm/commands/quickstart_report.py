"""What a quickstart found: its report, its last lines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from recsys_llm import schema
from recsys_llm.bench.report import report
from recsys_llm.commands.steps import Steps
from recsys_llm.commands.world import World
from recsys_llm.ranking.evaluation import HR, MRR, NDCG, Evaluation
from recsys_llm.seqgan import Checkpoint
from recsys_llm.timestamps import now

BASELINE, WITH_FEATURES = "baseline", "with_features"


def quickstart_report(
    steps: Steps,
    world: World,
    checkpoint: Checkpoint,
    evaluation: Evaluation,
    next_items: dict[str, Any],
    seed: int,
) -> dict[str, Any]:
    """Return all figures of a run, in the shape of every measuring command."""
    means = evaluation.means()
    lift = {}
    for metric in (NDCG, HR, MRR):
        interval = evaluation.difference(BASELINE, WITH_FEATURES, metric, seed=seed)
        lift[metric] = {
            "baseline": means[BASELINE][metric],
            "with_features": means[WITH_FEATURES][metric],
            "difference": interval.difference,
            "ci95": list(interval.ci95),
        }
    settings = {
        "seed": seed,
        "train_until": world.train_until.isoformat(),
        "rank_until": world.rank_until.isoformat(),
        "test_events": len(evaluation.events),
        "test_users": int(evaluation.events[schema.USER_ID].nunique()),
    }
    results = [
        {"name": f"{metric}_difference", "value": found["difference"], "ci95": found["ci95"], "seeds": [seed]}
        for metric, found in lift.items()
    ]
    return report("quickstart", settings=settings, results=results, targets=[]) | {
        "data": {
            "name": world.choice.name,
            "simulated": world.choice.simulated,
            "warning": world.choice.warning,
            "items": world.items.num_rows,
            "interactions": world.interactions.num_rows,
        },
        "steps": [step.as_dict() for step in steps.done],
        "lift": lift,
        "next_items": next_items,
        "losses": checkpoint.manifest["losses"],
    }


def show_results(console: Console, content: dict[str, Any]) -> None:
    """Print the lift of the learned features, and the next-item models beside popularity."""
    console.print()
    for metric, values in content["lift"].items():
        low, high = values["ci95"]
        console.print(
            f"[bold]{metric:<10}[/] baseline {values['baseline']:.4f}   "
            f"with learned features {values['with_features']:.4f}   "
            f"difference {values['difference']:+.4f} (95% {low:+.4f} to {high:+.4f})",
            highlight=False,
            soft_wrap=True,
        )
    for name in ("popularity", "mle", "adversarial"):
        scores = content["next_items"].get(name)
        if scores is not None:
            line = f"{name:<12} NDCG@10 {scores['ndcg_at_10']:.4f}   HR@10 {scores['hr_at_10']:.4f}"
            console.print(f"[bold]next items[/] {line}", highlight=False)


def show_way_on(console: Console, world: World, json_file: Path) -> None:
    """Print the exact lines with which to go on."""
    repository = world.repository
    user = world.interactions.column(schema.USER_ID)[-1].as_py()
    items = world.items.column(schema.ITEM_ID)[:3].to_pylist()
    lines = f"""
Figures: {json_file}
Go on with:
  feast -c {repository} materialize-incremental {now():%Y-%m-%dT%H:%M:%S}
  feast -c {repository} feature-views list
  {sys.executable} -c "
from recsys_llm import FeatureClient
client = FeatureClient('{repository}')
print(client.lookup('{user}', {items}, service='{schema.RANKER}').to_pandas().T)
\""""
    console.print(lines, highlight=False, markup=False, soft_wrap=True)
