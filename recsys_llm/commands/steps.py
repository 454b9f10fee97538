"""One line for each step of a long command: what was done, how long it took, how fast."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn

from recsys_llm.seqgan import TrainingProgress


@dataclass
class Step:
    """A step as it runs; the caller fills in rows and detail."""

    name: str
    rows: int = 0
    unit: str = "rows"
    detail: str = ""
    seconds: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the step for a report."""
        return {"name": self.name, "seconds": round(self.seconds, 3), "rows": self.rows}


class Steps:
    """Prints a line when each step ends, and remembers all of them."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.done: list[Step] = []

    @contextmanager
    def step(self, name: str, *, spinner: bool = True) -> Iterator[Step]:
        """Time a step; on a terminal, a spinner shows that it runs."""
        step = Step(name)
        started = time.perf_counter()
        with self.console.status(f"{name} ...") if spinner else nullcontext():
            yield step
        self._finish(step, started)

    @contextmanager
    def step_with_bar(self, name: str) -> Iterator[tuple[Step, Progress]]:
        """Time a step that shows a progress bar of its own (on a terminal only)."""
        step = Step(name)
        started = time.perf_counter()
        with progress_bar(self.console) as bar:
            yield step, bar
        self._finish(step, started)

    def _finish(self, step: Step, started: float) -> None:
        step.seconds = time.perf_counter() - started
        rate = f"{step.rows / max(step.seconds, 1e-9):>10,.0f} {step.unit}/s" if step.rows else ""
        self.console.print(f"[bold]{step.name:<14}[/] {step.seconds:>7.1f} s  {step.rows:>9,} {step.unit:<9}{rate}")
        if step.detail:
            self.console.print(f"               {step.detail}", highlight=False, soft_wrap=True)
        self.done.append(step)


def progress_bar(console: Console, *more: ProgressColumn) -> Progress:
    """Return a progress bar that goes away when done, and never shows where there is no terminal.

    Parameters
    ----------
    more
        Columns before the time that is left.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        *more,
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def show_training(bar: Progress) -> Callable[[TrainingProgress], None]:
    """Return a callback that shows each phase of a SeqGAN training as a task.

    Beside the bar: the loss, the mean reward, the discriminator's accuracy (D) and the generator's entropy.
    """
    tasks: dict[str, TaskID] = {}

    def show(progress: TrainingProgress) -> None:
        if progress.phase not in tasks:
            tasks[progress.phase] = bar.add_task(progress.phase, total=progress.total)
        words = f"{progress.phase} loss {progress.loss:.3f}"
        for name, value in (("reward", progress.reward), ("D", progress.accuracy), ("entropy", progress.entropy)):
            if value is not None:
                words += f" {name} {value:.3f}"
        bar.update(tasks[progress.phase], completed=progress.step, description=words)

    return show
