"""All checks in their order: what explains the others comes first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

import duckdb
import pyarrow as pa

from recsys_llm.commands.operations.doctor import online, registry, rows, vectors
from recsys_llm.commands.operations.doctor.findings import Finding, Limits
from recsys_llm.commands.operations.opening import StoredView, stored_views
from recsys_llm.config import Config, load_config
from recsys_llm.errors import RecsysLLMError
from recsys_llm.passwords import first_line
from recsys_llm.timestamps import now


def examine(
    repository: Path, *, limits: Limits | None = None, config_file: str | None = None, at: datetime | None = None
) -> list[Finding]:
    """Run all checks; what a check can't do is a finding too.

    Parameters
    ----------
    at
        The present.

    Raises
    ------
    ConfigError
        The repository can't be opened.
    """
    limits, at = limits or Limits(), at or now()
    config = load_config(repository)
    with stored_views(repository, config_file) as views:
        return list(_findings(config, views, limits, at))


def _findings(config: Config, views: list[StoredView], limits: Limits, at: datetime) -> Iterator[Finding]:
    yield from _tried("registry", "all views", lambda: registry.check_registry(config, views))
    views = [view for view in views if registry.misplaced(view) is None]
    if not views:
        return
    store = views[0].store
    yield from _tried("online store", store.config.online_store.type, lambda: online.check_store(store, views))
    yield from _tried("fingerprints", "services", lambda: registry.check_services(store))
    for view in views:
        yield from _tried("freshness", view.name, partial(registry.check_freshness, view, limits, at))
        yield from registry.note_end(view, config)
        yield from _tried("parts", view.name, partial(registry.check_parts, view))
        if not view.has_parts:
            continue
        yield from _tried("rows", view.name, partial(rows.check_rows, view, config, limits, at))
        yield from _tried("parity", view.name, partial(online.check_parity, view, limits, at))
        yield from _tried("drift", view.name, partial(vectors.check_drift, view, limits))


def _tried(check: str, subject: str, run: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from run()
    except RecsysLLMError as error:
        yield Finding(check, subject, False, str(error))
    except (duckdb.Error, pa.ArrowException, OSError) as error:  # an altered part, of which the check of parts tells
        yield Finding(check, subject, False, f"can't be examined: {type(error).__name__}: {first_line(error)}")
