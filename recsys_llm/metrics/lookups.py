"""What lookups did, for the registry of their process."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

from recsys_llm.metrics.names import (
    BREAKER_OPEN,
    CACHE_HITS,
    CACHE_MISSES,
    LOOKUP_ROWS,
    LOOKUP_SECONDS,
    OUTCOMES,
    SECONDS,
    STATUSES,
    STORE_ERRORS,
)
from recsys_llm.metrics.shared import Shared

_PRESENT = bytes([STATUSES.index("present")])


class _Tally(Protocol):
    """Counts the lookups of one project."""

    def add(self, outcome: str, seconds: float, *blocks: Mapping[str, Any]) -> None:
        """Count a lookup; each of ``blocks`` is view to uint8 (n,), numbers of :data:`STATUSES`."""
        ...


class LookupMetrics:
    """Counts what the lookups of one project do; safe to use from several threads.

    Its project is that of the client which it is handed to; clients of several projects need one each.

    Parameters
    ----------
    multiprocess
        Count in files that processes share: prometheus_client's multiprocess mode, for several workers behind one
        port. The environment variable PROMETHEUS_MULTIPROC_DIR must name a folder before the process starts, and
        /metrics must be answered from ``prometheus_client.multiprocess.MultiProcessCollector``.

    Raises
    ------
    ConfigError
        ``multiprocess`` without the variable.

    Examples
    --------
    ::

        client = LookupClient("serving.json", observer=LookupMetrics())
    """

    def __init__(self, *, multiprocess: bool = False) -> None:
        self._all: _Serving | Shared = Shared() if multiprocess else _SERVING
        self._clients: WeakSet[Any] = WeakSet()
        self._tally: _Tally | None = None
        self._known: str | None = None
        """The project, kept when its client goes."""

    def watch(self, client: Any) -> None:
        """Report the item cache and the breaker of a client: ``project``, ``cache_totals()`` and ``breaker_state``."""
        self._all.watch(client)
        self._clients.add(client)

    def answered(self, seconds: float, batches: Sequence[Any]) -> None:
        """Note lookups that were answered."""
        if not batches:
            return
        first = batches[0]  # batches of one call share their blocks
        outcome = "ok" if first.store_error is None else "defaults"
        (self._tally or self._bound()).add(outcome, seconds, first.user.status, first.item.status)

    def failed(self, seconds: float) -> None:
        """Note a lookup that raised."""
        (self._tally or self._bound()).add("error", seconds)

    def store_failed(self, error: BaseException) -> None:
        """Note a failure of the online store, by the type that its driver gave it."""
        STORE_ERRORS.labels(self._project() or "", type(error.__cause__ or error).__name__).inc()

    def _bound(self) -> _Tally:
        """Return where to count; kept as soon as the project is known, which a client that opened nothing has not."""
        project = self._project()
        tally = self._all.of(project or "")
        if project is not None:
            self._tally = tally
        return tally

    def _project(self) -> str | None:
        if self._known is None:
            # Any of them: one that has opened nothing yet knows none, and may never do.
            self._known = next((found for one in list(self._clients) if (found := one.project) is not None), None)
        return self._known


class _ProcessTally:
    """Plain numbers under a lock: a lookup costs some 2 us; metrics of the library cost several times that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets = {outcome: [0] * (len(SECONDS) + 1) for outcome in OUTCOMES}
        self._seconds = dict.fromkeys(OUTCOMES, 0.0)
        self._rows: dict[str, list[int]] = {}
        """By view: a count for each of :data:`STATUSES`."""

    def add(self, outcome: str, seconds: float, *blocks: Mapping[str, Any]) -> None:
        with self._lock:
            self._buckets[outcome][bisect_left(SECONDS, seconds)] += 1
            self._seconds[outcome] += seconds
            for statuses in blocks:
                for view, states in statuses.items():
                    self._add_rows(view, states)

    def _add_rows(self, view: str, states: Any) -> None:
        counts = self._rows.setdefault(view, [0] * len(STATUSES))
        found: bytes = states.tobytes()
        if found == _PRESENT * len(found):  # nearly always, and seen at once
            counts[_PRESENT[0]] += len(found)
            return
        for number, count in enumerate(np.bincount(states, minlength=len(STATUSES)).tolist()):
            counts[number] += count

    def into(self, project: str, lookups: HistogramMetricFamily, rows: CounterMetricFamily) -> None:
        """Add what was counted to what is exposed."""
        bounds = [*(str(bound) for bound in SECONDS), "+Inf"]
        with self._lock:
            for outcome, counts in self._buckets.items():
                buckets = list(zip(bounds, accumulate(counts), strict=True))
                lookups.add_metric([project, outcome], buckets=buckets, sum_value=self._seconds[outcome])
            for view, counts in self._rows.items():
                for status, count in zip(STATUSES, counts, strict=True):
                    rows.add_metric([project, view, status], count)


class _Serving:
    """What lookups of all clients did. Kept here, not with a client, which may go before anybody scrapes."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tallies: dict[str, _ProcessTally] = {}
        """By project."""
        self._clients: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()
        """Each with the hits and misses that are in the sums already: a counter must not fall when a client goes."""
        self._cached: dict[str, tuple[int, int]] = {}
        """Hits and misses, by project."""

    def watch(self, client: Any) -> None:
        """Report a client for as long as it exists."""
        with self._lock:
            self._clients.setdefault(client, (0, 0))

    def of(self, project: str) -> _ProcessTally:
        """Return where the lookups of a project are counted."""
        with self._lock:
            return self._tallies.setdefault(project, _ProcessTally())

    def describe(self) -> Iterable[Any]:
        """Nothing: the names are those of :meth:`collect`."""
        return ()

    def collect(self) -> Iterator[Any]:
        """Yield what was counted, and the item caches and breakers of the clients that exist."""
        hits = CounterMetricFamily(*CACHE_HITS[:2], labels=CACHE_HITS[2])
        misses = CounterMetricFamily(*CACHE_MISSES[:2], labels=CACHE_MISSES[2])
        is_open = GaugeMetricFamily(*BREAKER_OPEN[:2], labels=BREAKER_OPEN[2])
        lookups = HistogramMetricFamily(*LOOKUP_SECONDS[:2], labels=LOOKUP_SECONDS[2])
        rows = CounterMetricFamily(*LOOKUP_ROWS[:2], labels=LOOKUP_ROWS[2])
        with self._lock:
            breakers = self._ask_clients()
            cached, tallies = dict(self._cached), dict(self._tallies)
        for project, counts in cached.items():
            for family, count in zip((hits, misses), counts, strict=True):
                family.add_metric([project], count)
        for project, any_open in breakers.items():
            is_open.add_metric([project], int(any_open))
        for project, tally in tallies.items():
            tally.into(project, lookups, rows)
        yield from (hits, misses, is_open, lookups, rows)
        yield from STORE_ERRORS.collect()

    def _ask_clients(self) -> dict[str, bool]:
        """Add what item caches counted since the last time; return whether a breaker is open, by project."""
        breakers: dict[str, bool] = {}
        for client, (known_hits, known_misses) in list(self._clients.items()):
            project = client.project
            if project is None:  # it has opened nothing yet
                continue
            breakers[project] = breakers.get(project, False) or client.breaker_state == "open"
            hits, misses = self._cached.get(project, (0, 0))
            some_hits, some_misses = self._clients[client] = client.cache_totals()
            self._cached[project] = (hits + some_hits - known_hits, misses + some_misses - known_misses)
        return breakers


_SERVING = _Serving()
REGISTRY.register(_SERVING)
