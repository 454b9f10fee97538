"""What lookups did, counted in files that several processes share: prometheus_client's multiprocess mode.

Only metrics of the library are seen there, no collector of one's own such as that of :mod:`recsys_llm.metrics.lookups`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from prometheus_client import Counter, Gauge, Histogram, values

from recsys_llm.errors import ConfigError
from recsys_llm.metrics.names import (
    BREAKER_OPEN,
    CACHE_HITS,
    CACHE_MISSES,
    LOOKUP_ROWS,
    LOOKUP_SECONDS,
    OUTCOMES,
    SECONDS,
    STATUSES,
)


class Shared:
    """Tallies of a process that shares its folder of metrics with others.

    Raises
    ------
    ConfigError
        The process was started without such a folder.
    """

    def __init__(self) -> None:
        if not values.ValueClass._multiprocess:
            raise ConfigError(
                "LookupMetrics(multiprocess=True): PROMETHEUS_MULTIPROC_DIR is not set, or was set after the import of "
                "prometheus_client; let it name an empty folder before the process starts"
            )

    def watch(self, client: Any) -> None:
        """Report a client for as long as it exists."""
        with _LOCK:
            _CLIENTS.setdefault(client, (0, 0))

    def of(self, project: str) -> SharedTally:
        """Return where the lookups of a project are counted."""
        return _tally(project)


class SharedTally:
    """The library's metrics, bound to a project once."""

    def __init__(self, project: str) -> None:
        seconds, rows, hits, misses, breaker = _metrics()
        self._project = project
        self._seconds = {outcome: seconds.labels(project, outcome) for outcome in OUTCOMES}
        self._all_rows = rows
        self._rows: dict[str, list[Any]] = {}
        """By view: a counter for each of :data:`STATUSES`."""
        self._cached = hits.labels(project), misses.labels(project)
        self._breaker, self._open = breaker.labels(project), False

    def add(self, outcome: str, seconds: float, *blocks: Mapping[str, Any]) -> None:
        """Count a lookup; each of ``blocks`` is view to uint8 (n,), numbers of :data:`STATUSES`."""
        self._seconds[outcome].observe(seconds)
        for statuses in blocks:
            for view, states in statuses.items():
                if view not in self._rows:
                    self._rows[view] = [self._all_rows.labels(self._project, view, status) for status in STATUSES]
                for counter, count in zip(self._rows[view], np.bincount(states).tolist(), strict=False):
                    if count:
                        counter.inc(count)
        self._add_clients()

    def _add_clients(self) -> None:
        """Add what item caches counted since the last lookup, and note a breaker that opened or closed."""
        is_open = False
        with _LOCK:
            for client, known in list(_CLIENTS.items()):
                if client.project != self._project:
                    continue
                is_open = is_open or client.breaker_state == "open"
                totals = client.cache_totals()
                if totals != known:
                    _CLIENTS[client] = totals
                    for counter, new, old in zip(self._cached, totals, known, strict=True):
                        counter.inc(new - old)
        if is_open != self._open:
            self._open = is_open
            self._breaker.set(is_open)


_LOCK = threading.Lock()
_CLIENTS: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()
"""Each with the hits and misses that are counted already."""


@cache
def _metrics() -> tuple[Histogram, Counter, Counter, Counter, Gauge]:
    """Return them, of no registry: they are read from the files."""
    return (
        Histogram(*LOOKUP_SECONDS, buckets=SECONDS, registry=None),
        Counter(*LOOKUP_ROWS, registry=None),
        Counter(*CACHE_HITS, registry=None),
        Counter(*CACHE_MISSES, registry=None),
        Gauge(*BREAKER_OPEN, registry=None, multiprocess_mode="livemax"),
    )


@cache
def _tally(project: str) -> SharedTally:
    return SharedTally(project)
