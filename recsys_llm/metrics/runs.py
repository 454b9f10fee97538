"""What materialisations did: in this process, and in files for those that end before anybody scrapes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

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
"""Name (Prometheus adds ``_total``) to meaning."""
LABELS = ("project", "view", "producer")
UNTIL = "recsys_llm_materialized_until_timestamp_seconds"
"""End of a view's newest materialised interval. Its lag is ``time()`` less this."""
LAG = "recsys_llm_view_lag_seconds"


class RunMetrics:
    """What materialisations of this process did, by project, view and producer."""

    def __init__(self, registry: CollectorRegistry | None = REGISTRY) -> None:
        self._counters = {name: Counter(name, help_, LABELS, registry=registry) for name, help_ in RUN_COUNTERS.items()}
        self._ends: dict[tuple[str, str], float] = {}
        self._until = Gauge(
            UNTIL, "End of the newest materialised interval.", LABELS, registry=registry, multiprocess_mode="max"
        )

    def add(
        self, project: str, view: str, producer: str, counts: Mapping[str, float], until: datetime | None = None
    ) -> None:
        """Add to the counters of :data:`RUN_COUNTERS`, and move the end of what is materialised on."""
        for name, count in counts.items():
            self._counters[name].labels(project, view, producer).inc(count)
        if until is not None:
            end = self._ends[project, view] = max(until.timestamp(), self._ends.get((project, view), float("-inf")))
            self._until.labels(project, view, producer).set(end)


class _Totals:
    """What a file says. No counters of the library: Feast sets it up to keep those in files of its own."""

    def __init__(self, labels: list[str], totals: Mapping[str, float], until: float | None) -> None:
        self._labels, self._totals, self._until = labels, totals, until

    def collect(self) -> Iterator[Any]:
        """Yield the counters and the end."""
        for name, total in self._totals.items():
            family = CounterMetricFamily(name, RUN_COUNTERS[name], labels=LABELS)
            family.add_metric(self._labels, total)
            yield family
        if self._until is not None:
            end = GaugeMetricFamily(UNTIL, "End of the newest materialised interval.", labels=LABELS)
            end.add_metric(self._labels, self._until)
            yield end


def write_run(
    directory: Path,
    project: str,
    view: str,
    producer: str,
    counts: Mapping[str, float],
    until: datetime | None = None,
) -> Path:
    """Add a run to the view's file in node_exporter's textfile format; the file is replaced whole.

    Returns
    -------
    Path
        ``recsys_llm_PROJECT.VIEW.prom``: neither name may hold a dot, so no two views share a file.

    Raises
    ------
    OSError, ValueError
        The file can't be written, or holds something else; it is left as it is.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"{TEXTFILE_PREFIX}{project}.{view}.prom"
    with FileLock(directory / f".{file.name}.lock"):
        before, ended = _earlier(file, project, producer)
        totals = {name: before.get(name, 0.0) + counts.get(name, 0.0) for name in RUN_COUNTERS}
        ends = [end for end in (ended, None if until is None else until.timestamp()) if end is not None]
        registry = CollectorRegistry()
        registry.register(_Totals([project, view, producer], totals, max(ends, default=None)))
        write_to_textfile(str(file), registry)
    return file


def _earlier(file: Path, project: str, producer: str) -> tuple[dict[str, float], float | None]:
    """Return what earlier runs counted."""
    if not file.is_file():
        return {}, None
    counts, until = {}, None
    for family in text_string_to_metric_families(file.read_text(encoding="utf-8")):
        for sample in family.samples:
            if (sample.labels.get("project"), sample.labels.get("producer")) != (project, producer):
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
    project
        Of the registry.
    ends
        Returns view to the end of its newest materialised interval; None where there is none.
    """

    def __init__(self, project: str, ends: Callable[[], Mapping[str, datetime | None]]) -> None:
        self._project = project
        self._ends = ends

    def collect(self) -> Iterator[Any]:
        """Yield a gauge: seconds since the end; +Inf for a view that was never materialised."""
        lag = GaugeMetricFamily(
            LAG, "Seconds since the end of the newest materialised interval.", labels=["project", "view"]
        )
        for view, end in self._ends().items():
            lag.add_metric([self._project, view], float("inf") if end is None else time.time() - end.timestamp())
        yield lag


RUNS = RunMetrics()
