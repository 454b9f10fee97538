"""``bench load``: latencies from when a request was due, and a Redis that is killed and comes back in the middle."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from recsys_llm.bench.load_schedule import GOOD, open_loop
from recsys_llm.cli import app


def test_a_stall_counts_for_all_requests_that_were_due_in_the_meantime():
    now, calls = [0.0], []

    def request() -> str:
        calls.append(now[0])
        now[0] += 1.0 if len(calls) == 3 else 0.01
        return "failed" if len(calls) == 3 else GOOD

    trace = open_loop(request, 10, 2, clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    assert [round(latency) for latency in trace.latencies_ms()[:5]] == [10, 10, 1000, 910, 820]
    assert [round(latency) for latency in trace.service_ms()[:5]] == [10, 10, 1000, 10, 10]
    assert trace.latencies_ms()[-1] == pytest.approx(10)
    assert trace.errors() == {"failed": 1}
    assert not trace.held(limit_ms=5_000)


def test_a_rate_is_held_only_without_a_backlog():
    now = [0.0]

    def request() -> str:
        now[0] += 0.1
        return GOOD

    def trace(rate: float):
        now[0] = 0.0
        return open_loop(request, rate, 10, clock=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))

    assert trace(9).held(limit_ms=150)
    assert not trace(9).held(limit_ms=50)
    assert not trace(11).held(limit_ms=1e9)


def test_the_command(tmp_path):
    file = tmp_path / "load.json"
    arguments = ["bench", "load", "--candidates", "10", "--seconds", "2", "--probe-seconds", "0.1"]
    done = CliRunner().invoke(
        app, [*arguments, "--down-seconds", "1", "--limit-ms", "60000", "--json", str(file)], catch_exceptions=False
    )
    assert done.exit_code == 0, done.output
    closed, steady, *outages = json.loads(file.read_text())["results"]
    assert closed["requests_per_s"] > 0
    assert steady["errors"] == {} and steady["p50_ms"] <= steady["p99_ms"] <= steady["p99_9_ms"]
    assert [outage["name"] for outage in outages] == ["restart", "freeze"]
    for outage in outages:
        assert outage["errors"] and outage["defaults"] == sum(outage["errors"].values())
        assert all("ConnectionError" in kind or "Timeout" in kind for kind in outage["errors"])
        assert outage["redis_away_s"] >= 1
        assert 0 < outage["first_good_answer_s_after_begin"]
        assert outage["requests"] == steady["requests"]
