"""Small data folders and feature repositories, written from plain Python rows."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_llm.config import Config, load_config

T0 = datetime(2024, 1, 1, tzinfo=UTC)
STAMP = pa.timestamp("us", "UTC")


def hours(count: float) -> datetime:
    """Return a time that many hours after the start of 2024."""
    return T0 + timedelta(hours=count)


def write_items(folder: Path, rows: Sequence[tuple[str, datetime | None, str, str]]) -> Path:
    """Write items.parquet from rows of (item_id, time, title, category); the text repeats the title."""
    ids, times, titles, categories = zip(*rows, strict=True)
    table = pa.table(
        {
            "item_id": pa.array(ids, pa.string()),
            "event_timestamp": pa.array(times, STAMP),
            "title": pa.array(titles, pa.string()),
            "text": pa.array([f"About {title}." for title in titles], pa.string()),
            "category": pa.array(categories, pa.string()),
        }
    )
    return _write(table, folder / "items.parquet")


def write_interactions(folder: Path, rows: Sequence[tuple[str, str, datetime, float | None, float | None]]) -> Path:
    """Write interactions.parquet from rows of (user_id, item_id, time, rating, price)."""
    users, items, times, ratings, prices = zip(*rows, strict=True) if rows else ((), (), (), (), ())
    table = pa.table(
        {
            "user_id": pa.array(users, pa.string()),
            "item_id": pa.array(items, pa.string()),
            "event_timestamp": pa.array(times, STAMP),
            "rating": pa.array(ratings, pa.float32()),
            "price": pa.array(prices, pa.float32()),
        }
    )
    return _write(table, folder / "interactions.parquet")


def write_tags(folder: Path, rows: Sequence[tuple[str, str, datetime]]) -> Path:
    """Write tags.parquet from rows of (user_id, tag, time)."""
    users, tags, times = zip(*rows, strict=True)
    table = pa.table(
        {
            "user_id": pa.array(users, pa.string()),
            "tag": pa.array(tags, pa.string()),
            "event_timestamp": pa.array(times, STAMP),
        }
    )
    return _write(table, folder / "tags.parquet")


def config_for(folder: Path, extra: str = "", *, words: bool = False) -> Config:
    """Write recsys_llm.yaml into the data folder itself, and read it."""
    tags = "\n  user_words: {parquet: tags.parquet, text: tag}" if words else ""
    (folder / "recsys_llm.yaml").write_text(
        "sources:\n"
        "  items: {parquet: items.parquet, category: category}\n"
        f"  interactions: {{parquet: interactions.parquet, rating: rating, liked_from: 4.0, price: price}}{tags}\n"
        + extra
    )
    return load_config(folder)


def _write(table: pa.Table, file: Path) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)
    return file
