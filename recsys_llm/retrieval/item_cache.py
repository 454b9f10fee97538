"""A cache of item rows in the process that serves.

What it hands out was read at most :attr:`CacheSettings.max_staleness` ago. Rows older than :attr:`CacheSettings.ttl`
that are still asked for are read again in the background. On Redis a row is dropped as soon as the server says that its
hash was written (:mod:`recsys_llm.retrieval.redis_tracking`); other stores tell nothing: there the two times are all.

Rows are kept as they were read: whether a row is past its view's ttl is decided at each lookup.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from recsys_llm.errors import ConfigError, EmptiedStoreError, RecsysLLMError
from recsys_llm.retrieval.online import Decoded, OnlineReader, Request, StoredRows, decoded
from recsys_llm.retrieval.row_table import RowTable, merged
from recsys_llm.retrieval.stored import Rows

REFRESH_ROWS = 256
"""Rows read again at a time; lookups wait for no more than that."""
LONGEST_PAUSE, SHORTEST_PAUSE = 1.0, 0.05
"""Seconds between two looks at what has to be read again."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CacheSettings:
    """How much is kept, and for how long.

    Raises
    ------
    ConfigError
        A value is out of range.
    """

    max_bytes: int = 256 * 2**20
    """Of all rows of one service, with their ids; at least 1 MiB."""
    ttl: float = 60.0
    """Seconds after which a row that is asked for is read again in the background."""
    max_staleness: float = 300.0
    """Seconds after which a row is not handed out any more; at least ``ttl``."""
    coherent: bool = True
    """On Redis: have the server tell of writes (Redis 6 or later, no cluster). False: the two times are all."""

    def __post_init__(self) -> None:
        if self.max_bytes < 2**20:
            raise ConfigError(f"max_bytes: expected at least {2**20} (1 MiB), found {self.max_bytes!r}")
        if not self.ttl > 0:
            raise ConfigError(f"ttl: expected seconds above 0, found {self.ttl!r}")
        if not self.max_staleness >= self.ttl:
            raise ConfigError(f"max_staleness: expected at least ttl ({self.ttl}), found {self.max_staleness!r}")


@dataclass(frozen=True)
class CacheStats:
    """What a cache has done, and what it holds."""

    hits: int = 0
    """Rows handed out without asking the store."""
    misses: int = 0
    """Rows that were read from the store for a lookup."""
    invalidated: int = 0
    """Rows dropped because the store said that they were written."""
    evicted: int = 0
    """Rows that made room for others."""
    refreshed: int = 0
    """Rows read again in the background."""
    failures: int = 0
    """Times that reading in the background failed."""
    flushes: int = 0
    """Times that all rows were dropped: the connection that hears of writes was lost."""
    rows: int = 0
    bytes: int = 0

    @property
    def hit_rate(self) -> float:
        """Share of rows that came from the cache; NaN before the first."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else float("nan")


class Changes(NamedTuple):
    """What a store says was written since it was last asked."""

    ids: frozenset[str] = frozenset()
    lost: bool = False
    """Some may have been missed."""


class CacheSource(Protocol):
    """Where the rows of a cache come from."""

    def changes(self, request: Request) -> Changes:
        """Return which entities were written since the last call, among all that were ever read."""
        ...

    def pending(self) -> bool:
        """Return whether :meth:`changes` may have something to tell, or would have to wait; False is sure."""
        ...

    def read(self, request: Request) -> list[StoredRows]:
        """Read rows; from then on :meth:`changes` tells of them."""
        ...

    def close(self) -> None:
        """Close what was opened for it."""
        ...


class SilentSource:
    """A store that doesn't say what is written."""

    def __init__(self, reader: OnlineReader) -> None:
        self._reader = reader

    def changes(self, request: Request) -> Changes:
        """Return nothing."""
        return Changes()

    def pending(self) -> bool:
        """Return False."""
        return False

    def read(self, request: Request) -> list[StoredRows]:
        """Read rows."""
        return self._reader.read([request])[0]

    def close(self) -> None:
        """Do nothing: the reader is the client's."""


class ItemCache:
    """Rows of one service's items. Safe to use from several threads; make it in the process that uses it.

    Parameters
    ----------
    settings
        Sizes and times.
    source
        Where rows are read.
    fingerprints
        Of the models behind the views: rows of others are never mixed in.
    clock
        Seconds; for tests.
    """

    def __init__(
        self,
        settings: CacheSettings,
        source: CacheSource,
        fingerprints: Mapping[str, str | None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.fingerprints = dict(fingerprints)
        self._settings = settings
        self._source = source
        self._clock = clock
        self._lock = threading.RLock()
        self._table: RowTable | None = None
        self._request: Request | None = None
        self._counts = CacheStats()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._process = os.getpid()

    def read(self, request: Request) -> Decoded:
        """Return rows in the order of ``request.ids``, from the cache where it has them.

        Raises
        ------
        StoreError
            The store failed, or holds bytes that are no value of the feature.
        """
        with self._lock:
            self._prepare(request)
            slots = self._fresh(request)
            if (rows := self._all(slots)) is not None:
                return rows
            known = np.flatnonzero(slots >= 0)
            hits = None if self._table is None or not len(known) else self._table.gather(slots[known])
            self._count(hits=len(known), misses=len(slots) - len(known))
            unknown = np.flatnonzero(slots < 0)
            misses = self._read(replace(request, ids=tuple(request.ids[row] for row in unknown.tolist())))
            return misses if hits is None else merged(len(slots), hits, known, misses, unknown)

    def ready(self, request: Request) -> Decoded | None:
        """Return what :meth:`read` would, where that needs no waiting for the store or another thread; else None."""
        if not self._lock.acquire(blocking=False):
            return None
        try:
            if self._process != os.getpid() or self._source.pending():
                return None
            return self._all(self._fresh(request))
        finally:
            self._lock.release()

    def stats(self) -> CacheStats:
        """Return counts since the start, and what is held now."""
        with self._lock:
            table = self._table
            return replace(self._counts, rows=len(table) if table else 0, bytes=table.bytes if table else 0)

    def close(self) -> None:
        """Stop reading in the background, and forget all rows."""
        self._closed.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        with self._lock:
            self._table = None
            self._source.close()

    def refresh(self) -> None:
        """Do what the background does: hear of writes, drop rows that are too old, read others again."""
        with self._lock:
            if self._request is None:
                return
            self._hear(self._request)
            table = self._table
            if table is None:
                return
            used = table.used()
            age = self._clock() - table.read_at[used]
            table.drop(table.ids_at(used[age > self._settings.max_staleness]))
            kept = age <= self._settings.max_staleness
            table.oldest = float(table.read_at[used[kept]].min(initial=np.inf))
            due = used[(age > self._settings.ttl) & (age <= self._settings.max_staleness) & table.asked[used]]
            ids = table.ids_at(due)
        for start in range(0, len(ids), REFRESH_ROWS):
            with self._lock:
                if self._closed.is_set():
                    return
                some = ids[start : start + REFRESH_ROWS]
                self._read(replace(self._request, ids=some))
                self._count(refreshed=len(some))

    def _prepare(self, request: Request) -> None:
        if self._process != os.getpid():  # a fork: the parent has the connection and the thread
            self._process, self._table, self._thread = os.getpid(), None, None
        self._request = request
        self._hear(request)
        if self._thread is None and not self._closed.is_set():
            self._thread = threading.Thread(target=self._run, name="recsys_llm item cache", daemon=True)
            self._thread.start()

    def _fresh(self, request: Request) -> Rows:
        """Return the slot of each row that may be handed out; -1 of others."""
        if self._table is None:
            return np.full(len(request.ids), -1, dtype=np.int64)
        slots = self._table.find(request.ids)
        now, longest = self._clock(), self._settings.max_staleness
        if now - self._table.oldest > longest:
            slots[now - self._table.read_at[slots] > longest] = -1
        return slots

    def _all(self, slots: Rows) -> Decoded | None:
        """Return the rows at ``slots``; None where one is not there."""
        if self._table is None or not len(slots) or slots.min() < 0:
            return None
        self._count(hits=len(slots))
        return self._table.gather(slots)

    def _read(self, request: Request) -> Decoded:
        """Read rows from the store, and keep those that nobody has written meanwhile."""
        now = self._clock()
        try:
            rows = decoded(request, self._source.read(request))
        except EmptiedStoreError:
            self._table = None  # what is kept, and what is kept as missing, would hide it
            raise
        changes = self._hear(request)
        if changes.lost:
            return rows
        if any(isinstance(column, np.ndarray) and column.shape[1:] == (0,) for column in rows.columns.values()):
            return rows  # nothing tells how long these vectors are
        if self._table is None or not self._table.holds(rows):
            self._table = RowTable(rows, self._settings.max_bytes)
        places = [place for place, id_ in enumerate(request.ids) if id_ not in changes.ids]
        self._count(evicted=self._table.put(request.ids, rows, places, now))
        return rows

    def _hear(self, request: Request) -> Changes:
        """Drop what the store says was written."""
        changes = self._source.changes(request)
        if self._table is not None and changes.lost:
            self._count(flushes=1)
            self._table = None
        elif self._table is not None and changes.ids:
            self._count(invalidated=self._table.drop(changes.ids))
        return changes

    def _run(self) -> None:
        pause = min(max(self._settings.ttl / 4, SHORTEST_PAUSE), LONGEST_PAUSE)
        while not self._closed.wait(pause):
            try:
                self.refresh()
            except RecsysLLMError as error:
                # Rows only grow older; lookups meet the same failure when theirs are too old.
                self._count(failures=1)
                logger.warning("item cache: reading again failed: %s", error)

    def _count(self, **more: int) -> None:
        with self._lock:
            self._counts = replace(
                self._counts, **{name: getattr(self._counts, name) + number for name, number in more.items()}
            )
