"""What ``recsys-llm text pretrain`` shows while it runs and says when it is done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import TaskID, TextColumn

from recsys_llm.bench.report import report
from recsys_llm.commands.repository import path_in
from recsys_llm.commands.steps import progress_bar
from recsys_llm.commands.text_training import TrainedEncoder
from recsys_llm.text.masked_language_model import perplexity
from recsys_llm.text.pretraining_settings import PretrainingProgress


@contextmanager
def training_bar(console: Console) -> Iterator[Callable[[PretrainingProgress], None]]:
    """Hand out a callback that shows loss, tokens per second and time left; nothing where there is no terminal."""
    tasks: dict[str, TaskID] = {}
    started: dict[str, float] = {}
    tokens: dict[str, int] = {}
    with progress_bar(console, TextColumn("{task.fields[rate]:>9,.0f} tokens/s")) as bar:

        def show(found: PretrainingProgress) -> None:
            phase = found.phase
            if phase not in tasks:
                tasks[phase] = bar.add_task(phase, total=found.total, rate=0.0)
                started[phase], tokens[phase] = time.perf_counter(), -found.tokens
            tokens[phase] += found.tokens
            rate = tokens[phase] / max(time.perf_counter() - started[phase], 1e-9)
            words = f"{phase} epoch {found.epoch} loss {found.loss:.3f}"
            bar.update(tasks[phase], completed=found.step, description=words, rate=rate)
            if found.held_out_loss is not None and console.is_terminal:
                measured = f"held out {found.held_out_loss:.4f}, perplexity {perplexity(found.held_out_loss):,.2f}"
                bar.console.print(f"epoch {found.epoch}: {measured}", highlight=False)

        yield show


def show_pretraining(trained: TrainedEncoder, repository: Path, echo: Callable[[str], object]) -> None:
    """Say what was trained, on what, and what came of it."""
    scores = trained.manifest.scores
    texts, found = scores["texts"], scores["perplexity"]
    rate = "" if trained.tokens_per_s is None else f", {trained.tokens_per_s:,.0f} tokens/s"
    echo(
        f"{texts['train']:,} texts ({texts['tokens']:,} tokens) to train on, {texts['held_out']:,} held out; "
        f"{scores['steps']:,} steps in {trained.seconds:,.1f} s{rate}"
    )
    for epoch, (loss, held_out) in enumerate(zip(scores["losses"], scores["held_out_losses"], strict=True), start=1):
        best = "  (kept)" if epoch == scores["best_epoch"] else ""
        echo(f"epoch {epoch}: loss {loss:.4f}, held out {held_out:.4f}, perplexity {perplexity(held_out):,.2f}{best}")
    before = "head trained alone" if scores["head"] == "fresh" else "before"
    shown = {"untrained head": found["untrained_head"], before: found["before"], "after": found["after"]}
    for name, value in shown.items():
        if value is not None:
            echo(f"perplexity on held-out texts, {name:<18} {value:>12,.2f}")
    echo(
        f"saved {trained.directory}; next: a new encoder with `model: {path_in(repository, trained.directory)}` in "
        "recsys_llm.yaml. Guessing words is not "
        "comparing texts: `recsys-llm text finetune` makes its vectors comparable again"
    )


def pretraining_report(trained: TrainedEncoder) -> dict[str, Any]:
    """Return the figures for ``--json``."""
    manifest = trained.manifest
    scores = manifest.scores
    results: list[dict[str, Any]] = [
        {"name": f"perplexity_{name}", "value": value}
        for name, value in scores["perplexity"].items()
        if value is not None
    ]
    results += [
        {"name": f"epoch_{epoch}", "loss": loss, "held_out_loss": held_out}
        for epoch, (loss, held_out) in enumerate(zip(scores["losses"], scores["held_out_losses"], strict=True), start=1)
    ]
    results.append({"name": "training", "seconds": trained.seconds, "tokens_per_s": trained.tokens_per_s})
    content = report("text pretrain", settings=manifest.settings, results=results, targets=[])
    return content | {
        **trained.origin,
        "head": scores["head"],
        "best_epoch": scores["best_epoch"],
        "steps": scores["steps"],
        "texts": scores["texts"],
    }
