"""``recsys-llm bench scaling``: equal rows from each executor, their rates, and the cost model of large catalogues."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_llm import schema
from recsys_llm.bench.cost_model import CostModel
from recsys_llm.bench.report import report
from recsys_llm.errors import ExecutorError

WORKERS: Mapping[str, int] = {"local": 0, "ray_1": 1, "ray_2": 2}
"""Side to its Ray workers."""
CATALOGUES = (10_000_000, 1_000_000_000)
VECTOR_TOLERANCE = 1e-6


def parts_of(repository: Path, view: str) -> list[Path]:
    """Return the parts of a view."""
    return sorted((repository / "data" / "features" / view).glob("part-*.parquet"))


def steady_rate(repository: Path, view: str) -> float | None:
    """Return rows per second from the first part to the last: without the start of processes. None: too few parts."""
    times = sorted((file.stat().st_mtime, pq.read_metadata(file).num_rows) for file in parts_of(repository, view))
    if len(times) < 2 or times[-1][0] <= times[0][0]:
        return None
    return float(sum(rows for _, rows in times[1:]) / (times[-1][0] - times[0][0]))


def check_equal(expected: Path, found: Path, view: str) -> int:
    """Return the number of rows of two repositories that hold the same ones.

    Raises
    ------
    ExecutorError
        A row is missing, doubled or another one.
    """
    one, two = (_rows(repository, view) for repository in (expected, found))
    if one.num_rows != two.num_rows:
        raise ExecutorError(f"bench scaling: {one.num_rows} rows of {view} became {two.num_rows}; nothing is reported")
    keys = [schema.ITEM_ID, schema.EVENT_TIMESTAMP]
    same = one.select(keys).equals(two.select(keys))
    first, second = (np.stack(table.column(schema.EMBEDDING).to_numpy()) for table in (one, two))
    if not same or not np.allclose(first, second, atol=VECTOR_TOLERANCE, rtol=0):
        raise ExecutorError(f"bench scaling: {view} has other rows on Ray than without; nothing is reported")
    return int(one.num_rows)


def _rows(repository: Path, view: str) -> pa.Table:
    # A part's metadata differs between runs.
    table = pa.concat_tables([pq.read_table(file).replace_schema_metadata(None) for file in parts_of(repository, view)])
    return table.sort_by([(schema.ITEM_ID, "ascending"), (schema.EVENT_TIMESTAMP, "ascending")])


def scaling_report(
    measured: Mapping[str, Mapping[str, Any]], *, model: CostModel, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the report.

    Parameters
    ----------
    measured
        Side to ``seconds``, ``rows`` and ``steady_rows_per_s``.
    """
    results: list[dict[str, Any]] = [
        {"name": name, **figures, "rows_per_s": figures["rows"] / figures["seconds"]}
        for name, figures in measured.items()
    ]
    results += [{"name": f"cost_of_{items}", **asdict(model.of(items))} for items in CATALOGUES]
    return report("bench scaling", settings={**settings, **asdict(model)}, results=results, targets=[])


def show_scaling(content: Mapping[str, Any], echo: Callable[[str], object]) -> None:
    """Print both tables."""
    for result in content["results"]:
        if "items" not in result:
            steady = result["steady_rows_per_s"]
            shown = "" if steady is None else f", {steady:,.1f} rows/s between the first part and the last"
            echo(f"{result['name']:<8} {result['rows']:,} rows in {result['seconds']:.1f} s{shown}")
    settings = content["settings"]
    echo(
        f"on paper, at {settings['rows_per_s_per_gpu']:,.0f} rows/s per GPU and {settings['driver_rows_per_s']:,.0f} "
        f"rows/s of the driver, {settings['dimension']} floats:"
    )
    for result in content["results"]:
        if "items" in result:
            echo(
                f"{result['items']:>13,} items: {result['gpus']} GPUs for {result['hours']:.1f} h (limited by "
                f"{result['limited_by']}), {result['offline_gib']:,.0f} GiB of parts, {result['online_gib']:,.0f} GiB "
                f"in Redis, {result['network_gib']:,.0f} GiB sent"
            )
