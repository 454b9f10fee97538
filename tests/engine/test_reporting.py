"""Views that are copied, and who sets up logging."""

from __future__ import annotations

import logging
from datetime import UTC, datetime

import click
import pytest
from feast.cli.cli import cli as feast_command
from prometheus_client import REGISTRY

from recsys_llm import logs
from recsys_llm.engine.reporting import COPIED, configure_logs, report_copied
from recsys_llm.engine.rows import Written

START, END = datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 1, 2, tzinfo=UTC)


def test_a_copied_view_is_counted_and_logged(caplog):
    with caplog.at_level(logging.INFO, logger=logs.NAME):
        report_copied("shop", None, "copied_view", Written(newer=3, equal=1, older=2), 0.25, (START, END))
    labels = {"project": "shop", "view": "copied_view", "producer": COPIED}
    assert REGISTRY.get_sample_value("recsys_llm_rows_written_total", labels) == 4
    assert REGISTRY.get_sample_value("recsys_llm_materialized_until_timestamp_seconds", labels) == END.timestamp()
    (record,) = caplog.records
    assert (record.project, record.view) == ("shop", "copied_view")
    assert (record.rows, record.skipped, record.seconds) == (4, 2, 0.25)
    assert record.interval == "2024-01-01T00:00:00+00:00/2024-01-02T00:00:00+00:00"


@pytest.mark.parametrize(("command", "expected"), [(feast_command, 1), (click.Command("mine"), 0), (None, 0)])
def test_only_the_feast_command_has_its_logs_set_up(monkeypatch, command, expected):
    asked = []
    monkeypatch.setattr(logs, "configure", lambda: asked.append(1))
    if command is None:
        configure_logs()
    else:
        with click.Context(command):
            configure_logs()
    assert len(asked) == expected
