"""``recsys-llm bench training``: a training set with two vectors, against plain Feast and a hand-written ASOF join."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from recsys_llm import schema
from recsys_llm.bench.memory import in_own_process, peak_mib
from recsys_llm.bench.report import report
from recsys_llm.bench.training_world import (
    COLUMNS,
    DIMENSION,
    SERVICE,
    VIEWS,
    open_repository,
    read_examples,
    write_world,
)
from recsys_llm.errors import RetrievalError
from recsys_llm.retrieval.columns import Kind, from_arrow

POSITION = "bench_position"
BATCH = 8192

Vectors = npt.NDArray[np.float32]


def bench_training(*, rows: int, runs: int) -> dict[str, Any]:
    """Time one training set of ``rows`` examples, each side in turns and in processes of their own.

    The vectors of all examples are compared first, in order. Peak memory counts the whole process, imports included,
    until the side has its result: a frame, an Arrow table, or a training set whose batches can be gathered.

    Raises
    ------
    RetrievalError
        Two sides gave different vectors.
    """
    seconds: dict[str, list[float]] = {side: [] for side in SIDES}
    peaks: dict[str, list[float]] = {side: [] for side in SIDES}
    gathered: list[float] = []
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_world(folder, rows)
        digests: dict[str, str | None] = {}
        for run in range(runs):
            for side in SIDES:
                found = in_own_process(run_side, folder, side, run == 0)[0]
                seconds[side].append(found["seconds"])
                peaks[side].append(found["peak"])
                gathered += found["gathered"]
                digests.setdefault(side, found["digest"])
            for side, digest in digests.items():
                if digest != digests[OURS]:
                    raise RetrievalError(f"bench training: {side} has other vectors than {OURS}; nothing is reported")
    return _report(rows, runs, seconds, peaks, gathered)


def run_side(folder: Path, side: str, with_digest: bool) -> dict[str, Any]:
    """Make a training set in one way, and return seconds, peak MiB, and a digest of its vectors."""
    examples = read_examples(folder)
    work = SIDES[side](folder)
    started = time.perf_counter()
    result = work(examples)
    seconds, peak = time.perf_counter() - started, peak_mib()
    return {
        "seconds": seconds,
        "peak": peak,
        "digest": _digest(result) if with_digest else None,
        "gathered": [_gather_rate(result)] if side == OURS else [],
    }


def _ours(folder: Path) -> Callable[[pd.DataFrame], Any]:
    from recsys_llm.retrieval import FeatureClient

    client = FeatureClient(store=open_repository(folder))
    return lambda examples: client.training_set(examples, service=SERVICE)


def _ours_through_feast(folder: Path) -> Callable[[pd.DataFrame], Any]:
    """Return our way as it is for other offline stores: Feast joins the row ids."""
    from recsys_llm.retrieval import history

    # This process makes one training set and ends.
    setattr(history, "reads", lambda view: False)  # noqa: B010
    return _ours(folder)


def _feast(folder: Path) -> Callable[[pd.DataFrame], Any]:
    def work(examples: pd.DataFrame) -> Any:
        return _feast_job(store, examples).to_df()

    store = open_repository(folder)
    return work


def _feast_arrow(folder: Path) -> Callable[[pd.DataFrame], Any]:
    def work(examples: pd.DataFrame) -> Any:
        return _feast_job(store, examples).to_arrow()

    store = open_repository(folder)
    return work


def _feast_job(store: Any, examples: pd.DataFrame) -> Any:
    import warnings

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    job = store.get_historical_features(
        entity_df=examples.assign(**{POSITION: np.arange(len(examples))}),
        features=store.get_feature_service(SERVICE),
        full_feature_names=True,
    )
    job.table.get_backend().raw_sql("SET enable_progress_bar = false")
    return job


def _asof(folder: Path) -> Callable[[pd.DataFrame], Any]:
    """Return the limit: DuckDB alone, on these very files, that keeps neither order nor statuses."""
    import duckdb

    names, joins = [f"e.{POSITION}"], []
    for view, (entity, _, _) in VIEWS.items():
        key, stamp = schema.JOIN_KEYS[entity], schema.EVENT_TIMESTAMP
        names.append(f"{entity}.* EXCLUDE ({key}, {stamp}, {schema.CREATED_TIMESTAMP}, {schema.ROW_ID})")
        joins.append(
            f"ASOF LEFT JOIN read_parquet('{folder / view}/*.parquet') {entity} "
            f"ON e.{key} = {entity}.{key} AND e.{stamp} >= {entity}.{stamp}"
        )
    query = f"SELECT {', '.join(names)} FROM examples e {' '.join(joins)}"

    def work(examples: pd.DataFrame) -> Any:
        with duckdb.connect(config={"memory_limit": "16GB"}) as connection:
            connection.execute("SET enable_progress_bar = false")
            connection.register("examples", examples.assign(**{POSITION: np.arange(len(examples))}))
            table = connection.execute(query).to_arrow_table()
        embeddings = [place for place, name in enumerate(table.column_names) if name.startswith(schema.EMBEDDING)]
        renamed = list(table.column_names)
        for place, column in zip(embeddings, COLUMNS, strict=True):
            renamed[place] = column
        return table.rename_columns(renamed)

    return work


OURS, THROUGH_FEAST = "ours", "ours_through_feast"
SIDES: dict[str, Callable[[Path], Callable[[pd.DataFrame], Any]]] = {
    OURS: _ours,
    THROUGH_FEAST: _ours_through_feast,
    "feast_to_df": _feast,
    "feast_to_arrow": _feast_arrow,
    "duckdb_asof": _asof,
}


def _digest(result: Any) -> str:
    """Return a hash of all vectors in the order of the examples; a missing one is NaN."""
    digest = hashlib.sha256()
    for column in COLUMNS:
        for vectors in _vectors(result, column):
            digest.update(np.ascontiguousarray(vectors).tobytes())
    return digest.hexdigest()


def _vectors(result: Any, column: str) -> Iterator[Vectors]:
    if isinstance(result, pd.DataFrame | pa.Table):
        places = np.asarray(result[POSITION])
        order = np.argsort(places, kind="stable")
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            if isinstance(result, pa.Table):
                rows = result.column(column).take(pa.array(some))
                yield from_arrow(rows, Kind.VECTOR, name=column, dimension=DIMENSION)
            else:
                yield _stacked(result[column].iloc[some])
        return
    for start in range(0, len(result), BATCH):
        yield result.take(np.arange(start, min(start + BATCH, len(result)))).vector(column)


def _stacked(cells: Any) -> Vectors:
    missing = np.full(DIMENSION, np.nan, np.float32)
    return np.stack([np.asarray(cell, np.float32) if isinstance(cell, np.ndarray) else missing for cell in cells])


def _gather_rate(training: Any) -> float:
    """Return the vectors that one thread gathers in a second, in random order, whole batches at a time."""
    import torch

    torch.set_num_threads(1)
    dataset = training.dataset(COLUMNS)
    order = np.random.default_rng(0).permutation(len(dataset))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    dataset.__getitems__(batches[0])
    started = time.perf_counter()
    for batch in batches:
        dataset.__getitems__(batch)
    return len(COLUMNS) * len(dataset) / (time.perf_counter() - started)


def _report(
    rows: int, runs: int, seconds: dict[str, list[float]], peaks: dict[str, list[float]], gathered: list[float]
) -> dict[str, Any]:
    medians = {side: float(np.median(values)) for side, values in seconds.items()}
    memory = {side: float(np.median(values)) for side, values in peaks.items()}
    results: list[dict[str, Any]] = []
    for side in SIDES:
        results.append({"name": f"{side}_s", "median": medians[side], "runs": runs, "rows_per_s": rows / medians[side]})
        results.append({"name": f"{side}_peak_mib", "median": memory[side], "runs": runs})
    rate = float(np.median(gathered))
    results.append({"name": "gathered_vectors_per_s", "median": rate, "runs": runs})
    ratios = np.array(seconds["feast_to_df"]) / np.array(seconds[OURS])
    ratio, share = medians["feast_to_df"] / medians[OURS], memory[OURS] / memory["feast_to_df"]
    joined, half = medians["feast_to_df"] / medians[THROUGH_FEAST], memory[THROUGH_FEAST] / memory["feast_to_df"]
    spread = {"lowest": float(ratios.min()), "highest": float(ratios.max())}
    targets: list[dict[str, Any]] = [
        {"name": "ratio_to_feast", "target": ">= 4", "value": ratio, "met": ratio >= 4, **spread},
        {"name": "share_of_feasts_memory", "target": "<= 0.4", "value": share, "met": share <= 0.4},
        {"name": "ratio_through_feasts_join", "target": ">= 2.5", "value": joined, "met": joined >= 2.5},
        {"name": "share_through_feasts_join", "target": "<= 0.5", "value": half, "met": half <= 0.5},
        {"name": "gathered_vectors_per_s", "target": ">= 1e6", "value": rate, "met": rate >= 1e6},
    ]
    settings = {"rows": rows, "vectors": len(COLUMNS), "dimension": DIMENSION, "offline_store": "duckdb", "runs": runs}
    return report("bench training", settings=settings, results=results, targets=targets)
