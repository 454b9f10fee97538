"""``recsys-llm bench load``: how many requests one process sustains, and what a Redis that goes away does to them."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from recsys_llm.bench.load_schedule import GOOD, Trace, closed_loop, highest_rate, open_loop
from recsys_llm.bench.online_world import World, build_world
from recsys_llm.bench.redis_server import redis_process
from recsys_llm.bench.report import report
from recsys_llm.errors import RecsysLLMError
from recsys_llm.retrieval import FeatureBatch, FeatureClient, Status

STORE = "recsys_llm.stores.RedisOnlineStore"
LIMIT_MS = 100.0
"""A rate with a higher p99 isn't called sustained."""
LOWER = 0.85
TRIES = 5
"""Of the long run, each at a lower rate than the one before it that was not held."""
LONGEST_MS = 300.0
"""What a request may take at most while the store is away."""
INCOMPLETE = "incomplete"
"""An answer without a failure that lacks rows."""
UNTYPED = "untyped "

Echo = Callable[[str], object]


def bench_load(
    *, candidates: int, seconds: float, probe_seconds: float, down_seconds: float, limit_ms: float, echo: Echo
) -> dict[str, Any]:
    """Find the highest rate that one process sustains, hold it, and again while Redis is restarted, and frozen.

    Parameters
    ----------
    seconds
        Of each of the three long runs.
    probe_seconds
        Of each step of the search.
    down_seconds
        How long Redis is away: killed, before it is started again and reads its append-only file; or stopped.
    limit_ms
        Of the p99 of a sustained rate.
    echo
        Is told of each step.

    Raises
    ------
    ConfigError
        There is no Redis to start.
    """
    with ExitStack() as stack:
        server = stack.enter_context(redis_process(durable=True))
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="recsys_llm_load_")))
        world = build_world(folder, items=candidates, store=STORE, redis_url=server.url)
        client = stack.enter_context(FeatureClient(store=world.store))
        request = requests(client, world)
        closed = closed_loop(request, probe_seconds)
        echo(f"closed loop: {closed:,.0f} requests/s")

        def probe(rate: float) -> bool:
            held = open_loop(request, rate, probe_seconds).held(limit_ms)
            echo(f"{rate:,.0f} requests/s for {probe_seconds:g} s: {'held' if held else 'not held'}")
            return held

        rate = highest_rate(probe, closed)
        tries = 0
        while True:
            tries += 1
            steady = open_loop(request, rate, seconds)
            held = steady.held(limit_ms)
            echo(f"{rate:,.0f} requests/s for {seconds:g} s: {'held' if held else 'not held'}")
            if held or tries == TRIES:
                break
            rate *= LOWER
        ways = {"restart": (server.kill, server.start), "freeze": (server.freeze, server.thaw)}
        outages: list[tuple[str, Outage, Trace]] = []
        for name, (begin, end) in ways.items():
            outage = Outage(begin, end, after=seconds / 3, down_seconds=down_seconds)
            outages.append((name, outage, outage.during(lambda: open_loop(request, rate, seconds))))
            echo(f"{rate:,.0f} requests/s for {seconds:g} s, Redis away for {down_seconds:g} s of it: {name}")
    settings = {
        "candidates": candidates,
        "store": STORE,
        "seconds": seconds,
        "probe_seconds": probe_seconds,
        "down_seconds": down_seconds,
        "limit_ms": limit_ms,
        "processes": 1,
        "threads": 1,
        "load_average": list(os.getloadavg()),
    }
    results = [
        {"name": "closed_loop", "requests_per_s": closed},
        _result("steady", steady) | {"held": held, "tries": tries},
        *(_result(name, trace) | outage.figures(trace) for name, outage, trace in outages),
    ]
    targets = _steady_targets(steady, held, limit_ms)
    targets += [target for name, _, trace in outages for target in _outage_targets(name, trace)]
    return report("bench load", settings=settings, results=results, targets=targets)


def requests(client: FeatureClient, world: World) -> Callable[[], str]:
    """Return a function that looks up one user and all items, and says what failed, if anything."""

    def request() -> str:
        try:
            batch = client.lookup(world.user, world.items, service=world.service, on_store_error="defaults")
        except RecsysLLMError as error:
            return type(error).__name__
        except Exception as error:  # noqa: BLE001  what isn't ours is counted under its own name
            return UNTYPED + type(error).__name__
        return _outcome(batch)

    return request


def _outcome(batch: FeatureBatch) -> str:
    if batch.store_error is not None:
        # Such as "Redis: ConnectionError: Error 111 connecting to ...".
        return "defaults: " + ":".join(batch.store_error.split(":")[:2])
    states = [*batch.user.status.values(), *batch.item.status.values()]
    return GOOD if all((state == Status.PRESENT).all() for state in states) else INCOMPLETE


class Outage:
    """Takes Redis away a while after the beginning of a run, and brings it back.

    Parameters
    ----------
    begin, end
        Of the outage.
    after
        Seconds into the run.
    """

    def __init__(
        self, begin: Callable[[], object], end: Callable[[], object], *, after: float, down_seconds: float
    ) -> None:
        self._begin = begin
        self._end = end
        self._after = after
        self._down_seconds = down_seconds
        self._gone = self._back = 0.0
        self._failure: BaseException | None = None

    def during(self, run: Callable[[], Trace]) -> Trace:
        """Return the trace of ``run``, in the middle of which Redis is away."""
        started = time.perf_counter()
        thread = threading.Thread(target=self._take_away, args=(started,))
        thread.start()
        try:
            trace = run()
        finally:
            thread.join()
        if self._failure is not None:
            raise self._failure
        return trace

    def _take_away(self, started: float) -> None:
        try:
            time.sleep(self._after)
            self._begin()
            self._gone = time.perf_counter() - started
            time.sleep(self._down_seconds)
            self._end()
            self._back = time.perf_counter() - started
        except BaseException as error:  # noqa: BLE001  for the thread that waits
            self._failure = error

    def figures(self, trace: Trace) -> dict[str, Any]:
        """Return what the outage did to the requests of a trace."""
        away = np.array(trace.done) > self._gone
        away &= np.array(trace.sent) < self._back
        good = np.array([outcome == GOOD for outcome in trace.outcomes])
        done = np.array(trace.done)
        first = done[good & (np.array(trace.sent) > self._gone)]
        service = trace.service_ms()
        return {
            "redis_away_s": self._back - self._gone,
            "first_good_answer_s_after_begin": float(first[0] - self._gone) if len(first) else None,
            # Negative: Redis took requests before it was seen to answer.
            "first_good_answer_s_after_end": float(first[0] - self._back) if len(first) else None,
            "answers_while_away": int(away.sum()),
            "longest_answer_while_away_ms": float(service[away].max()) if away.any() else None,
        }


def _result(name: str, trace: Trace) -> dict[str, Any]:
    latencies = trace.latencies_ms()
    p50, p99, p999 = (float(value) for value in np.percentile(latencies, [50, 99, 99.9]))
    errors = trace.errors()
    return {
        "name": name,
        "rate_per_s": trace.rate,
        "answered_per_s": trace.answered_per_s,
        "requests": len(trace.done),
        "p50_ms": p50,
        "p99_ms": p99,
        "p99_9_ms": p999,
        "longest_ms": float(latencies.max()),
        "defaults": sum(count for kind, count in errors.items() if kind.startswith("defaults")),
        "errors": errors,
    }


def _steady_targets(steady: Trace, held: bool, limit_ms: float) -> list[dict[str, Any]]:
    errors = sum(steady.errors().values())
    p99 = float(np.percentile(steady.latencies_ms(), 99))
    return [
        {"name": "steady_p99_ms", "target": f"<= {limit_ms:g}", "value": p99, "met": held},
        {"name": "steady_errors", "target": "0", "value": errors, "met": errors == 0},
    ]


def _outage_targets(name: str, trace: Trace) -> list[dict[str, Any]]:
    wrong = sum(count for kind, count in trace.errors().items() if not kind.startswith("defaults: "))
    failed = np.array([outcome != GOOD for outcome in trace.outcomes])
    longest = float(trace.service_ms()[failed].max()) if failed.any() else 0.0
    ends_well = all(outcome == GOOD for outcome in trace.outcomes[-3:])
    return [
        {"name": f"{name}_errors_that_are_no_defaults", "target": "0", "value": wrong, "met": wrong == 0},
        {
            "name": f"{name}_longest_failed_answer_ms",
            "target": f"<= {LONGEST_MS:g}",
            "value": longest,
            "met": longest <= LONGEST_MS,
        },
        {"name": f"{name}_ends_with_good_answers", "target": "1", "value": int(ends_well), "met": ends_well},
    ]


def show_load(content: dict[str, Any], echo: Echo) -> None:
    """Print the report."""
    closed, *runs = content["results"]
    echo(f"closed loop {closed['requests_per_s']:,.0f} requests/s")
    for run in runs:
        times = ", ".join(f"{name} {run[f'{key}_ms']:.1f} ms" for name, key in _TIMES)
        echo(f"{run['name']}: {run['rate_per_s']:,.0f} requests/s, {run['requests']:,} requests, {times}")
        for kind, count in run["errors"].items():
            echo(f"  {kind:<44} {count:,}")
        if run.get("first_good_answer_s_after_begin") is not None:
            echo(
                f"  Redis away {run['redis_away_s']:.2f} s; first good answer "
                f"{run['first_good_answer_s_after_begin']:.2f} s after that began, "
                f"{run['first_good_answer_s_after_end']:+.3f} s after it ended"
            )
    for target in content["targets"]:
        met = "met" if target["met"] else "NOT met"
        echo(f"{target['name']:<40} {target['value']:>10.4g}  target {target['target']:<9} {met}")


_TIMES = (("p50", "p50"), ("p99", "p99"), ("p99.9", "p99_9"), ("longest", "longest"))
