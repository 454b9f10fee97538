"""What a peer is given and gives back, as parquet files: it runs in another environment, with other dependencies.

::

    fit.parquet, all.parquet                   user, item, time: events before the validation slice, and before T
    validation.parquet, test.parquet           query, item, time: the history of each group to predict, oldest first
    wanted.parquet                             query, item: what the groups of the validation slice hold
    answers.parquet                            query, item, rank (from 1), seed: what the peer gives back
    answers.json                               its chosen settings and seconds

Users, items and queries are numbers; times are places in an order. Items of one group come in an arbitrary order that
depends on them and their time alone: in that of the catalogue, a peer would learn the alphabet.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_llm.bench.next_items_scoring import DEPTH, Lists
from recsys_llm.bench.next_items_world import Tasks, World
from recsys_llm.errors import ModelError
from recsys_llm.seqgan.sequences import Sequences, ranges

ENVIRONMENT = ".venv-peers"
_SCRIPT = Path(__file__).with_name("rectools_peers.py")


@dataclass(frozen=True, eq=False)
class Answer:
    """One peer's run with one seed."""

    lists: Lists
    """int64 (tasks, :data:`DEPTH`) catalogue positions, -1 past the end."""
    seconds: float
    """Of the last training, with the chosen settings."""
    validation: float
    facts: dict[str, Any]


def peers_python(root: Path | None = None) -> Path | None:
    """Return the Python of the peers' environment in the working directory; None where ``make peers`` was not run."""
    found = (root or Path.cwd()) / ENVIRONMENT / "bin" / "python"
    return found if found.exists() else None


def run_sasrec(
    world: World,
    python: Path,
    *,
    share: float,
    largest: int,
    seeds: int,
    budget: float,
    echo: Callable[[str], object] = lambda line: None,
) -> list[Answer]:
    """Tune and train RecTools' SASRec, and return its lists for the world's tasks, one answer for each seed.

    Parameters
    ----------
    python
        Of an environment with ``rectools[torch]``.
    share, largest
        Of the validation slice.
    budget
        CPU seconds of tuning: no further configuration is begun after them, and the running one ends at its next check.

    Raises
    ------
    ModelError
        The peer failed; the message carries its last lines.
    """
    fit, validation = world.validation(share, largest)
    with TemporaryDirectory() as folder:
        target = Path(folder)
        everything = in_arbitrary_order(world.sequences)
        _write_events(target / "fit.parquet", in_arbitrary_order(fit))
        _write_events(target / "all.parquet", in_arbitrary_order(world.before()))
        _write_histories(target / "validation.parquet", everything, validation)
        _write_wanted(target / "wanted.parquet", everything, validation)
        _write_histories(target / "test.parquet", everything, world.tasks)
        facts = {"seeds": seeds, "budget": budget, "depth": DEPTH, "filter_seen": world.filter_seen}
        (target / "settings.json").write_text(json.dumps(facts))
        command = [str(python), str(_SCRIPT), folder]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        if done.returncode:
            raise ModelError(f"SASRec in {python} failed; its last lines: {done.stderr.strip()[-1500:]}")
        for line in done.stdout.splitlines():
            echo(line)
        return _read(target, len(world.tasks))


def in_arbitrary_order(sequences: Sequences) -> Sequences:
    """Return the same groups, the items of each in the order of a hash of item and time."""
    sizes = sequences.group_sizes()
    times = np.repeat(sequences.timestamps, sizes).astype(np.uint64)
    key = (sequences.items + 2).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) ^ times * np.uint64(
        0xC2B2AE3D27D4EB4F
    )
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # splitmix64
        key = (key ^ (key >> np.uint64(shift))) * np.uint64(factor)
    order = np.lexsort((key ^ (key >> np.uint64(31)), np.repeat(np.arange(len(sizes)), sizes)))
    return replace(sequences, items=sequences.items[order])


def flat_events(sequences: Sequences) -> dict[str, npt.NDArray[np.int64]]:
    """Return all events in order: user, item and the event's place among its user's, int64 (n,) each."""
    users = np.repeat(np.arange(len(sequences.user_offsets) - 1), np.diff(sequences.user_offsets))
    return _columns("user", np.repeat(users, sequences.group_sizes()), sequences.items)


def flat_histories(sequences: Sequences, tasks: Tasks) -> dict[str, npt.NDArray[np.int64]]:
    """Return the known items before each task, oldest first: query, item and place, int64 (n,) each."""
    first, last = sequences.group_offsets[tasks.groups - tasks.read], sequences.group_offsets[tasks.groups]
    return _columns(
        "query", np.repeat(np.arange(len(tasks)), last - first), sequences.items[ranges(first, last - first)]
    )


def _columns(name: str, rows: npt.NDArray[np.int64], items: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
    known = items >= 0
    return {name: rows[known], "item": items[known], "time": np.arange(int(known.sum()))}


def _write_events(file: Path, sequences: Sequences) -> None:
    pq.write_table(pa.table(flat_events(sequences)), file)


def _write_histories(file: Path, sequences: Sequences, tasks: Tasks) -> None:
    pq.write_table(pa.table(flat_histories(sequences, tasks)), file)


def _write_wanted(file: Path, sequences: Sequences, tasks: Tasks) -> None:
    sizes = sequences.group_sizes()[tasks.groups]
    items = sequences.items[ranges(sequences.group_offsets[tasks.groups], sizes)]
    pq.write_table(pa.table({"query": np.repeat(np.arange(len(tasks)), sizes), "item": items}), file)


def _read(folder: Path, tasks: int) -> list[Answer]:
    facts: Sequence[dict[str, Any]] = json.loads((folder / "answers.json").read_text())
    rows = pq.read_table(folder / "answers.parquet")
    query, item, rank, seed = (rows.column(name).to_numpy() for name in ("query", "item", "rank", "seed"))
    answers = []
    for number, one in enumerate(facts):
        lists = np.full((tasks, DEPTH), -1, np.int64)
        own = seed == number
        lists[query[own], rank[own] - 1] = item[own]
        answers.append(Answer(lists, one.pop("seconds"), one.pop("validation"), one))
    return answers
