"""Every metric, for Prometheus.

A process that serves exposes the default registry (``prometheus_client.start_http_server(9000)``), which holds them.
A process that ends, such as ``feast materialize``, can't be scraped: it leaves a file for each view where
node_exporter's textfile collector looks, and goes on counting from what the file says.

``LookupClient`` doesn't import this module; hand it ``observer=LookupMetrics()``.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from filelock import FileLock
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.parser import text_string_to_metric_families

SECONDS = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.3, 1.0)
"""Upper bounds of the buckets of a lookup's time."""
STATUSES = ("missing", "stale", "present", "fallback", "unavailable")
"""By the number of ``retrieval.blocks.Status``."""
TEXTFILE_PREFIX = "recsys_llm_"

RUN_COUNTERS = {
    "recsys_llm_rows_written": "Rows computed and stored.",
    "recsys_llm_rows_skipped": "Rows that the ledger held already.",
    "recsys_llm_rows_recovered": "Rows of a killed run that were recorded without computing.",
    "recsys_llm_texts_encoded": "Texts of the computed rows.",
    "recsys_llm_tokens_encoded": "Tokens of these texts.",
    "recsys_llm_materialize_seconds": "Time spent in runs that ended well.",
    "recsys_llm_materialize_runs": "Runs that ended well.",
    "recsys_llm_materialize_failures": "Runs that failed.",
}
"""Name (Prometheus adds ``_total``) to meaning; labels view and producer."""
UNTIL = "recsys_llm_materialized_until_timestamp_seconds"
"""End of a view's newest materialised interval. Its lag is ``time()`` less this."""
LAG = "recsys_llm_view_lag_seconds"

LOOKUP_SECONDS = "recsys_llm_lookup_seconds"
LOOKUP_ROWS = "recsys_llm_lookup_rows"
OUTCOMES = ("ok", "defaults", "error")
STORE_ERRORS = Counter("recsys_llm_store_errors", "Failures of the online store.", ["type"], registry=None)
_PRESENT = bytes([STATUSES.index("present")])


class LookupMetrics:
    """Counts what one client's lookups do; safe to use from several threads.

    Examples
    --------
    ::

        client = LookupClient("serving.json", observer=LookupMetrics())
    """

    def watch(self, client: Any) -> None:
        """Report the item cache and the breaker of a client: ``cache_totals()`` and ``breaker_state``."""
        _SERVING.watch(client)

    def answered(self, seconds: float, batches: Sequence[Any]) -> None:
        """Note lookups that were answered."""
        if not batches:
            return
        first = batches[0]  # batches of one call share their blocks
        outcome = "ok" if first.store_error is None else "defaults"
        _SERVING.add(outcome, seconds, first.user.status, first.item.status)

    def failed(self, seconds: float) -> None:
        """Note a lookup that raised."""
        _SERVING.add("error", seconds)

    def store_failed(self, error: BaseException) -> None:
        """Note a failure of the online store, by the type that its driver gave it."""
        STORE_ERRORS.labels(type(error.__cause__ or error).__name__).inc()


class _Serving:
    """What lookups of all clients did. Kept here, not with a client, which may go before anybody scrapes.

    Adding to plain numbers under one lock costs a lookup some 3 us; counters of the library, several times that.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buckets = {outcome: [0] * (len(SECONDS) + 1) for outcome in OUTCOMES}
        self._seconds = dict.fromkeys(OUTCOMES, 0.0)
        self._rows: dict[str, list[int]] = {}
        """By view: a count for each of :data:`STATUSES`."""
        self._clients: WeakKeyDictionary[Any, tuple[int, int]] = WeakKeyDictionary()
        """Each with the hits and misses that are in the sums already: a counter must not fall when a client goes."""
        self._cached = (0, 0)

    def watch(self, client: Any) -> None:
        """Report a client for as long as it exists."""
        with self._lock:
            self._clients.setdefault(client, (0, 0))

    def add(self, outcome: str, seconds: float, *blocks: Mapping[str, Any]) -> None:
        """Count a lookup; each of ``blocks`` is view to uint8 (n,), numbers of :data:`STATUSES`."""
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

    def _add_cached(self) -> tuple[int, int]:
        with self._lock:
            hits, misses = self._cached
            for client, (known_hits, known_misses) in list(self._clients.items()):
                some_hits, some_misses = self._clients[client] = client.cache_totals()
                hits, misses = hits + some_hits - known_hits, misses + some_misses - known_misses
            self._cached = (hits, misses)
            return self._cached

    def describe(self) -> Iterable[Any]:
        """Nothing: the names are those of :meth:`collect`."""
        return ()

    def collect(self) -> Iterator[Any]:
        """Yield what was counted, and the item caches and breakers of the clients that exist."""
        hits = CounterMetricFamily("recsys_llm_item_cache_hits", "Rows handed out without asking the store.")
        misses = CounterMetricFamily("recsys_llm_item_cache_misses", "Rows that the item cache had to read.")
        for family, count in zip((hits, misses), self._add_cached(), strict=True):
            family.add_metric([], count)
        is_open = GaugeMetricFamily("recsys_llm_breaker_open", "1 while a circuit breaker is open, else 0.")
        with self._lock:
            clients = list(self._clients)
        is_open.add_metric([], int(any(client.breaker_state == "open" for client in clients)))
        lookups = HistogramMetricFamily(LOOKUP_SECONDS, "Time of a lookup: ok, defaults or error.", labels=["status"])
        rows = CounterMetricFamily(LOOKUP_ROWS, "Rows that lookups asked for.", labels=["view", "status"])
        with self._lock:
            for outcome, counts in self._buckets.items():
                bounds = [*(str(bound) for bound in SECONDS), "+Inf"]
                buckets = list(zip(bounds, accumulate(counts), strict=True))
                lookups.add_metric([outcome], buckets=buckets, sum_value=self._seconds[outcome])
            for view, counts in self._rows.items():
                for status, count in zip(STATUSES, counts, strict=True):
                    rows.add_metric([view, status], count)
        yield from (hits, misses, is_open, lookups, rows)
        yield from STORE_ERRORS.collect()


_SERVING = _Serving()
REGISTRY.register(_SERVING)


class RunMetrics:
    """What materialisations of this process did, by view and producer."""

    def __init__(self, registry: CollectorRegistry | None = REGISTRY) -> None:
        self._counters = {
            name: Counter(name, help_, ["view", "producer"], registry=registry) for name, help_ in RUN_COUNTERS.items()
        }
        self._ends: dict[str, float] = {}
        labels = ["view", "producer"]
        self._until = Gauge(
            UNTIL, "End of the newest materialised interval.", labels, registry=registry, multiprocess_mode="max"
        )

    def add(self, view: str, producer: str, counts: Mapping[str, float], until: datetime | None = None) -> None:
        """Add to the counters of :data:`RUN_COUNTERS`, and move the end of what is materialised on."""
        for name, count in counts.items():
            self._counters[name].labels(view, producer).inc(count)
        if until is not None:
            self._ends[view] = max(until.timestamp(), self._ends.get(view, float("-inf")))
            self._until.labels(view, producer).set(self._ends[view])


class _Totals:
    """What a file says. No counters of the library: Feast sets it up to keep those in files of its own."""

    def __init__(self, labels: list[str], totals: Mapping[str, float], until: float | None) -> None:
        self._labels, self._totals, self._until = labels, totals, until

    def collect(self) -> Iterator[Any]:
        """Yield the counters and the end."""
        names = ["view", "producer"]
        for name, total in self._totals.items():
            family = CounterMetricFamily(name, RUN_COUNTERS[name], labels=names)
            family.add_metric(self._labels, total)
            yield family
        if self._until is not None:
            end = GaugeMetricFamily(UNTIL, "End of the newest materialised interval.", labels=names)
            end.add_metric(self._labels, self._until)
            yield end


def write_run(
    directory: Path, view: str, producer: str, counts: Mapping[str, float], until: datetime | None = None
) -> Path:
    """Add a run to the view's file in node_exporter's textfile format; the file is replaced whole.

    Returns
    -------
    Path
        ``recsys_llm_VIEW.prom``.

    Raises
    ------
    OSError, ValueError
        The file can't be written, or holds something else; it is left as it is.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{TEXTFILE_PREFIX}{view}.prom"
    with FileLock(directory / f".{file.name}.lock"):
        before, ended = _earlier(file, producer)
        totals = {name: before.get(name, 0.0) + counts.get(name, 0.0) for name in RUN_COUNTERS}
        ends = [end for end in (ended, None if until is None else until.timestamp()) if end is not None]
        registry = CollectorRegistry()
        registry.register(_Totals([view, producer], totals, max(ends, default=None)))
        write_to_textfile(str(file), registry)
    return file


def _earlier(file: Path, producer: str) -> tuple[dict[str, float], float | None]:
    """Return what earlier runs counted."""
    if not file.is_file():
        return {}, None
    counts, until = {}, None
    for family in text_string_to_metric_families(file.read_text(encoding="utf-8")):
        for sample in family.samples:
            if sample.labels.get("producer") != producer:
                continue
            if sample.name == UNTIL:
                until = sample.value
            elif sample.name.removesuffix("_total") in RUN_COUNTERS:
                counts[sample.name.removesuffix("_total")] = sample.value
    return counts, until


class LagCollector:
    """The lag of each view, asked of the registry at each scrape.

    Parameters
    ----------
    ends
        Returns view to the end of its newest materialised interval; None where there is none.
    """

    def __init__(self, ends: Callable[[], Mapping[str, datetime | None]]) -> None:
        self._ends = ends

    def collect(self) -> Iterator[Any]:
        """Yield a gauge: seconds since the end; +Inf for a view that was never materialised."""
        lag = GaugeMetricFamily(LAG, "Seconds since the end of the newest materialised interval.", labels=["view"])
        for view, end in self._ends().items():
            lag.add_metric([view], float("inf") if end is None else time.time() - end.timestamp())
        yield lag


RUNS = RunMetrics()
