"""``recsys-llm bench online``: one lookup against plain Feast, on a repository's own online store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds

from recsys_llm import schema
from recsys_llm.bench.report import report
from recsys_llm.bench.timing import interleaved
from recsys_llm.errors import DataError
from recsys_llm.retrieval import FeatureClient

FEATURES = "data/features"


def bench_online(repository: Path, *, candidates: int, runs: int) -> dict[str, Any]:
    """Time a lookup of one user and N candidates, and the same by two ``get_online_features`` calls, interleaved.

    Both sides end with the vectors of the candidates as one float32 array; they are compared before anything is timed.

    Raises
    ------
    DataError
        The repository holds no materialised users and items, or fewer items than candidates.
    """
    client = FeatureClient(repository)
    users = _keys(repository, schema.USER_STATS, schema.USER_ID)
    items = _keys(repository, schema.ITEM_TEXT_EMBEDDING, schema.ITEM_ID)
    if len(items) < candidates:
        raise DataError(f"{repository}: holds {len(items)} items, fewer than {candidates} candidates; ask for fewer")
    user, asked = users[0], items[:candidates]
    store, service = client.store, client.resolve(schema.RANKER)
    references = {
        entity: [f"{view.name}:{feature.name}" for view in service.of(entity) for feature in view.features]
        for entity in (schema.USER, schema.ITEM)
    }
    vector = schema.feature_column(schema.ITEM_TEXT_EMBEDDING, schema.EMBEDDING)

    def ours() -> Any:
        return client.lookup(user, asked, service=schema.RANKER).vector(vector)

    def feast() -> Any:
        store.get_online_features(references[schema.USER], [{schema.USER_ID: user}], full_feature_names=True).to_dict()
        rows = [{schema.ITEM_ID: item} for item in asked]
        found = store.get_online_features(references[schema.ITEM], rows, full_feature_names=True).to_dict()
        return np.asarray(found[vector], np.float32)

    np.testing.assert_array_equal(ours(), feast())
    seconds = interleaved({"lookup": ours, "feast": feast}, runs)
    times = {name: 1000 * np.array(values) for name, values in seconds.items()}
    medians = {name: float(np.median(values)) for name, values in times.items()}
    results = [
        {"name": f"{name}_ms", "median": medians[name], "p99": float(np.percentile(values, 99)), "runs": runs}
        for name, values in times.items()
    ]
    ratio = medians["feast"] / medians["lookup"]
    settings = {"candidates": candidates, "store": store.config.online_store.type, "runs": runs}
    return report("bench online", settings=settings, results=[*results, {"name": "ratio", "median": ratio}], targets=[])


def _keys(repository: Path, view: str, key: str) -> list[str]:
    parts = repository / FEATURES / view
    if not parts.is_dir():
        raise DataError(f"{parts}: not there; run `feast materialize` first")
    return sorted(set(ds.dataset(parts, format="parquet").to_table(columns=[key]).column(key).to_pylist()))
