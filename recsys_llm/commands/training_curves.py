"""What a SeqGAN's training looked like: a table and a picture beside the checkpoint."""

from __future__ import annotations

import csv
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from recsys_llm.files import replaced_file
from recsys_llm.seqgan import Checkpoint

CSV_FILE = "curves.csv"
PNG_FILE = "curves.png"
METRICS = ("loss", "ndcg_at_10", "reward", "accuracy", "entropy")


def write_curves(checkpoint: Checkpoint, directory: Path) -> list[Path]:
    """Write :data:`CSV_FILE`, and :data:`PNG_FILE` where matplotlib (the extra ``bench``) is installed.

    A line of the table is an epoch of a phase, or a step of the discriminator's pre-training.

    Returns
    -------
    list of Path
        What was written.
    """
    phases: dict[str, dict[str, list[float]]] = checkpoint.manifest["losses"]
    table = directory / CSV_FILE
    with replaced_file(table) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(("phase", "number", *METRICS))
        for phase, curves in phases.items():
            for number in range(max(map(len, curves.values()), default=0)):
                values = (curves.get(name, ())[number : number + 1] for name in METRICS)
                writer.writerow((phase, number + 1, *(value[0] if value else "" for value in values)))
    if find_spec("matplotlib") is None:
        return [table]
    return [table, _draw(phases, checkpoint.manifest["scores"], directory / PNG_FILE)]


def _draw(phases: dict[str, dict[str, list[float]]], scores: dict[str, dict[str, Any]], file: Path) -> Path:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [metric for metric in METRICS if any(curves.get(metric) for curves in phases.values())]
    figure = Figure(figsize=(3.4 * len(shown), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, metric in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        for place, (phase, curves) in enumerate(phases.items()):
            if curves.get(metric):
                numbers = range(1, len(curves[metric]) + 1)
                axes.plot(numbers, curves[metric], ".-", color=f"C{place}", label=phase)
        if metric == "ndcg_at_10":
            axes.axhline(scores["popularity"][metric], color="grey", linestyle=":", label="popularity")
        axes.set(title=metric, xlabel="epoch, or step of the discriminator")
        axes.legend(fontsize="small")
    with replaced_file(file) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
    return file
