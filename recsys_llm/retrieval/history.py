"""Features of one entity as of given times, by a point-in-time join.

Numbers, strings and row ids are joined; vectors and lists are read from the parts afterwards, each stored row once.
Parquet parts of this machine are joined here (:mod:`recsys_llm.retrieval.as_of`); all else by Feast, which also joins
lists where rows have no ids.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from recsys_llm.errors import RetrievalError
from recsys_llm.part_names import check_parts
from recsys_llm.retrieval import parts
from recsys_llm.retrieval.as_of import columns_as_of, reads
from recsys_llm.retrieval.blocks import EntityBlock, Status
from recsys_llm.retrieval.columns import ARROW_TYPES, Column, Columns, Kind, Rows, Stored, combined, empty, from_arrow
from recsys_llm.retrieval.service import Feature, View
from recsys_llm.schema import EVENT_TIMESTAMP, JOIN_KEYS, ROW_ID, feature_column

if TYPE_CHECKING:
    import feast

POSITION = "recsys_llm_position"
"""Column that is carried through the join to restore the order of rows: Feast does not keep it."""
JOIN_ROWS = 50_000
"""Rows joined at a time. Feast pairs each with all earlier rows of its entity before it picks the newest, in memory."""


def distinct_pairs(ids: npt.NDArray[np.object_], micros: npt.NDArray[np.int64]) -> tuple[Rows, Rows]:
    """Return where each distinct (id, time) first occurs, and which of them each row is.

    Examples
    --------
    >>> first, rows = distinct_pairs(np.array(["a", "b", "a"], dtype=object), np.array([1, 1, 1]))
    >>> first.tolist(), rows.tolist()
    ([0, 1], [0, 1, 0])
    """
    frame = pd.DataFrame({"id": ids, "at": micros})
    rows = frame.groupby(["id", "at"], sort=False).ngroup().to_numpy(dtype=np.int64)
    first: Rows = np.flatnonzero(~frame.duplicated().to_numpy()).astype(np.int64)
    return first, np.asarray(rows, dtype=np.int64)


@parts.of_present_parts
def history(
    store: feast.FeatureStore,
    views: Sequence[View],
    entity: str,
    ids: npt.NDArray[np.object_],
    micros: npt.NDArray[np.int64],
    *,
    join_rows: int = JOIN_ROWS,
) -> EntityBlock:
    """Return the newest features at or before each time.

    Parameters
    ----------
    store
        Where Feast's registry and offline store are.
    views
        Of this entity.
    entity
        ``user`` or ``item``.
    ids : object (n,)
        Entity keys, str.
    micros : int64 (n,)
        Microseconds since the epoch. (id, time) pairs must be distinct.
    join_rows
        Rows joined at a time.

    Returns
    -------
    EntityBlock, n rows
        In the order of ``ids``. Vectors and lists that many rows share are kept once.

    Raises
    ------
    RetrievalError
        A view was never materialised, the offline store returned rows that were not asked for, or row ids and parts
        contradict each other.
    PartError
        A stored part was altered.
    """
    if len(ids):
        _check_materialised(views)
    joined = _join(store, views, entity, ids, micros, join_rows) if len(ids) else None
    plain: dict[str, Column] = {}
    shared: dict[str, Stored] = {}
    status: dict[str, npt.NDArray[np.uint8]] = {}
    for view in views:
        known = np.zeros(len(ids), dtype=np.bool_)
        if view.gathered:
            rows, stored = _gathered(view, joined, len(ids))
            shared |= {name: Stored(values, rows) for name, values in stored.items()}
            known |= rows < (len(next(iter(stored.values()))) - 1)
        for feature in view.features:
            if feature.column in shared:
                continue
            array = None if joined is None else joined[feature.column]
            plain[feature.column] = _column(array, feature, len(ids))
            if array is not None:
                known |= array.is_valid().to_numpy(zero_copy_only=False)
        status[view.name] = np.where(known, Status.PRESENT, Status.MISSING).astype(np.uint8)
    order = tuple(feature.column for view in views for feature in view.features)
    return EntityBlock(entity, tuple(ids), Columns(plain, shared, order), status)


def _check_materialised(views: Sequence[View]) -> None:
    for view in views:
        files = parts.files(view)
        if view.parts is not None and not files:
            raise RetrievalError(
                f"view {view.name}: there are no parts at {view.parts}; run `feast materialize START END -v "
                f"{view.name}` first"
            )
        check_parts(files, view.name)  # before any is read


def _join(
    store: feast.FeatureStore,
    views: Sequence[View],
    entity: str,
    ids: npt.NDArray[np.object_],
    micros: npt.NDArray[np.int64],
    join_rows: int,
) -> dict[str, Any]:
    """Return columns of all views (pyarrow arrays, null where nothing was joined) in the order of ``ids``."""
    direct = [view for view in views if reads(view)]
    others = [view for view in views if view not in direct]
    found = _join_by_feast(store, others, entity, ids, micros, join_rows) if others else {}
    for view in direct:
        found |= columns_as_of(view, _joined(view), ids, micros)
    return found


def _join_by_feast(
    store: feast.FeatureStore,
    views: Sequence[View],
    entity: str,
    ids: npt.NDArray[np.object_],
    micros: npt.NDArray[np.int64],
    join_rows: int,
) -> dict[str, Any]:
    """Ask Feast for what :func:`_join` returns."""
    frame = pd.DataFrame(
        {
            JOIN_KEYS[entity]: ids,
            EVENT_TIMESTAMP: pd.to_datetime(micros, unit="us", utc=True).as_unit("us"),
            POSITION: np.arange(len(ids), dtype=np.int64),
        }
    )
    features = [f"{view.name}:{name}" for view in views for name in _joined(view)]
    chunks = [_ask(store, features, frame[start : start + join_rows]) for start in range(0, len(frame), join_rows)]
    table = pa.concat_tables(chunks, promote_options="permissive")
    positions = combined(table.column(POSITION)).to_numpy(zero_copy_only=False).astype(np.int64)
    if len(np.unique(positions)) != len(positions):
        raise RetrievalError(
            f"offline store {store.config.offline_store.type}: expected one row per {JOIN_KEYS[entity]} and time, "
            f"found {len(positions)} rows for {len(np.unique(positions))}; use offline_store: {{type: duckdb}}"
        )
    # A store may drop rows for which it found nothing (Feast's `file` store does): those are nulls here.
    order = np.full(len(ids), -1, dtype=np.int64)
    order[positions] = np.arange(len(positions))
    index = pa.array(order, mask=order < 0)
    names = [feature_column(view.name, name) for view in views for name in _joined(view)]
    return {name: combined(table.column(name)).take(index) for name in names}


def _ask(store: feast.FeatureStore, features: list[str], frame: pd.DataFrame) -> Any:
    with warnings.catch_warnings():
        # Feast turns these on at import; this one is between ibis and DuckDB, and nobody here can act on it.
        warnings.filterwarnings("ignore", message=".*fetch_arrow_table", category=DeprecationWarning)
        job = store.get_historical_features(entity_df=frame.copy(), features=features, full_feature_names=True)
        return job.to_arrow()


def _joined(view: View) -> list[str]:
    """Return the features of a view that pass through Feast's join."""
    if not view.gathered:
        return [feature.name for feature in view.features]
    return [ROW_ID, *(item.name for item in view.features if item.kind in (Kind.SCALAR, Kind.STRING))]


def _gathered(view: View, joined: dict[str, Any] | None, n: int) -> tuple[Rows, dict[str, Column]]:
    """Return which stored row each of n rows has (the last one: none), and the stored rows."""
    if joined is None:
        return np.zeros(n, dtype=np.int64), parts.gather(view, np.empty(0, dtype=np.int64))
    joined_ids = joined[feature_column(view.name, ROW_ID)]
    known = joined_ids.is_valid().to_numpy(zero_copy_only=False)
    inverse, distinct = pd.factorize(joined_ids.drop_null().to_numpy(zero_copy_only=False), sort=True)
    rows = np.full(n, len(distinct), dtype=np.int64)
    rows[known] = inverse
    return rows, parts.gather(view, distinct.astype(np.int64))


def _column(array: Any, feature: Feature, n: int) -> Column:
    if array is None or pa.types.is_null(array.type):
        return empty(feature.kind, n, feature.dimension or 0)
    if feature.kind in ARROW_TYPES or feature.kind is Kind.SCALAR:
        return from_arrow(array, feature.kind, name=feature.column)
    storage = feature.storage
    return from_arrow(array, feature.kind, name=feature.column, dimension=feature.dimension, storage=storage)
