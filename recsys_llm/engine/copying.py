"""Views that recsys_llm doesn't compute: rows of the offline store, copied online by the bulk writer.

What Feast's local engine does with a plain view, without a Python object for each value: read the interval, keep the
newest row of each key, write. Keys and times are read first; they tell which rows to keep when all columns are read,
some at a time where the store can (DuckDB). What is more than that (transformations, aggregations, filters, renamed
columns, writing offline) is left to Feast.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from feast import FeatureView
from feast.feature_view import DUMMY_ENTITY_NAME
from feast.infra.common.materialization_job import MaterializationTask
from feast.infra.compute_engines.local.compute import LocalComputeEngine
from feast.infra.compute_engines.local.feature_builder import LocalFeatureBuilder
from feast.infra.compute_engines.utils import create_offline_store_retrieval_job
from feast.infra.registry.base_registry import BaseRegistry

from recsys_llm.engine.copied_vectors import CopiedVectors
from recsys_llm.engine.publish import OnlinePublisher
from recsys_llm.engine.rows import Written, micros_of

_ROWS = 2048
"""Read at a time: 3 MB of 384-d vectors, as many rows as are written at once. More would only be held longer."""
_MORE = ("aggregations", "feature_transformation", "filter", "enable_validation", "source_views")


def is_copied(task: MaterializationTask) -> bool:
    """Whether materialising a view is reading, keeping the newest row of each key, and writing; nothing more."""
    view = task.feature_view
    plain = type(view) is FeatureView and not any(getattr(view, name, None) for name in _MORE)
    return bool(
        plain
        and view.batch_source is not None
        and not view.batch_source.field_mapping
        and not view.stream_source
        and view.entities != [DUMMY_ENTITY_NAME]
        and view.online
        and not view.offline
        and task.only_latest
        and not task.disable_event_timestamp
    )


def copy_rows(engine: LocalComputeEngine, registry: BaseRegistry, task: MaterializationTask) -> Written:
    """Write the newest row of each key in the task's interval to the online store.

    Raises
    ------
    StoreError
        The online store failed.
    RowError
        A row has no key or no time, or a vector that is not finite or has another length.
    """
    view = task.feature_view
    columns = LocalFeatureBuilder(registry, task, backend=None).get_column_info(view)
    job = create_offline_store_retrieval_job(
        view.batch_source, columns, engine.get_execution_context(registry, task), task.start_time, task.end_time
    )
    keys = list(columns.join_keys)
    stamps = [name for name in (columns.ts_col, columns.created_ts_col) if name]
    publish, vectors = OnlinePublisher(engine.repo_config, engine.online_store, view), CopiedVectors(view, keys)
    with warnings.catch_warnings():
        # Feast turns these on at import; these are between ibis and DuckDB, and nobody here can act on them.
        warnings.filterwarnings("ignore", message=".*fetch_", category=DeprecationWarning)
        newest = Newest(keys, stamps, _read(job, [*dict.fromkeys([*keys, *stamps])]))
        for batch in _read(job):
            places = newest.places(batch)
            kept = batch if len(places) == batch.num_rows else batch.take(pa.array(places))  # all is no copy
            vectors.check(kept)
            publish(pa.Table.from_batches([kept]))
    return publish.written


def _read(job: Any, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Yield what an offline store holds, all columns or some."""
    from feast.infra.offline_stores.ibis import IbisRetrievalJob

    if isinstance(job, IbisRetrievalJob):
        asked = job.table if columns is None else job.table.select(*columns)
        asked.get_backend().raw_sql("SET enable_progress_bar = false")  # it draws on pipes and logs too
        yield from asked.to_pyarrow_batches(chunk_size=_ROWS)
    else:
        table = job.to_arrow()
        yield from (table if columns is None else table.select(columns)).to_batches(_ROWS)


class Newest:
    """The newest time of each key, and which rows have it.

    Parameters
    ----------
    keys
        Columns that make a key.
    stamps
        Columns of times; a later one decides where the ones before it are equal.
    batches
        All rows.
    """

    def __init__(self, keys: list[str], stamps: Sequence[str], batches: Iterator[pa.RecordBatch]) -> None:
        self._keys, self._stamps = keys, stamps
        frames = [self._frame(batch) for batch in batches]
        frame: Any = pd.concat(frames) if frames else pd.DataFrame(columns=[*keys, *range(len(stamps))])
        times = list(range(len(stamps)))
        newest = frame.sort_values(by=times, kind="stable").drop_duplicates(keys, keep="last")
        self._index = self._index_of(newest)
        self._times = newest[times].to_numpy(dtype=np.int64)

    def places(self, batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        """Return which rows are the newest of their keys, ascending; of several rows at the same times, the last."""
        frame = self._frame(batch)
        times = frame[list(range(len(self._stamps)))].to_numpy(dtype=np.int64)
        known = self._index.get_indexer(self._index_of(frame))
        found = frame[(known >= 0) & (times == self._times[known]).all(axis=1)]
        return np.asarray(found.drop_duplicates(self._keys, keep="last").index, dtype=np.int64)

    def _frame(self, batch: pa.RecordBatch) -> Any:
        """Return the keys, and under 0, 1... the times in microseconds; a null is earlier than all."""
        times = {place: micros_of(batch.column(name)) for place, name in enumerate(self._stamps)}
        return batch.select(self._keys).to_pandas().join(pd.DataFrame(times))

    def _index_of(self, frame: Any) -> Any:
        if len(self._keys) == 1:
            return pd.Index(frame[self._keys[0]])
        return pd.MultiIndex.from_frame(frame[self._keys])
