"""A materialisation that is killed, and what must hold after the next one: nothing lost, twice, or stale."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import redis
import yaml

from recsys_llm import schema
from recsys_llm.config import load_config
from recsys_llm.producers import open_ledger
from recsys_llm.producers.user_statistics import UserStatistics
from tests.faults.processes import join, spawn
from tests.workspace import materialize, offline, online

VIEW = schema.USER_STATS
CHUNK_ROWS = 128
POINTS = 50
"""Kills of each soak test: 200 over two stores and two executors."""
FIGURES = "SOAK_FIGURES"
"""Environment variable: a folder for the figures of the soak runs, one JSON file for each store and executor."""


@dataclass
class Figures:
    """What killed runs and the runs after them left, summed over all points."""

    points: int = 0
    killed: int = 0
    """Points that were reached; with threads of others about, a run may take another way and end before its point."""
    lost: int = 0
    duplicated: int = 0
    stale: int = 0
    """Keys whose online row is not the newest one."""
    redone: int = 0
    """Chunks that were computed twice."""
    most_redone: int = 0
    """Chunks that were computed twice because of one kill."""
    seconds: float = 0.0

    def write(self, name: str) -> None:
        """Leave the figures in the folder that the environment names, if it does."""
        if FIGURES in os.environ:
            file = Path(os.environ[FIGURES]) / f"{name}.json"
            file.write_text(json.dumps(asdict(self), indent=2) + "\n")


class ChunkCounter:
    """Counts chunks across forks: each is a byte in a file. Chunks for Ray are counted as they are sent."""

    def __init__(self, folder: Path, monkeypatch: Any, target: Any = UserStatistics, method: str = "compute") -> None:
        self._file = os.open(folder / "chunks", os.O_CREAT | os.O_APPEND | os.O_RDWR)
        wrapped = getattr(target, method)

        def counted(*arguments: Any) -> Any:
            os.write(self._file, b".")
            return wrapped(*arguments)

        monkeypatch.setattr(target, method, counted)

    def take(self) -> int:
        """Return the chunks since the last time."""
        size = os.fstat(self._file).st_size
        os.ftruncate(self._file, 0)
        return size


def times(repository: Path) -> list[Any]:
    """Return the times of all events, sorted."""
    source = yaml.safe_load((repository / "recsys_llm.yaml").read_text())["sources"]["interactions"]["parquet"]
    return sorted(pq.read_table(source).column("event_timestamp").to_pylist())


def begin_again(repository: Path, until: Any) -> None:
    """Start over, with the rows until a time materialised: older ones than the run to be killed will write."""
    settings = yaml.safe_load((repository / "feature_store.yaml").read_text())["online_store"]
    shutil.rmtree(repository / "data")
    shutil.copytree(repository / "applied", repository / "data")
    if settings["type"] != "sqlite":
        with redis.Redis(port=int(settings["connection_string"].split(":")[1])) as admin:
            admin.flushall()
    materialize(repository, VIEW, end=until)


def rows_in_parts(repository: Path) -> int:
    """Count the rows on disk."""
    return sum(pq.read_metadata(file).num_rows for file in parts(repository))


def parts(repository: Path) -> list[Path]:
    """Return the parts on disk."""
    return sorted((repository / "data" / "features" / VIEW).glob("part-*.parquet"))


def newest(rows: pd.DataFrame) -> dict[str, int]:
    """Return n_events of the newest row of each user."""
    return dict(rows.groupby(schema.USER_ID).tail(1)[[schema.USER_ID, schema.N_EVENTS]].values.tolist())


def read(repository: Path, keys: list[str]) -> dict[str, int]:
    """Return n_events as stock Feast reads it online."""
    return dict(zip(keys, online(repository, VIEW, keys)[schema.N_EVENTS], strict=True))


def kill_and_check(
    repository: Path,
    points: int,
    seed: int,
    capsys: Any,
    chunks: ChunkCounter,
    *,
    run: Callable[[Any], None] | None = None,
    sent: ChunkCounter | None = None,
    most_redone: int = 1,
    name: str | None = None,
) -> Figures:
    """Kill a run at random places, and check what the next one makes of it.

    Parameters
    ----------
    run
        What is killed; None: a materialisation in this process's executor, which also makes the next run.
    chunks, sent
        Count the chunks that this process's executor computes and those that ``run`` hands to others.
    most_redone
        Chunks that may be computed twice: as many as can be under way.
    name
        Of the file for the figures, which is written after each point.
    """
    moments = times(repository)
    middle, end = moments[len(moments) // 2], moments[-1] + pd.Timedelta(days=2).to_pytimedelta()
    begin_again(repository, middle)
    chunks.take()
    materialize(repository, VIEW, end=end)
    total = chunks.take()
    expected = offline(repository, VIEW)
    assert len(expected) == rows_in_parts(repository)
    assert len(parts(repository)) > 5
    assert read(repository, list(newest(expected))) == newest(expected)

    def work() -> None:
        (run or (lambda until: materialize(repository, VIEW, end=until)))(end)

    begin_again(repository, middle)
    status, calls = join(spawn(work, count=True))
    assert status == 0
    figures, chance, started = Figures(), random.Random(seed), time.monotonic()
    for point in chance.sample(range(1, calls), points):
        begin_again(repository, middle)
        for counter in (chunks, sent):
            if counter is not None:
                counter.take()
        status, _ = join(spawn(work, kill_at=point))
        figures.points += 1
        figures.killed += status == -signal.SIGKILL
        before = (sent or chunks).take()
        whole = rows_in_parts(repository)
        capsys.readouterr()
        materialize(repository, VIEW, end=end)
        redone = before + chunks.take() - total
        figures.redone += redone
        figures.most_redone = max(figures.most_redone, redone)
        check(repository, expected, whole, capsys.readouterr().out, figures, point)
        assert 0 <= redone <= most_redone, point
        figures.seconds = round(time.monotonic() - started, 1)
        if name is not None:
            figures.write(name)
    assert figures.killed >= points * 0.8
    return figures


def check(repository: Path, expected: pd.DataFrame, whole: int, printed: str, figures: Figures, point: object) -> None:
    """Check all rows, offline and online, and the ledger, after the run that came after a kill.

    Parameters
    ----------
    whole
        Rows on disk before it; it may compute only the others.
    printed
        By that run.
    """
    computed = len(expected) - whole
    assert (f"computed {computed:,} rows" in printed) if computed else "nothing new" in printed, (point, printed)
    found = offline(repository, VIEW)
    keys = [schema.USER_ID, schema.EVENT_TIMESTAMP]
    figures.duplicated += int(found.duplicated(keys).sum())
    figures.lost += len(expected.merge(found[keys], on=keys, how="left", indicator=True).query("_merge != 'both'"))
    latest = newest(expected)
    figures.stale += sum(value != latest[key] for key, value in read(repository, list(latest)).items())
    assert (figures.duplicated, figures.lost, figures.stale) == (0, 0, 0), (point, figures)
    assert found.map(repr).values.tolist() == expected.map(repr).values.tolist(), point
    ledger = open_ledger(load_config(repository))
    assert (ledger.count(VIEW), len(ledger.parts(VIEW))) == (len(expected), len(parts(repository))), point
    ledger.close()
    assert not list((repository / "data" / "features").glob(".*.tmp")), point
