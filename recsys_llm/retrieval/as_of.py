"""The point-in-time join on parquet parts of this machine: the answer of Feast's join, without its pairs.

Feast pairs each example with all earlier rows of its entity, and keeps the newest. Here stored rows are sorted once by
key and time, and each example is looked up by bisection. Only keys, times and the wanted scalars are read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from recsys_llm.retrieval import parts
from recsys_llm.retrieval.columns import Kind, Rows
from recsys_llm.retrieval.service import View
from recsys_llm.schema import feature_column

_BATCH_ROWS = 65_536
_NEVER = np.iinfo(np.int64).min


def reads(view: View) -> bool:
    """Whether a view's rows can be joined here: parquet on this machine, and no lists but those gathered by row id."""
    lists = any(feature.kind not in (Kind.SCALAR, Kind.STRING) for feature in view.features)
    if view.parts is None or (lists and not view.gathered):
        return False
    files = parts.files(view)
    if not files:
        return False
    schema = _dataset(view).schema
    types = dict(zip(schema.names, schema.types, strict=True))
    source = view.definition.batch_source
    stamps = [name for name in (source.timestamp_field, source.created_timestamp_column) if name]
    known = all(feature.name in types for feature in view.features)
    return known and types.get(view.join_key) == pa.string() and all(_is_exact(types.get(name)) for name in stamps)


def columns_as_of(
    view: View, names: Sequence[str], ids: npt.NDArray[np.object_], micros: npt.NDArray[np.int64]
) -> dict[str, Any]:
    """Return what each (id, time) sees of a view: its newest row at or before the time, unless it is past its ttl.

    Parameters
    ----------
    names
        Columns of the parts.
    ids : object (n,)
        Entity keys, str.
    micros : int64 (n,)
        Microseconds since the epoch.

    Returns
    -------
    dict
        Full feature name to a pyarrow array of n values, null where there is no such row.
    """
    codes, distinct = pd.factorize(ids)
    stored, keys, stamps = _candidates(view, names, pa.array(distinct, pa.string()), int(micros.max(initial=_NEVER)))
    rows = _newest(keys, stamps, codes.astype(np.int64), micros)
    if view.ttl and len(stamps):
        rows[(rows >= 0) & (stamps[rows] < micros - view.ttl)] = -1
    index = pa.array(rows, mask=rows < 0)
    return {feature_column(view.name, name): stored.column(name).combine_chunks().take(index) for name in names}


def _candidates(
    view: View, names: Sequence[str], wanted: Any, last: int
) -> tuple[Any, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the rows of the ``wanted`` keys up to the time ``last``, the key and time of each, ordered by both.

    Rows of one key and time are ordered by when they were created.
    """
    source = view.definition.batch_source
    dataset = _dataset(view)
    stamp, made = source.timestamp_field, source.created_timestamp_column
    asked = list(dict.fromkeys([*names, view.join_key, stamp, *([made] if made else [])]))
    tables, keys, stamps, created = [], [], [], []
    for batch in dataset.to_batches(columns=asked, batch_size=_BATCH_ROWS, batch_readahead=2, fragment_readahead=1):
        places = pc.index_in(batch.column(view.join_key), value_set=wanted)
        times = _micros(batch.column(stamp))
        kept = places.is_valid().to_numpy(zero_copy_only=False) & (times != _NEVER) & (times <= last)
        mask = pa.array(kept)
        tables.append(pa.Table.from_batches([batch.select(names).filter(mask)]))
        keys.append(places.filter(mask).to_numpy(zero_copy_only=False).astype(np.int64))
        stamps.append(times[kept])
        created.append(_micros(batch.column(made))[kept] if made else np.zeros(int(kept.sum()), dtype=np.int64))
    schema = pa.schema([dataset.schema.field(name) for name in names])
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    key, time = _joined(keys), _joined(stamps)
    order = np.lexsort((_joined(created), time, key))
    return table.take(pa.array(order)), key[order], time[order]


def _newest(
    keys: npt.NDArray[np.int64],
    stamps: npt.NDArray[np.int64],
    asked: npt.NDArray[np.int64],
    micros: npt.NDArray[np.int64],
) -> Rows:
    """Return the last row of each asked key at or before each time; -1: none. Rows are ordered by key and time.

    Examples
    --------
    >>> keys, stamps = np.array([0, 0, 2]), np.array([5, 7, 1])
    >>> _newest(keys, stamps, np.array([0, 0, 0, 1, 2]), np.array([4, 5, 9, 9, 9])).tolist()
    [-1, 0, 1, -1, 2]
    """
    if not len(keys):
        return np.full(len(asked), -1, dtype=np.int64)
    # One number for key and time: a time counts as the number of distinct stored times up to it.
    times = np.unique(stamps)
    span = len(times) + 1
    stored = keys * span + np.searchsorted(times, stamps, side="right")
    rows = np.searchsorted(stored, asked * span + np.searchsorted(times, micros, side="right"), side="right") - 1
    return np.where((rows >= 0) & (keys[rows] == asked), rows, -1).astype(np.int64)


def _dataset(view: View) -> Any:
    return ds.dataset([str(file) for file in parts.files(view)], format="parquet")


def _is_exact(kind: Any) -> bool:
    """Whether a column of a type, None for none, holds times in whole microseconds."""
    return kind is not None and bool(pa.types.is_timestamp(kind) and kind.unit != "ns")


def _micros(column: Any) -> npt.NDArray[np.int64]:
    stamps = column.cast(pa.timestamp("us", column.type.tz)).cast(pa.int64())
    micros: npt.NDArray[np.int64] = stamps.fill_null(_NEVER).to_numpy(zero_copy_only=False)
    return micros


def _joined(arrays: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    return np.concatenate(arrays) if arrays else np.empty(0, dtype=np.int64)
