"""Interactions and items as integer codes and microseconds, in one order that does not depend on the input's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from recsys_llm.errors import SchemaError, did_you_mean
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM_ID, USER_ID
from recsys_llm.timestamps import TIMESTAMP

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Strings = npt.NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Events:
    """Distinct (user, item, time) triples, ordered by time, then user, then item.

    Attributes
    ----------
    user_ids, item_ids : object (U,), (I,)
        Distinct ids, sorted as strings.
    users, items : int64 (n,)
        Positions in ``user_ids`` and ``item_ids``.
    micros : int64 (n,)
        Microseconds since the epoch.
    """

    user_ids: Strings
    item_ids: Strings
    users: Ints
    items: Ints
    micros: Ints

    def __len__(self) -> int:
        """Return the number of events."""
        return len(self.micros)

    def baskets(self) -> Ints:
        """Return int64 (n,): the number of each event's (user, time) group; groups are numbered from 0."""
        return np.cumsum(_changes(self.micros, self.users)) - 1


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Items in the order in which they became known.

    Attributes
    ----------
    item_ids : object (V,)
        Ordered by ``first``, then by id.
    first : int64 (V,)
        When each item was first known, microseconds since the epoch; ascending.
    """

    item_ids: Strings
    first: Ints

    def known_before(self, micros: Ints) -> Ints:
        """Return how many items, a prefix of ``item_ids``, were known strictly before each time."""
        return np.searchsorted(self.first, micros, side="left").astype(np.int64)

    def codes(self, item_ids: Strings) -> Ints:
        """Return the position of each id in ``item_ids``; -1 for an id that is not in the catalogue."""
        return positions(self.item_ids, item_ids)


def positions(known: Strings, wanted: Strings) -> Ints:
    """Return where each wanted id is among the known ones, which are distinct; -1 where it is not.

    Examples
    --------
    >>> positions(np.array(["b", "a"], object), np.array(["a", "x", "b"], object)).tolist()
    [1, -1, 0]
    """
    return np.asarray(pd.Index(known).get_indexer(pd.Index(wanted)), dtype=np.int64)


def read_events(interactions: pa.Table | pd.DataFrame) -> Events:
    """Return the events of a canonical interactions table; exact duplicates become one.

    Raises
    ------
    SchemaError
        ``user_id``, ``item_id`` or ``event_timestamp`` is missing, has another type or holds nulls.
    """
    table = as_table(interactions, name="interactions")
    user_ids, users = _codes(_column(table, USER_ID, "interactions"))
    item_ids, items = _codes(_column(table, ITEM_ID, "interactions"))
    micros = _micros(_column(table, EVENT_TIMESTAMP, "interactions"), "interactions")
    order = np.lexsort((items, users, micros))
    order = order[_changes(micros[order], users[order], items[order])]
    return Events(user_ids, item_ids, users[order], items[order], micros[order])


def read_catalogue(items: pa.Table | pd.DataFrame) -> Catalogue:
    """Return the catalogue of a canonical items table; of several versions of an item the first one counts.

    Raises
    ------
    SchemaError
        ``item_id`` or ``event_timestamp`` is missing, has another type or holds nulls.
    """
    table = as_table(items, name="items")
    ids, codes = _codes(_column(table, ITEM_ID, "items"))
    micros = _micros(_column(table, EVENT_TIMESTAMP, "items"), "items")
    first = np.full(len(ids), np.iinfo(np.int64).max)
    np.minimum.at(first, codes, micros)
    order = np.argsort(first, kind="stable")
    return Catalogue(ids[order], first[order])


def to_datetimes(micros: Ints) -> pd.DatetimeIndex:
    """Return tz-aware UTC times at microseconds."""
    return pd.DatetimeIndex(micros.astype("datetime64[us]")).tz_localize("UTC")


def entries(lists: Any) -> tuple[Ints, Ints, Any]:
    """Return of each entry of an Arrow list array: its row, its place in the list from 0, and its value (NumPy).

    Examples
    --------
    >>> rows, places, values = entries(pa.array([["a", "b"], None, [], ["c"]]))
    >>> rows.tolist(), places.tolist(), values.tolist()
    ([0, 0, 3], [0, 1, 0], ['a', 'b', 'c'])
    """
    lists = lists.combine_chunks() if isinstance(lists, pa.ChunkedArray) else lists
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    rows = np.repeat(np.arange(len(counts)), counts)
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows, places, lists.flatten().to_numpy(zero_copy_only=False)


def as_table(data: pa.Table | pd.DataFrame, *, name: str) -> pa.Table:
    """Return ``data`` as an Arrow table.

    Raises
    ------
    SchemaError
        It is neither an Arrow table nor a DataFrame.
    """
    if isinstance(data, pd.DataFrame):
        return pa.Table.from_pandas(data, preserve_index=False)
    if not isinstance(data, pa.Table):
        raise SchemaError(f"{name}: expected a pyarrow.Table or a pandas.DataFrame, found {type(data).__name__}")
    return data


def _changes(*columns: Ints) -> npt.NDArray[np.bool_]:
    """Return where a row differs from the row before it in any column; the first row does."""
    new = np.zeros(len(columns[0]), bool)
    new[:1] = True
    for column in columns:
        new[1:] |= column[1:] != column[:-1]
    return new


def _column(table: pa.Table, column: str, name: str) -> Any:
    if column not in table.column_names:
        raise SchemaError(f"{name}: column {column!r} is missing; {did_you_mean(column, table.column_names)}")
    values = table[column].combine_chunks()
    if values.null_count:
        row = int(np.flatnonzero(np.asarray(values.is_null()))[0])
        raise SchemaError(f"{name}: column {column!r}, row {row}: expected a value, found null; drop such rows first")
    return values


def _codes(values: Any) -> tuple[Strings, Ints]:
    if not len(values):
        return np.empty(0, object), np.empty(0, np.int64)
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        raise SchemaError(f"ids: expected strings, found {values.type}; cast them, as recsys_llm.sources does")
    distinct = pc.unique(values)
    distinct = distinct.take(pc.array_sort_indices(distinct))
    codes = pc.index_in(values, value_set=distinct)
    return distinct.to_numpy(zero_copy_only=False).astype(object), codes.to_numpy(zero_copy_only=False).astype(np.int64)


def _micros(values: Any, name: str) -> Ints:
    if not pa.types.is_timestamp(values.type) or values.type.tz is None:
        raise SchemaError(f"{name}: {EVENT_TIMESTAMP}: expected timestamp[us, UTC], found {values.type}")
    return np.asarray(values.cast(TIMESTAMP).cast(pa.int64()).to_numpy(zero_copy_only=False), dtype=np.int64)
