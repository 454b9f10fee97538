"""The raw tables as everyone else reads them: fixed column names and types, checked, ordered, in constant memory.

========================  ==========================================================================================
table                     columns
========================  ==========================================================================================
:func:`items`             ``item_id`` string, ``event_timestamp``, ``category`` string; every other raw column as it is
:func:`interactions`      ``user_id``, ``item_id`` string, ``event_timestamp``, ``rating``, ``price`` float32, ``liked``
:func:`user_words`        ``user_id``, ``text`` string, ``event_timestamp``
========================  ==========================================================================================

``event_timestamp`` is ``timestamp[us, tz=UTC]``. Ids are strings and sort as strings.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from recsys_llm.config import Config, InteractionsConfig, ItemsConfig, UserWordsConfig
from recsys_llm.schema import CATEGORY, EVENT_TIMESTAMP, ITEM_ID, PRICE, USER_ID
from recsys_llm.sources.base import BATCH_ROWS, Source, rechunk
from recsys_llm.sources.checks import (
    id_column,
    known_times,
    non_empty,
    number_column,
    require_ids,
    require_numbers,
    require_order,
    require_texts,
    text_column,
    without_events,
)
from recsys_llm.sources.opening import open_source
from recsys_llm.sources.runs import collapse_duplicates
from recsys_llm.timestamps import BEGINNING, TIMESTAMP

RATING = "rating"
LIKED = "liked"
TEXT = "text"

INTERACTIONS_SCHEMA = pa.schema(
    [
        (USER_ID, pa.string()),
        (ITEM_ID, pa.string()),
        (EVENT_TIMESTAMP, TIMESTAMP),
        (RATING, pa.float32()),
        (PRICE, pa.float32()),
        (LIKED, pa.bool_()),
    ]
)
USER_WORDS_SCHEMA = pa.schema([(USER_ID, pa.string()), (TEXT, pa.string()), (EVENT_TIMESTAMP, TIMESTAMP)])

Order = Literal["user", "item", "time"]
_ORDERS: dict[str, tuple[str, ...]] = {
    "user": (USER_ID, EVENT_TIMESTAMP, ITEM_ID),
    "item": (ITEM_ID, EVENT_TIMESTAMP, USER_ID),
    "time": (EVENT_TIMESTAMP, USER_ID, ITEM_ID),
}


def items(
    config: Config, *, start: datetime | None = None, end: datetime | None = None, batch_rows: int = BATCH_ROWS
) -> Iterator[Any]:
    """Yield the item rows with ``start < event_timestamp <= end``, ordered by (``item_id``, ``event_timestamp``).

    An item without a timestamp has :data:`recsys_llm.timestamps.BEGINNING`. Raw columns that are called like one of the
    three canonical ones, but aren't the configured ones, are left out.

    Raises
    ------
    SchemaError
        A column is missing or has another type.
    RowError
        An id is null or empty, (id, timestamp) is not unique, or a stamp is in the future.
    """
    table = config.sources.items
    source = open_source(table, config.root, name="items")
    schema = source.schema()
    require_ids(schema, [table.key], name=source.name)
    if table.category is not None:
        require_texts(schema, [table.category], name=source.name, remedy="set category: null if there is none")
    others = [column for column in schema.names if column not in (ITEM_ID, EVENT_TIMESTAMP, CATEGORY)]
    wanted = list(dict.fromkeys([table.key, table.timestamp, *([table.category] if table.category else []), *others]))
    always = (start is None or start < BEGINNING) and (end is None or end >= BEGINNING)
    raw = source.batches(
        wanted,
        start=start,
        end=end,
        order_by=(table.key, table.timestamp),
        batch_rows=batch_rows,
        null_timestamps=always,
    )
    checked = (_item_rows(batch, table, source, others) for batch in raw)
    return require_order(checked, (ITEM_ID, EVENT_TIMESTAMP), source, raw=(table.key, table.timestamp), unique=True)


def interactions(
    config: Config,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    order_by: Order = "user",
    batch_rows: int = BATCH_ROWS,
) -> Iterator[Any]:
    """Yield the events with ``start < event_timestamp <= end``.

    Rows whose event is in ``ignore_events`` are left out. Rows that agree in user, item and timestamp are one, with the
    largest rating and the largest price; NaN counts as null. ``liked`` is ``rating >= liked_from`` (false for a null
    rating), or true where no ``liked_from`` is configured.

    Parameters
    ----------
    config
        Of the feature repository.
    start, end
        tz-aware; None is unbounded.
    order_by
        ``user``: (user, time, item); ``item``: (item, time, user); ``time``: (time, user, item).
    batch_rows
        Most rows per batch.

    Raises
    ------
    SchemaError
        A column is missing or has another type.
    RowError
        An id or a timestamp is null, a rating or price is infinite, or a stamp is in the future.
    """
    table = config.sources.interactions
    source = open_source(table, config.root, name="interactions")
    schema = source.schema()
    require_ids(schema, [table.user, table.item], name=source.name)
    require_numbers(schema, [column for column in (table.rating, table.price) if column], name=source.name)
    optional = [column for column in (table.event, table.rating, table.price) if column]
    raw_names = {USER_ID: table.user, ITEM_ID: table.item, EVENT_TIMESTAMP: table.timestamp}
    keys = _ORDERS[order_by]
    raw_keys = tuple(raw_names[key] for key in keys)
    raw = source.batches(
        list(dict.fromkeys([table.user, table.item, table.timestamp, *optional])),
        start=start,
        end=end,
        order_by=raw_keys,
        batch_rows=batch_rows,
        null_timestamps=True,
    )
    checked = non_empty(_event_rows(batch, table, source) for batch in raw)
    ordered = require_order(checked, keys, source, raw=raw_keys, unique=False)
    single = collapse_duplicates(ordered, (USER_ID, ITEM_ID, EVENT_TIMESTAMP), largest=(RATING, PRICE))
    return (_with_liked(batch, table.liked_from) for batch in rechunk(single, batch_rows))


def user_words(
    config: Config, *, start: datetime | None = None, end: datetime | None = None, batch_rows: int = BATCH_ROWS
) -> Iterator[Any]:
    """Yield what users wrote with ``start < event_timestamp <= end``, by (user, time, text).

    Nothing is yielded where ``user_words`` is not configured. A null text is left out.

    Raises
    ------
    SchemaError
        A column is missing or has another type.
    RowError
        A user or a timestamp is null, or a stamp is in the future.
    """
    table = config.sources.user_words
    if table is None:
        return iter(())
    source = open_source(table, config.root, name="user_words")
    schema = source.schema()
    require_ids(schema, [table.user], name=source.name)
    require_texts(schema, [table.text], name=source.name, remedy="set text: to its name")
    raw_keys = (table.user, table.timestamp, table.text)
    raw = source.batches(
        list(dict.fromkeys(raw_keys)),
        start=start,
        end=end,
        order_by=raw_keys,
        batch_rows=batch_rows,
        null_timestamps=True,
    )
    checked = non_empty(_word_rows(batch, table, source) for batch in raw)
    return require_order(checked, (USER_ID, EVENT_TIMESTAMP, TEXT), source, raw=raw_keys, unique=False)


def _item_rows(batch: Any, table: ItemsConfig, source: Source, others: list[str]) -> Any:
    columns: dict[str, Any] = {
        ITEM_ID: id_column(batch, table.key, source),
        EVENT_TIMESTAMP: known_times(batch, table.timestamp, source, null=BEGINNING),
        CATEGORY: text_column(batch, table.category),
    }
    columns |= {column: batch.column(column) for column in others}
    return pa.record_batch(columns)


def _event_rows(batch: Any, table: InteractionsConfig, source: Source) -> Any:
    if table.event is not None and table.ignore_events:
        batch = without_events(batch, table.event, table.ignore_events)
    return pa.record_batch(
        {
            USER_ID: id_column(batch, table.user, source),
            ITEM_ID: id_column(batch, table.item, source),
            EVENT_TIMESTAMP: known_times(batch, table.timestamp, source),
            RATING: number_column(batch, table.rating, source),
            PRICE: number_column(batch, table.price, source),
        }
    )


def _word_rows(batch: Any, table: UserWordsConfig, source: Source) -> Any:
    batch = batch.filter(batch.column(table.text).is_valid())
    columns = [
        id_column(batch, table.user, source),
        text_column(batch, table.text),
        known_times(batch, table.timestamp, source),
    ]
    return pa.record_batch(columns, schema=USER_WORDS_SCHEMA)


def _with_liked(batch: Any, liked_from: float | None) -> Any:
    if liked_from is None:
        liked = np.ones(batch.num_rows, dtype=np.bool_)
    else:
        ratings = batch.column(RATING).to_numpy(zero_copy_only=False)  # null -> NaN, which is not >= anything
        liked = ratings >= np.float32(liked_from)
    return pa.record_batch([*batch.columns, pa.array(liked)], schema=INTERACTIONS_SCHEMA)
