"""Feast's sqlite layout, written by one transaction: a table for each view, a record for each feature of a key.

Feast stores a time as whole seconds, of a UTC time that it takes for local time; so it must be written and read in
processes of one time zone, and rows within a second count as rows of the same time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
from feast import FeatureView, RepoConfig
from feast.infra.online_stores.helpers import compute_table_id
from feast.infra.online_stores.sqlite import SqliteOnlineStore

from recsys_llm.engine.rows import Rows, Written
from recsys_llm.errors import StoreError
from recsys_llm.timestamps import from_micros

WAIT_SECONDS = 60.0
"""For another writer's transaction."""
KEYS_PER_QUERY = 10_000
"""sqlite takes 32,766 parameters."""


class SqliteWriter:
    """Writes over a connection of its own for each batch, so that it waits for other writers."""

    def __init__(self, config: RepoConfig, view: FeatureView) -> None:
        self._path = SqliteOnlineStore._get_db_path(config)
        table = compute_table_id(config.project, view, config.registry.enable_online_feature_view_versioning)
        self._table = '"' + table.replace('"', '""') + '"'
        self._view = view

    def write(self, rows: Rows) -> Written:
        """Write rows, each unless the table holds a newer one, all or none.

        Raises
        ------
        StoreError
            sqlite failed: the table is missing, the disk is full, or another writer didn't end.
        """
        stamps = _seconds(rows.micros)
        try:
            with closing(sqlite3.connect(self._path, timeout=WAIT_SECONDS, isolation_level=None)) as connection:
                # IMMEDIATE: no other writer between what is read and what is written.
                connection.execute("BEGIN IMMEDIATE")
                stored = self._newest(connection, rows.keys)
                known = np.array([stored.get(key, None) is not None for key in rows.keys], dtype=np.bool_)
                held = np.array([stored.get(key) or 0 for key in rows.keys], dtype=np.int64)
                older, equal = known & (stamps < held), known & (stamps == held)
                connection.executemany(self._upsert, self._records(rows, stamps, np.flatnonzero(~older)))
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise StoreError(
                f"view {self._view.name}: online store {self._path}: {error}; run `feast apply` if the table is "
                "missing, then materialise again"
            ) from error
        return Written(len(rows) - int(older.sum()) - int(equal.sum()), int(equal.sum()), int(older.sum()))

    @property
    def _upsert(self) -> str:
        return (
            f"INSERT INTO {self._table} (entity_key, feature_name, value, value_text, event_ts, created_ts) "
            "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT(entity_key, feature_name) DO UPDATE SET value = excluded.value, "
            "value_text = excluded.value_text, event_ts = excluded.event_ts, created_ts = excluded.created_ts"
        )

    def _newest(self, connection: sqlite3.Connection, keys: Sequence[bytes]) -> dict[bytes, int]:
        found: dict[bytes, int] = {}
        for start in range(0, len(keys), KEYS_PER_QUERY):
            some = keys[start : start + KEYS_PER_QUERY]
            marks = ", ".join("?" * len(some))
            query = f"SELECT entity_key, MAX(event_ts) FROM {self._table} WHERE entity_key IN ({marks}) GROUP BY 1"
            found.update(connection.execute(query, some))
        text = next((stamp for stamp in found.values() if isinstance(stamp, str)), None)
        if text is not None:
            raise StoreError(
                f"view {self._view.name}: expected times in whole seconds in {self._path}, found {text!r}, which Feast "
                f"can't read either; delete those rows from {self._table}, then materialise again"
            )
        return found

    def _records(
        self, rows: Rows, stamps: npt.NDArray[np.int64], places: npt.NDArray[np.int64]
    ) -> Iterator[tuple[Any, ...]]:
        created = None if rows.created is None else _seconds(rows.created).tolist()
        times = stamps.tolist()
        columns = [(name, values, rows.texts(name)) for name, values in rows.values.items()]
        for place in places.tolist():
            made = None if created is None else created[place]
            for name, values, texts in columns:
                yield rows.keys[place], name, values[place], texts[place], times[place], made


def _seconds(micros: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return times as Feast's sqlite adapter stores them; see the module's first lines."""
    distinct, inverse = np.unique(micros, return_inverse=True)
    seconds = [int(_naive(value).timestamp()) for value in distinct.tolist()]
    return np.array(seconds, dtype=np.int64)[inverse]


def _naive(micros: int) -> datetime:
    return from_micros(micros).replace(tzinfo=None)
