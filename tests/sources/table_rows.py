"""Small raw tables, and canonical ones as plain rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa

from recsys_llm.config import Config
from recsys_llm.schema import CATEGORY, EVENT_TIMESTAMP, ITEM_ID, USER_ID
from recsys_llm.timestamps import TIMESTAMP

MakeConfig = Callable[..., Config]
T = datetime(2024, 5, 1, 12, tzinfo=UTC)
US = timedelta(microseconds=1)


def rows(batches: Iterator[Any]) -> list[dict[str, Any]]:
    return [row for batch in batches for row in batch.to_pylist()]


def items_table(ids: Any, times: list[datetime | None] | None = None, **columns: Any) -> Any:
    stamps = pa.array(times or [T] * len(ids), TIMESTAMP)
    return pa.table({ITEM_ID: ids, EVENT_TIMESTAMP: stamps, CATEGORY: pa.array(["c"] * len(ids)), **columns})


def events_table(users: Any, items: Any, times: list[datetime | None], **columns: Any) -> Any:
    return pa.table({USER_ID: users, ITEM_ID: items, EVENT_TIMESTAMP: pa.array(times, TIMESTAMP), **columns})
