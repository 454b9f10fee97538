"""Are there rows for everyone, with values, of no time that hasn't come."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from recsys_llm.commands.operations.doctor.findings import Finding, Limits, at_least, at_most
from recsys_llm.commands.operations.opening import StoredView
from recsys_llm.config import Config
from recsys_llm.producers.parts import part_files
from recsys_llm.schema import CATEGORY, CREATED_TIMESTAMP, EVENT_TIMESTAMP, ITEM_ID, USER_ID
from recsys_llm.sources import tables
from recsys_llm.sources.connection import open_duckdb, quoted
from recsys_llm.timestamps import FUTURE_TOLERANCE

_ALL = "all"


def check_rows(view: StoredView, config: Config, limits: Limits, at: datetime) -> Iterator[Finding]:
    """Find rows from the future, features without values, and keys of the source without a row."""
    files = [str(file) for file in part_files(view.directory)]
    features = [field.name for field in view.definition.features]
    nulls = ", ".join(f"count(*) - count({quoted(name)})" for name in features)
    key = quoted(view.join_key)
    query = f"""
        WITH newest AS (
            SELECT * FROM read_parquet(?) QUALIFY row_number() OVER (
                PARTITION BY {key} ORDER BY {EVENT_TIMESTAMP} DESC, {CREATED_TIMESTAMP} DESC
            ) = 1
        )
        SELECT count(*), count(*) FILTER ({EVENT_TIMESTAMP} > ?), {nulls} FROM newest
    """
    with open_duckdb() as connection:
        counted: Any = connection.execute(query, [files, at + FUTURE_TOLERANCE]).fetchone()
        held = connection.execute(f"SELECT DISTINCT {key} FROM read_parquet(?)", [files]).fetchall()
    rows, late, *missing = counted
    yield Finding(
        "future", view.name, late == 0, f"{late:,} of {rows:,} newest rows are stamped later than now", late, 0
    )
    for name, count in zip(features, missing, strict=True):
        rate = count / rows if rows else 0.0
        yield at_most("null rate", f"{view.name}:{name}", rate, limits.max_null_rate, f"{rate:.1%} of the newest rows")
    keys = {key for (key,) in held}
    for segment, wanted in sorted(_source_keys(view.join_key, config, at).items()):
        share = len(wanted & keys) / len(wanted)
        detail = f"{share:.1%} of the source's {len(wanted):,} keys have a row"
        yield at_least(
            "coverage", view.name if segment == _ALL else f"{view.name} ({segment})", share, limits.min_coverage, detail
        )


def _source_keys(join_key: str, config: Config, at: datetime) -> dict[str, set[str]]:
    """Return the keys of the source up to ``at``: all, and those of each category or segment."""
    found: dict[str, set[str]] = {}
    if join_key == ITEM_ID:
        batches, segment = tables.items(config, end=at), CATEGORY if config.sources.items.category else None
    else:
        has_segments = config.sources.interactions.segment is not None
        batches = tables.interactions(config, end=at, segments=has_segments)
        segment = "segment" if has_segments else None
    for batch in batches:
        ids = batch.column(USER_ID if join_key == USER_ID else ITEM_ID).to_pylist()
        found.setdefault(_ALL, set()).update(ids)
        if segment is not None and segment in batch.schema.names:
            for key, of in zip(ids, batch.column(segment).to_pylist(), strict=True):
                if of:
                    found.setdefault(str(of), set()).add(key)
    return found
