"""``recsys-llm bench materialize``: rows into Redis, against Feast's own engine and against bare pipelined HSET."""

from __future__ import annotations

import contextlib
import importlib
import io
import secrets
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import redis

from recsys_llm.bench.materialize_world import (
    DIMENSION,
    END,
    START,
    VIEWS,
    open_repository,
    remove_rows,
    stored_rows,
    view_fields,
    write_parts,
)
from recsys_llm.bench.memory import in_own_process
from recsys_llm.bench.redis_server import redis_server
from recsys_llm.bench.report import report
from recsys_llm.errors import StoreError

ENGINES = {"ours": "recsys_llm.engine.FeatureComputeEngine", "feast": "local"}
RAW = "raw"
ROWS_PER_PIPELINE = 512


def bench_materialize(*, rows: int, runs: int, redis_url: str | None = None) -> dict[str, Any]:
    """Time ``feast materialize`` of two views, 384-d vectors and six numbers, with both engines in turns.

    Each run is a process of its own, into empty keys. All bytes that the two leave in Redis are compared first.

    Parameters
    ----------
    rows
        Of each view.
    redis_url
        A running Redis, whose other keys are left alone; None: a private one.

    Raises
    ------
    StoreError
        The two engines left different bytes.
    """
    tag = secrets.token_hex(4)
    projects = {side: f"{side}_{tag}" for side in (*ENGINES, RAW)}
    seconds: dict[str, list[float]] = {side: [] for side in projects}
    peaks: dict[str, list[float]] = {side: [] for side in ENGINES}
    with contextlib.ExitStack() as stack:
        url = redis_url or stack.enter_context(redis_server())
        folder = Path(stack.enter_context(TemporaryDirectory()))
        client = stack.enter_context(redis.Redis.from_url(url))
        write_parts(folder, rows)
        for side, engine in ENGINES.items():
            open_repository(folder, url, projects[side], engine)
            stack.callback(remove_rows, client, projects[side])
        stack.callback(remove_rows, client, projects[RAW])
        for run in range(runs):
            for side, engine in ENGINES.items():
                remove_rows(client, projects[side])
                spent, peak = in_own_process(materialize, folder, url, projects[side], engine)
                seconds[side].append(spent)
                peaks[side].append(peak)
            if run == 0:
                check_equal(client, projects["ours"], projects["feast"])
            remove_rows(client, projects[RAW])
            seconds[RAW].append(in_own_process(write_raw, url, projects["ours"], projects[RAW])[0])
    return _report(rows, runs, seconds, peaks)


def materialize(folder: Path, url: str, project: str, engine: str) -> float:
    """Materialise both views, and return the seconds that it took."""
    store = open_repository(folder, url, project, engine)
    # Both engines read through this DuckDB, whose progress bar draws on pipes too.
    importlib.import_module("ibis").get_backend().raw_sql("SET enable_progress_bar = false")
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        started = time.perf_counter()
        store.materialize(START, END, feature_views=list(VIEWS))
        return time.perf_counter() - started


def write_raw(url: str, source: str, target: str) -> float:
    """Write the bytes of one project once more under another, without comparing or making them; return the seconds."""
    with redis.Redis.from_url(url) as client:
        fields = [view_fields(view) for view in VIEWS]
        # As the engines write: one view after the other.
        rows = [
            (key + target.encode(), {field: values[field] for field in some if field in values})
            for some in fields
            for key, values in stored_rows(client, source)
        ]
        started = time.perf_counter()
        for start in range(0, len(rows), ROWS_PER_PIPELINE):
            with client.pipeline(transaction=False) as pipe:
                for key, values in rows[start : start + ROWS_PER_PIPELINE]:
                    pipe.hset(key, mapping=values)
                pipe.execute()
        return time.perf_counter() - started


def check_equal(client: redis.Redis, ours: str, feasts: str) -> None:
    """Refuse two projects that hold different bytes.

    Raises
    ------
    StoreError
        They differ, or hold nothing.
    """
    expected = dict(stored_rows(client, feasts))
    found = 0
    for key, values in stored_rows(client, ours):
        found += 1
        if expected.get(key) != values:
            raise StoreError(f"bench materialize: key {key!r} holds other bytes than Feast writes; nothing is reported")
    if not found or found != len(expected):
        raise StoreError(f"bench materialize: {found} keys are written where Feast writes {len(expected)}")


def _report(rows: int, runs: int, seconds: dict[str, list[float]], peaks: dict[str, list[float]]) -> dict[str, Any]:
    medians = {side: float(np.median(values)) for side, values in seconds.items()}
    view_rows = rows * len(VIEWS)
    results: list[dict[str, Any]] = [
        {"name": f"{side}_s", "median": medians[side], "runs": runs, "rows_per_s": view_rows / medians[side]}
        for side in seconds
    ]
    results += [{"name": f"{side}_peak_mib", "median": float(np.median(peaks[side])), "runs": runs} for side in peaks]
    results.append({"name": "share_of_raw", "median": medians[RAW] / medians["ours"], "runs": runs})
    ratios = np.array(seconds["feast"]) / np.array(seconds["ours"])
    ratio, peak = medians["feast"] / medians["ours"], float(max(peaks["ours"]))
    targets = [
        {
            "name": "ratio_to_feast",
            "target": ">= 4",
            "value": ratio,
            "met": ratio >= 4,
            "lowest": float(ratios.min()),
            "highest": float(ratios.max()),
        },
        {"name": "peak_mib", "target": "<= 600", "value": peak, "met": peak <= 600},
    ]
    settings = {"rows": rows, "views": len(VIEWS), "dimension": DIMENSION, "store": "redis", "runs": runs}
    return report("bench materialize", settings=settings, results=results, targets=targets)
