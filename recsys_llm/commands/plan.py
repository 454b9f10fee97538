"""``recsys-llm plan``: what a materialisation would compute."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from recsys_llm.commands.views import feature_view
from recsys_llm.config import load_config
from recsys_llm.errors import ConfigError
from recsys_llm.producers import ProducerTag, Summary, open_ledger, open_producer, plan


def plan_view(
    repository: Path, view: str, *, start: datetime, end: datetime, config_file: str | None = None
) -> Summary:
    """Count the rows of ``view`` stamped in (start, end] that are not computed yet, and their tokens.

    Raises
    ------
    ConfigError
        There is no such view, or recsys_llm doesn't compute it.
    """
    config = load_config(repository)
    tag = ProducerTag.of(view, feature_view(repository, view, config_file=config_file).tags)
    if tag is None:
        raise ConfigError(f"view {view}: carries no recsys_llm tag, so Feast itself materialises it")
    ledger = open_ledger(config)
    try:
        return plan(view, open_producer(view, tag, config), ledger, start, end)
    finally:
        ledger.close()
