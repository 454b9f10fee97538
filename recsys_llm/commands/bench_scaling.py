"""The feature repositories of ``recsys-llm bench scaling``: one for each executor, over the same simulated items."""

from __future__ import annotations

import contextlib
import io
import os
import time
from pathlib import Path
from typing import Any

import yaml

from recsys_llm.bench.cost_model import CostModel
from recsys_llm.bench.memory import in_own_process
from recsys_llm.bench.scaling import WORKERS, check_equal, scaling_report, steady_rate
from recsys_llm.commands.feast_cli import run_feast
from recsys_llm.commands.repository import STORE_FILE, init_repository
from recsys_llm.config import FILE_NAME
from recsys_llm.retrieval import open_store
from recsys_llm.schema import ITEM_TEXT_EMBEDDING
from recsys_llm.sources.simulated import write_simulated
from recsys_llm.timestamps import BEGINNING, now


def run_scaling(folder: Path, *, items: int, chunk_rows: int, model: CostModel) -> dict[str, Any]:
    """Materialise item texts locally and with one and two Ray workers, each in a process and repository of its own.

    Parameters
    ----------
    items
        Of the simulated catalogue.
    chunk_rows
        What a worker computes at a time.
    model
        What is said of large catalogues.

    Raises
    ------
    ExecutorError
        Ray gave other rows.
    """
    data = write_simulated(folder / "data", users=60, items=items, days=120, seed=7)
    end, measured, repositories = now(), {}, {}
    for name, workers in WORKERS.items():
        repository = init_repository(folder / name, data=data)
        engine = {"executor": "ray", "min_workers": workers, "max_workers": workers} if workers else {}
        _set(repository / STORE_FILE, "batch_engine", engine)
        file = repository / FILE_NAME
        file.write_text(f"{file.read_text(encoding='utf-8')}chunk_rows: {chunk_rows}\n", encoding="utf-8")
        run_feast(repository, "apply")
        seconds, _ = in_own_process(materialize, repository, end)
        repositories[name] = repository
        measured[name] = {
            "seconds": seconds,
            "rows": check_equal(repositories["local"], repository, ITEM_TEXT_EMBEDDING),
            "steady_rows_per_s": steady_rate(repository, ITEM_TEXT_EMBEDDING),
        }
    settings = {"items": items, "chunk_rows": chunk_rows, "view": ITEM_TEXT_EMBEDDING}
    load = list(os.getloadavg())
    return scaling_report(measured, model=model, settings={**settings, "load_average": load})


def materialize(repository: Path, end: Any) -> float:
    """Materialise the view, and return the seconds, those of starting Ray and its workers included."""
    store = open_store(repository)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        started = time.perf_counter()
        store.materialize(BEGINNING, end, feature_views=[ITEM_TEXT_EMBEDDING])
        return time.perf_counter() - started


def _set(file: Path, section: str, values: dict[str, Any]) -> None:
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content[section] |= values
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
