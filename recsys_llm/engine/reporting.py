"""What is told of a run: a log line, and metrics in this process and in the view's file."""

from __future__ import annotations

import logging
from datetime import datetime

import click

from recsys_llm import logs
from recsys_llm.config import Config
from recsys_llm.metrics import RUNS, write_run
from recsys_llm.producers import ProducerTag, Summary

logger = logging.getLogger(__name__)


def configure_logs() -> None:
    """Set up logging where a command runs the engine; a program that embeds Feast has its own."""
    if click.get_current_context(silent=True) is not None:
        logs.configure()


def report_run(config: Config, tag: ProducerTag, summary: Summary, start: datetime, end: datetime) -> None:
    """Tell of a run that ended well. What workers on other machines did is in ``summary`` too."""
    counts: dict[str, float] = {
        "recsys_llm_rows_written": summary.computed,
        "recsys_llm_rows_skipped": summary.skipped,
        "recsys_llm_rows_recovered": summary.recovered,
        "recsys_llm_tokens_encoded": summary.cost if summary.unit == "tokens" else 0,
        "recsys_llm_materialize_seconds": summary.seconds,
        "recsys_llm_materialize_runs": 1,
        "recsys_llm_materialize_failures": 0,
    }
    _count(config, summary.view, tag.producer, counts, end)
    logger.info(
        "materialized",
        extra={
            "view": summary.view,
            "producer": tag.producer,
            "interval": f"{start.isoformat()}/{end.isoformat()}",
            "rows": summary.computed,
            "skipped": summary.skipped,
            "recovered": summary.recovered,
            "seconds": round(summary.seconds, 3),
        },
    )


def report_failure(config: Config, view: str, tag: ProducerTag, error: Exception) -> None:
    """Tell of a run that failed; Feast shows the message itself."""
    _count(config, view, tag.producer, {"recsys_llm_materialize_failures": 1}, None)
    logger.error(
        "materialization failed", extra={"view": view, "producer": tag.producer, "error": type(error).__name__}
    )


def _count(config: Config, view: str, producer: str, counts: dict[str, float], until: datetime | None) -> None:
    RUNS.add(view, producer, counts, until)
    if config.metrics.textfile is None:
        return
    try:
        write_run(config.path(config.metrics.textfile), view, producer, counts, until)
    except OSError as error:  # the rows are stored: a full disk there must not make the run fail
        logger.warning("metrics file not written", extra={"view": view, "error": str(error)})
