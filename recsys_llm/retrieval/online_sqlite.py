"""Feast's sqlite store, read by its own tables: one query for each entity type, one row of it for each entity."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys_llm.errors import LayoutError, StoreError
from recsys_llm.retrieval.layout import SqliteLayout
from recsys_llm.retrieval.online import NO_ROW, Meanwhile, Request, StoredRows
from recsys_llm.retrieval.service import View

MAX_KEYS = 10_000
"""Entities per query; sqlite takes 32,766 parameters."""
MAX_FEATURES = 60
"""Features per query; sqlite joins 64 tables."""


class SqliteReader:
    """Reads without Feast's connection, so that threads don't share one.

    Parameters
    ----------
    path
        The database.
    layout
        Where a view is.
    """

    def __init__(self, path: Path, layout: Callable[[View], SqliteLayout]) -> None:
        self.path = path
        self.layout = layout
        self._local = threading.local()
        self._opened: list[sqlite3.Connection] = []

    def read(self, requests: Sequence[Request], meanwhile: Meanwhile = None) -> list[list[StoredRows]]:
        """Return for each request and view, what is stored of its entities."""
        return [self._read(request) if request.views else [] for request in requests]

    def close(self) -> None:
        """Close the connections of all threads."""
        while self._opened:
            self._opened.pop().close()
        self._local = threading.local()

    def _read(self, request: Request) -> list[StoredRows]:
        layouts = [self.layout(view) for view in request.views]
        keys = layouts[0].key.keys(request.ids)
        columns: dict[tuple[int, str], Sequence[bytes | None]] = {}
        stamps = [np.full(len(keys), NO_ROW, dtype=np.int64) for _ in request.views]
        features = [(number, item.name) for number, view in enumerate(request.views) for item in view.features]
        for start in range(0, len(features), MAX_FEATURES):
            some = features[start : start + MAX_FEATURES]
            found = self._columns(request, layouts, some, keys)
            columns |= zip(some, found, strict=False)
            for number, seconds in zip(_distinct(some), found[len(some) :], strict=True):
                micros = self._micros(seconds, request.views[number], request.ids)
                stamps[number] = np.where(stamps[number] == NO_ROW, micros, stamps[number])
        return [
            StoredRows(stamps[number], {feature.name: columns[number, feature.name] for feature in view.features})
            for number, view in enumerate(request.views)
        ]

    def _columns(
        self, request: Request, layouts: Sequence[SqliteLayout], features: Sequence[tuple[int, str]], keys: list[bytes]
    ) -> list[tuple[Any, ...]]:
        """Return the stored values of each feature, then the times of each view: n of each."""
        rows: list[Any] = []
        for start in range(0, len(keys), MAX_KEYS):
            some = keys[start : start + MAX_KEYS]
            query = _query([(number, layouts[number].table) for number, _ in features], len(some))
            parameters = [*some, *(name for _, name in features)]
            try:
                found = self._connection().execute(query, parameters).fetchall()
            except sqlite3.Error as error:
                expected = ", ".join(view.name for view in request.views)
                raise LayoutError(
                    f"online store {self.path}: {error}; expected the tables of {expected}: run `feast apply` and "
                    "`feast materialize`"
                ) from error
            rows += sorted(found, key=itemgetter(0))
        columns = list(zip(*rows, strict=True))[1:]
        return columns or [()] * (len(features) + len(_distinct(features)))

    def _connection(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
        if connection is None:
            # Read-only: a missing file is an error, not a new database.
            connection = sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True, check_same_thread=False)
            self._local.connection = connection
            self._opened.append(connection)
        return connection

    def _micros(self, stamps: Sequence[Any], view: View, ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """Undo what Feast does: it stores whole seconds of a UTC time taken for local time."""
        if not set(map(type, stamps)) <= {int, type(None)}:
            row = next(row for row, stamp in enumerate(stamps) if not isinstance(stamp, int | None))
            raise StoreError(
                f"view {view.name}, {view.join_key}={ids[row]!r}: expected a timestamp in whole seconds in "
                f"{self.path}, found {stamps[row]!r}; materialise the view again"
            )
        try:
            micros = {stamp: (stamp + time.localtime(stamp).tm_gmtoff) * 1_000_000 for stamp in set(stamps) - {None}}
        except (OverflowError, OSError, ValueError) as error:
            raise StoreError(
                f"view {view.name}: a timestamp in {self.path} is no time: {error}; materialise the view again"
            ) from error
        return np.array([micros.get(stamp, NO_ROW) for stamp in stamps], dtype=np.int64)


def _query(features: Sequence[tuple[int, str]], n: int) -> str:
    """Return the query of some features, each the number and the table of its view, of ``n`` entities.

    A row is an entity's number, its features' values, and the time of its row in each view.
    """
    keys = ", ".join(f"({number}, ?)" for number in range(n))
    values = ", ".join(f"f{place}.value" for place in range(len(features)))
    joins = " ".join(
        f"LEFT JOIN {_quoted(table)} AS f{place} ON f{place}.entity_key = keys.key AND f{place}.feature_name = ?"
        for place, (_, table) in enumerate(features)
    )
    times = []
    for view in _distinct(features):
        stamps = [f"f{place}.event_ts" for place, (number, _) in enumerate(features) if number == view]
        times.append(f"coalesce({', '.join(stamps)}, NULL)")
    return (
        f"WITH keys(number, key) AS (VALUES {keys}) SELECT keys.number, {values}, {', '.join(times)} FROM keys {joins}"
    )


def _distinct(features: Sequence[tuple[int, str]]) -> list[int]:
    """Return the numbers of the views, in order."""
    return list(dict.fromkeys(number for number, _ in features))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
