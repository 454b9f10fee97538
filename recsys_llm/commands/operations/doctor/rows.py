"""Are there rows for everyone, with values, of no time that hasn't come."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from recsys_llm.commands.operations.doctor.findings import Finding, Limits, at_least, at_most
from recsys_llm.commands.operations.opening import StoredView
from recsys_llm.config import Config
from recsys_llm.producers.parts import part_files
from recsys_llm.ranking.inputs import category_names
from recsys_llm.schema import (
    CATEGORIES,
    CATEGORY,
    CREATED_TIMESTAMP,
    EVENT_TIMESTAMP,
    ITEM_ID,
    MEAN_PRICE,
    MEAN_RATING,
    PRICE,
    SEGMENT,
    USER_ID,
)
from recsys_llm.sources import tables
from recsys_llm.sources.connection import open_duckdb, quoted
from recsys_llm.timestamps import FUTURE_TOLERANCE

_ALL = "all"
FEWEST_KEYS = 20
"""Segments of fewer are examined together: one missing key of theirs says nothing."""


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
    empty = _without_source(config)
    for name, count in zip(features, missing, strict=True):
        if name in empty:
            continue
        rate = count / rows if rows else 0.0
        yield at_most("null rate", f"{view.name}:{name}", rate, limits.max_null_rate, f"{rate:.1%} of the newest rows")
    keys = {key for (key,) in held}
    for segment, wanted in sorted(_source_keys(view.join_key, config, at).items()):
        share = len(wanted & keys) / len(wanted)
        detail = f"{share:.1%} of the source's {len(wanted):,} keys have a row"
        yield at_least(
            "coverage", view.name if segment == _ALL else f"{view.name} ({segment})", share, limits.min_coverage, detail
        )


def _without_source(config: Config) -> set[str]:
    """Return the features that are null everywhere since recsys_llm.yaml names no column for them."""
    events, items = config.sources.interactions, config.sources.items
    return {
        *([PRICE, MEAN_PRICE] if events.price is None else []),
        *([MEAN_RATING] if events.rating is None else []),
        *([CATEGORIES] if items.category is None else []),
    }


def _source_keys(join_key: str, config: Config, at: datetime) -> dict[str, set[str]]:
    """Return the keys of the source up to ``at``: all, those of each category or segment, and those of all small ones.

    Keys that a gap hits alike would be lost among all: a new category, one country's events.
    """
    found: dict[str, set[str]] = {}
    for key, segments in _items(config, at) if join_key == ITEM_ID else _users(config, at):
        for segment in (_ALL, *segments):
            found.setdefault(segment, set()).add(key)
    small = [segment for segment, keys in found.items() if segment != _ALL and len(keys) < FEWEST_KEYS]
    pooled = set().union(*(found.pop(segment) for segment in small))
    return found | ({f"segments of fewer than {FEWEST_KEYS} keys": pooled} if pooled else {})


def _items(config: Config, at: datetime) -> Iterator[tuple[str, list[str]]]:
    for batch in tables.items(config, end=at):
        ids = batch.column(ITEM_ID).to_pylist()
        categories = batch.column(CATEGORY).to_pylist() if CATEGORY in batch.schema.names else [None] * len(ids)
        yield from ((key, category_names(text or "")) for key, text in zip(ids, categories, strict=True))


def _users(config: Config, at: datetime) -> Iterator[tuple[str, list[str]]]:
    """Yield the user of each event, with the segment that the event or the user's profile names."""
    profiles: dict[str, str | None] = {}
    for batch in tables.users(config, end=at):
        if SEGMENT in batch.schema.names:  # rows are ordered by time: the newest one stays
            profiles.update(zip(batch.column(USER_ID).to_pylist(), batch.column(SEGMENT).to_pylist(), strict=True))
    for batch in tables.interactions(config, end=at, segments=True):
        for key, named in zip(batch.column(USER_ID).to_pylist(), batch.column(SEGMENT).to_pylist(), strict=True):
            segment = named or profiles.get(key)
            yield key, [segment] if segment else []
