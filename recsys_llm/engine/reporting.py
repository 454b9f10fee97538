"""What is told of a run: a log line, and metrics in this process and in the view's file."""

from __future__ import annotations

import logging
import sys
from datetime import datetime
from pathlib import Path

import click

from recsys_llm import logs
from recsys_llm.config import FILE_NAME, Config, load_config
from recsys_llm.engine.rows import Written
from recsys_llm.errors import ConfigError
from recsys_llm.metrics.runs import LABELS, RUNS, write_run
from recsys_llm.producers import ProducerTag, Summary

logger = logging.getLogger(__name__)

COPIED = "copy"
"""In place of a producer, of a view that Feast would materialise itself."""


def configure_logs() -> None:
    """Set up logging where Feast's own command runs the engine; a program that embeds Feast has its own."""
    feast, context = sys.modules.get("feast.cli.cli"), click.get_current_context(silent=True)
    if feast is not None and context is not None and context.find_root().command is feast.cli:
        logs.configure()


def report_run(
    project: str, config: Config, tag: ProducerTag, summary: Summary, start: datetime, end: datetime
) -> None:
    """Tell of a run that ended well. What workers on other machines did is in ``summary`` too."""
    counts: dict[str, float] = {
        "recsys_llm_rows_written": summary.computed,
        "recsys_llm_rows_skipped": summary.skipped,
        "recsys_llm_rows_recovered": summary.recovered,
        "recsys_llm_texts_encoded": summary.computed if summary.unit == "tokens" else 0,
        "recsys_llm_tokens_encoded": summary.cost if summary.unit == "tokens" else 0,
        "recsys_llm_materialize_failures": 0,
    }
    rows = {"rows": summary.computed, "skipped": summary.skipped, "recovered": summary.recovered}
    _report(config, (project, summary.view, tag.producer), counts, rows, summary.seconds, (start, end))


def report_copied(
    project: str,
    repository: Path | None,
    view: str,
    written: Written,
    seconds: float,
    interval: tuple[datetime, datetime],
) -> None:
    """Tell of a view that isn't computed: its rows were copied online."""
    copied = written.newer + written.equal
    rows = {"rows": copied, "skipped": written.older}
    counts: dict[str, float] = {"recsys_llm_rows_written": copied}
    _report(_config(repository), (project, view, COPIED), counts, rows, seconds, interval)


def report_failure(project: str, repository: Path | None, view: str, producer: str, error: Exception) -> None:
    """Tell of a run that failed, wherever it did; Feast shows the message itself."""
    _count(_config(repository), (project, view, producer), {"recsys_llm_materialize_failures": 1}, None)
    told = {"project": project, "view": view, "producer": producer, "error": type(error).__name__}
    logger.error("materialization failed", extra=told)


def _config(repository: Path | None) -> Config | None:
    """Return the configuration; None where there is none that can be read, which is for the run itself to say."""
    if repository is None or not (repository / FILE_NAME).is_file():
        return None
    try:
        return load_config(repository)
    except ConfigError:
        return None


def _report(
    config: Config | None,
    labels: tuple[str, str, str],
    counts: dict[str, float],
    rows: dict[str, int],
    seconds: float,
    interval: tuple[datetime, datetime],
) -> None:
    start, end = interval
    run = {"recsys_llm_materialize_seconds": seconds, "recsys_llm_materialize_runs": 1}
    _count(config, labels, counts | run, end)
    told = {**dict(zip(LABELS, labels, strict=True)), "interval": f"{start.isoformat()}/{end.isoformat()}"}
    logger.info("materialized", extra={**told, **rows, "seconds": round(seconds, 3)})


def _count(
    config: Config | None, labels: tuple[str, str, str], counts: dict[str, float], until: datetime | None
) -> None:
    RUNS.add(*labels, counts, until)
    if config is None or config.metrics.textfile is None:
        return
    try:
        write_run(config.path(config.metrics.textfile), *labels, counts, until)
    except (OSError, ValueError) as error:  # the rows are stored: a full disk, or a file that holds something else
        logger.warning("metrics file not written", extra={"project": labels[0], "view": labels[1], "error": str(error)})
