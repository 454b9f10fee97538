"""Checks and conversions of single columns of the raw tables; each names source, row and column of what it refuses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from recsys_llm.errors import RowError, SchemaError, did_you_mean
from recsys_llm.sources.base import Predicate, Source, require_columns
from recsys_llm.timestamps import FUTURE_TOLERANCE, TIMESTAMP, now


def require_ids(schema: Any, columns: Sequence[str], *, name: str) -> None:
    """Refuse id columns that are neither strings nor integers, with SchemaError."""
    for column in columns:
        found = _plain_type(schema, column, name)
        if not (_is_text(found) or pa.types.is_integer(found) or pa.types.is_null(found)):
            raise SchemaError(
                f"{name}: column {column!r}: expected ids as strings or integers, found {found}; cast them"
            )


def require_texts(schema: Any, columns: Sequence[str], *, name: str, remedy: str) -> None:
    """Refuse text columns that are missing or no strings with SchemaError; ``remedy`` is for a missing one."""
    for column in columns:
        if column not in schema.names:
            raise SchemaError(f"{name}: column {column!r} is missing; {did_you_mean(column, schema.names)}; {remedy}")
        found = _plain_type(schema, column, name)
        if not (_is_text(found) or pa.types.is_integer(found) or pa.types.is_null(found)):
            raise SchemaError(f"{name}: column {column!r}: expected strings, found {found}; cast it in the source")


def require_numbers(schema: Any, columns: Sequence[str], *, name: str) -> None:
    """Refuse columns that are no numbers, with SchemaError."""
    for column in columns:
        found = _plain_type(schema, column, name)
        numeric = pa.types.is_integer(found) or pa.types.is_floating(found) or pa.types.is_decimal(found)
        if not (numeric or pa.types.is_null(found)):
            raise SchemaError(f"{name}: column {column!r}: expected numbers, found {found}; cast it in the source")


def id_column(batch: Any, column: str, source: Source) -> Any:
    """Return the ids as strings; a null or empty one is refused with RowError."""
    ids = batch.column(column).cast(pa.string())
    if ids.null_count:
        where = _first(source, column, lambda raw: raw.column(column).is_null())
        raise RowError(
            f"{source.name}: {where}column {column!r}: expected an id, found null; fill or leave out the row"
        )
    if batch.num_rows and pc.min(pc.binary_length(ids)).as_py() == 0:
        where = _first(source, column, lambda raw: pc.equal(raw.column(column).cast(pa.string()), ""))
        raise RowError(f"{source.name}: {where}column {column!r}: expected an id, found ''; fill or leave out the row")
    return ids


def known_times(batch: Any, column: str, source: Source, *, null: datetime | None = None) -> Any:
    """Return the stamps as ``timestamp[us, tz=UTC]``; one in the future is refused, and a null where ``null`` is None.

    Raises
    ------
    RowError
        A stamp is later than now plus :data:`recsys_llm.timestamps.FUTURE_TOLERANCE`, or null.
    """
    times = batch.column(column).cast(TIMESTAMP)
    if times.null_count:
        if null is None:
            where = _first(source, column, lambda raw: raw.column(column).is_null())
            raise RowError(
                f"{source.name}: {where}column {column!r}: expected a timestamp, found null; leave out the row"
            )
        times = times.fill_null(pa.scalar(null, TIMESTAMP))
    latest = now() + FUTURE_TOLERANCE
    newest = pc.max(times).as_py()
    if newest is not None and newest > latest:
        limit = pa.scalar(latest, TIMESTAMP)
        where = _first(source, column, lambda raw: pc.greater(raw.column(column).cast(TIMESTAMP), limit))
        raise RowError(
            f"{source.name}: {where}column {column!r}: {newest.isoformat()} is in the future "
            f"(now: {now().isoformat()}), and would block every later write to the online store; correct it, "
            "or read up to now with an end"
        )
    return times


def text_column(batch: Any, column: str | None) -> Any:
    """Return the texts as strings; all null where there is no such column."""
    return pa.nulls(batch.num_rows, pa.string()) if column is None else batch.column(column).cast(pa.string())


def number_column(batch: Any, column: str | None, source: Source) -> Any:
    """Return the numbers as float32, NaN as null; an infinite one is refused with RowError."""
    if column is None:
        return pa.nulls(batch.num_rows, pa.float32())
    numbers = _as_float32(batch.column(column))
    if pc.any(pc.is_inf(numbers)).as_py():
        where = _first(source, column, lambda raw: pc.is_inf(_as_float32(raw.column(column))))
        raise RowError(f"{source.name}: {where}column {column!r}: expected a finite number, found infinity; correct it")
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float32()), numbers)


def without_events(batch: Any, column: str, ignored: Sequence[str]) -> Any:
    """Return the rows whose event is not in ``ignored``; a null event stays."""
    events = batch.column(column).cast(pa.string())
    return batch.filter(pc.invert(pc.is_in(events, value_set=pa.array(list(ignored), pa.string()))))


def non_empty(batches: Iterable[Any]) -> Iterator[Any]:
    """Yield the batches that have rows."""
    return (batch for batch in batches if batch.num_rows)


def require_order(
    batches: Iterable[Any], keys: Sequence[str], source: Source, *, raw: Sequence[str], unique: bool
) -> Iterator[Any]:
    """Yield ``batches`` unchanged, having checked that they are sorted by ``keys``.

    Databases sort texts by their own collations, and a wrong order would mix up users silently.

    Parameters
    ----------
    batches
        With the columns ``keys``, which hold no nulls.
    keys, raw
        Sort columns in ``batches``, and what the source calls them.
    source
        For messages.
    unique
        Whether two rows with equal keys are refused as well.

    Raises
    ------
    RowError
        A key comes twice although ``unique``.
    SchemaError
        The source sorts otherwise than by code point.
    """
    last: Any = None
    for batch in batches:
        rows = batch.select(list(keys))
        joined = rows if last is None else pa.concat_batches([last, rows])
        rising, equal = _compare_neighbours(joined)
        if not pc.all(rising, min_count=0).as_py():
            bad = pc.index(rising, False).as_py()
            found = joined.slice(bad, 2).to_pylist()
            raise SchemaError(
                f"{source.name}: rows are not sorted by {', '.join(raw)} in code point order: {found[0]} comes before "
                f"{found[1]}; give the id columns a binary collation in the query"
            )
        if unique and pc.any(equal).as_py():
            _refuse_duplicate(joined.slice(pc.index(equal, True).as_py(), 1), source, raw)
        last = rows.slice(rows.num_rows - 1)
        yield batch


def _compare_neighbours(rows: Any) -> tuple[Any, Any]:
    """Return for each row but the last: whether it sorts before or like the next, and whether its keys are the same."""
    count = max(rows.num_rows - 1, 0)
    equal = pa.array([True] * count, pa.bool_())
    rising = equal
    for column in reversed(rows.columns):
        here, after = column.slice(0, count), column.slice(1)
        same = pc.equal(here, after)
        rising = pc.or_(pc.less(here, after), pc.and_(same, rising))
        equal = pc.and_(equal, same)
    return rising, equal


def _refuse_duplicate(row: Any, source: Source, raw: Sequence[str]) -> None:
    item, time = (column[0] for column in row.columns)

    def same(batch: Any) -> Any:
        ids = pc.equal(batch.column(raw[0]).cast(pa.string()), item)
        return pc.and_(ids, pc.equal(batch.column(raw[1]).cast(TIMESTAMP).fill_null(time), time))

    where = " and ".join(source.rows(list(raw), same))
    raise RowError(
        f"{source.name}: {where}, columns {raw[0]!r}, {raw[1]!r}: ({item.as_py()!r}, {time.as_py().isoformat()}) "
        "comes twice; one id may have several rows only at different times"
    )


def _first(source: Source, column: str, predicate: Predicate) -> str:
    where = source.rows([column], predicate, limit=1)
    return f"{where[0]}, " if where else ""


def _plain_type(schema: Any, column: str, name: str) -> Any:
    require_columns(schema, [column], name=name)
    found = schema.field(column).type
    return found.value_type if pa.types.is_dictionary(found) else found


def _is_text(found: Any) -> bool:
    return bool(pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found))


def _as_float32(numbers: Any) -> Any:
    return numbers.cast(pa.float64(), safe=False).cast(pa.float32(), safe=False)
