"""From the Python values that database drivers return to Arrow types and arrays."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pyarrow as pa

from recsys_llm.errors import RowError, SchemaError
from recsys_llm.timestamps import TIMESTAMP

_KINDS: dict[type, Any] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    Decimal: pa.float64(),
    str: pa.string(),
    UUID: pa.string(),
    dict: pa.string(),
    list: pa.string(),
    bytes: pa.binary(),
    memoryview: pa.binary(),
    date: pa.date32(),
}
_CONVERTERS: dict[type, Callable[[Any], Any]] = {
    Decimal: float,
    UUID: str,
    dict: json.dumps,
    list: json.dumps,
    memoryview: bytes,
}


def arrow_type(values: Sequence[Any], column: str, *, name: str) -> Any:
    """Return the one Arrow type that holds ``values``, none of which is None; null where there are none.

    Raises
    ------
    SchemaError
        The values are of kinds that no type holds, such as numbers and texts.

    Examples
    --------
    >>> arrow_type([1, 2.5], "price", name="items")
    DataType(double)
    """
    found = {_type_of(value) for value in values}
    if not found:
        return pa.null()
    if found == {pa.int64(), pa.float64()}:
        return pa.float64()
    if len(found) > 1 or None in found:
        kinds = ", ".join(sorted({type(value).__name__ for value in values}))
        raise SchemaError(
            f"{name}: column {column!r}: expected values of one type, found {kinds}; cast it in the query"
        )
    return found.pop()


def to_array(values: Sequence[Any], type_: Any, *, name: str, column: str, offset: int) -> Any:
    """Return ``values`` as an Arrow array of ``type_``, whose types came from :func:`arrow_type`.

    Raises
    ------
    RowError
        A value doesn't fit; it is named with its row, ``offset`` being that of the first value.
    """
    if pa.types.is_timestamp(type_) and values and not any(isinstance(value, datetime) for value in values):
        return pa.array(values, pa.int64()).cast(type_)  # microseconds, from sqlite
    for index, value in enumerate(values):
        if value is not None and not _fits(value, type_):
            raise RowError(
                f"{name}: row {offset + index} as read, column {column!r}: expected {type_} as in the first rows, "
                f"found {value!r}; cast the column to one type in the query"
            )
    return pa.array([_CONVERTERS.get(type(value), _same)(value) for value in values], type_)


def _type_of(value: Any) -> Any:
    if isinstance(value, datetime):
        return pa.timestamp("us") if value.tzinfo is None else TIMESTAMP
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return None
    return _KINDS.get(type(value))


def _fits(value: Any, type_: Any) -> bool:
    found = _type_of(value)
    return bool(found == type_ or (found == pa.int64() and type_ == pa.float64()))


def _same(value: Any) -> Any:
    return value
