"""The raw tables as everyone else reads them: fixed column names and types, checked, ordered, in constant memory.

========================  ==========================================================================================
table                     columns
========================  ==========================================================================================
:func:`items`             ``item_id`` string, ``event_timestamp``, ``category`` string; every other raw column as it is
:func:`interactions`      ``user_id``, ``item_id`` string, ``event_timestamp``, ``rating``, ``price`` float32, ``liked``
:func:`users`             ``user_id``, ``event_timestamp``, ``segment`` string; every other raw column as it is
:func:`user_words`        ``user_id``, ``text`` string, ``event_timestamp``
========================  ==========================================================================================

``event_timestamp`` is ``timestamp[us, tz=UTC]``. Ids are strings and sort as strings.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from heapq import merge
from itertools import islice
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from recsys_llm.config import Config, InteractionsConfig, ItemsConfig, UsersConfig, UserWordsConfig
from recsys_llm.schema import CATEGORY, EVENT_TIMESTAMP, ITEM_ID, PRICE, SEGMENT, USER_ID
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
    names = {ITEM_ID: table.key, CATEGORY: table.category}
    return _versions(config, table, "items", names, start=start, end=end, batch_rows=batch_rows)


def users(
    config: Config, *, start: datetime | None = None, end: datetime | None = None, batch_rows: int = BATCH_ROWS
) -> Iterator[Any]:
    """Yield the profiles with ``start < event_timestamp <= end``, ordered by (``user_id``, ``event_timestamp``).

    Nothing is yielded where ``users`` is not configured. Otherwise as :func:`items`: a profile without a timestamp has
    :data:`recsys_llm.timestamps.BEGINNING`.

    Raises
    ------
    SchemaError
        A column is missing or has another type.
    RowError
        An id is null or empty, (id, timestamp) is not unique, or a stamp is in the future.
    """
    table = config.sources.users
    if table is None:
        return iter(())
    names = {USER_ID: table.key, SEGMENT: table.segment}
    return _versions(config, table, "users", names, start=start, end=end, batch_rows=batch_rows)


def interactions(
    config: Config,
    *,
    start: datetime | None = None,
    end: datetime | None = None,
    order_by: Order = "user",
    batch_rows: int = BATCH_ROWS,
    segments: bool = False,
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
    segments
        Add the column ``segment`` (string), null where none is configured.

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
    segment = [table.segment] if segments and table.segment else []
    require_texts(schema, segment, name=source.name, remedy="leave segment out if there is none")
    optional = [column for column in (table.event, table.rating, table.price) if column] + segment
    raw_names = {USER_ID: table.user, ITEM_ID: table.item, EVENT_TIMESTAMP: table.timestamp}
    keys = _ORDERS[order_by]
    raw_keys = tuple(raw_names[key] for key in keys)
    raw = source.batches(
        list(dict.fromkeys([table.user, table.item, table.timestamp, *optional])),
        start=start,
        end=end,
        order_by=(*raw_keys, *segment),  # of duplicates, the same row is kept every time
        batch_rows=batch_rows,
        null_timestamps=True,
    )
    checked = non_empty(_event_rows(batch, table, source, segments) for batch in raw)
    ordered = require_order(checked, keys, source, raw=raw_keys, unique=False)
    single = collapse_duplicates(ordered, (USER_ID, ITEM_ID, EVENT_TIMESTAMP), largest=(RATING, PRICE))
    return (_with_liked(batch, table.liked_from) for batch in rechunk(single, batch_rows))


def user_words(
    config: Config, *, start: datetime | None = None, end: datetime | None = None, batch_rows: int = BATCH_ROWS
) -> Iterator[Any]:
    """Yield what users wrote with ``start < event_timestamp <= end``, by (user, time, text), all tables together.

    Nothing is yielded where ``user_words`` is not configured. A null text is left out.

    Raises
    ------
    SchemaError
        A column is missing or has another type.
    RowError
        A user or a timestamp is null, or a stamp is in the future.
    """
    streams = [_words(config, table, start, end, batch_rows) for table in config.sources.user_words]
    return streams[0] if len(streams) == 1 else _merged(streams, batch_rows)


def _words(
    config: Config, table: UserWordsConfig, start: datetime | None, end: datetime | None, batch_rows: int
) -> Iterator[Any]:
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


def _merged(streams: list[Iterator[Any]], batch_rows: int) -> Iterator[Any]:
    """Merge streams of words; Python sorts texts as the sources do, by code point."""
    rows = merge(*(_rows(stream) for stream in streams))
    while some := list(islice(rows, batch_rows)):
        users_, micros, texts = zip(*some, strict=True)
        columns = [pa.array(users_, pa.string()), pa.array(texts, pa.string()), pa.array(micros).cast(TIMESTAMP)]
        yield pa.record_batch(columns, schema=USER_WORDS_SCHEMA)


def _rows(stream: Iterator[Any]) -> Iterator[tuple[str, int, str]]:
    for batch in stream:
        micros = batch.column(EVENT_TIMESTAMP).cast(pa.int64()).to_pylist()
        yield from zip(batch.column(USER_ID).to_pylist(), micros, batch.column(TEXT).to_pylist(), strict=True)


def _versions(
    config: Config,
    table: ItemsConfig | UsersConfig,
    name: str,
    names: dict[str, str | None],
    *,
    start: datetime | None,
    end: datetime | None,
    batch_rows: int,
) -> Iterator[Any]:
    """Yield the versions of items or users; ``names`` are the canonical names of the key and of an optional text."""
    (key, _), (text, raw_text) = names.items()
    source = open_source(table, config.root, name=name)
    schema = source.schema()
    require_ids(schema, [table.key], name=source.name)
    if raw_text is not None:
        require_texts(schema, [raw_text], name=source.name, remedy=f"set {text}: null if there is none")
    others = [column for column in schema.names if column not in (key, EVENT_TIMESTAMP, text)]
    wanted = list(dict.fromkeys([table.key, table.timestamp, *([raw_text] if raw_text else []), *others]))
    always = (start is None or start < BEGINNING) and (end is None or end >= BEGINNING)
    raw = source.batches(
        wanted,
        start=start,
        end=end,
        order_by=(table.key, table.timestamp),
        batch_rows=batch_rows,
        null_timestamps=always,
    )

    def rows(batch: Any) -> Any:
        columns: dict[str, Any] = {
            key: id_column(batch, table.key, source),
            EVENT_TIMESTAMP: known_times(batch, table.timestamp, source, null=BEGINNING),
            text: text_column(batch, raw_text),
        }
        return pa.record_batch(columns | {column: batch.column(column) for column in others})

    checked = (rows(batch) for batch in raw)
    return require_order(checked, (key, EVENT_TIMESTAMP), source, raw=(table.key, table.timestamp), unique=True)


def _event_rows(batch: Any, table: InteractionsConfig, source: Source, segments: bool) -> Any:
    if table.event is not None and table.ignore_events:
        batch = without_events(batch, table.event, table.ignore_events)
    columns: dict[str, Any] = {
        USER_ID: id_column(batch, table.user, source),
        ITEM_ID: id_column(batch, table.item, source),
        EVENT_TIMESTAMP: known_times(batch, table.timestamp, source),
        RATING: number_column(batch, table.rating, source),
        PRICE: number_column(batch, table.price, source),
    }
    return pa.record_batch(columns | ({SEGMENT: text_column(batch, table.segment)} if segments else {}))


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
    if SEGMENT in batch.schema.names:
        columns = [*batch.columns[:-1], pa.array(liked), batch.column(SEGMENT)]
        return pa.record_batch(columns, schema=INTERACTIONS_SCHEMA.append(pa.field(SEGMENT, pa.string())))
    return pa.record_batch([*batch.columns, pa.array(liked)], schema=INTERACTIONS_SCHEMA)
