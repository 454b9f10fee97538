"""Examples as callers hand them in, checked before anything is asked of Feast."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from recsys_llm.errors import RowError, SchemaError, did_you_mean
from recsys_llm.retrieval.ids import Ids, check_id, check_ids, check_no_nul
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM_ID, SEGMENT, USER_ID

__all__ = ["Ids", "Micros", "check_examples", "check_id", "check_ids", "check_segments", "check_timestamps"]

Micros = npt.NDArray[np.int64]


def check_timestamps(timestamps: Any, *, name: str) -> Micros:
    """Return times as int64 (n,), microseconds since the epoch.

    Parameters
    ----------
    timestamps
        A tz-aware Series, DatetimeIndex or sequence of datetimes.

    Raises
    ------
    SchemaError
        They are no times, or have no time zone.
    RowError
        One of them is null, or finer than a microsecond.
    """
    series = pd.Series(timestamps) if not isinstance(timestamps, pd.Series) else timestamps
    if not len(series):
        return np.empty(0, dtype=np.int64)
    if not isinstance(series.dtype, pd.DatetimeTZDtype):
        remedy = f"pd.to_datetime(..., utc=True) makes it from {series.dtype}"
        if pd.api.types.is_datetime64_dtype(series.dtype):
            remedy = 'nobody can know their zone; if it is UTC, use .dt.tz_localize("UTC")'
        raise SchemaError(f"{name}: expected tz-aware timestamps (datetime64[us, UTC]), found {series.dtype}; {remedy}")
    missing = np.flatnonzero(series.isna().to_numpy()).tolist()
    if missing:
        raise RowError(f"{name}: row {_row(series, missing[0])} is null; every row needs a time: drop it")
    times = series.dt.tz_convert("UTC")
    micros = times.dt.as_unit("us")
    inexact = np.flatnonzero((micros != times).to_numpy()).tolist()
    if inexact:
        raise RowError(
            f"{name}: row {_row(series, inexact[0])} is {series.iloc[inexact[0]]!r}, finer than a microsecond; "
            'use .dt.floor("us")'
        )
    return np.asarray(micros.astype("int64"), dtype=np.int64)


def check_examples(examples: Any) -> tuple[Ids, Ids, Micros]:
    """Return the user ids, item ids and times (microseconds) of training examples.

    Raises
    ------
    SchemaError
        ``examples`` is no frame, or a column is missing or of another type.
    RowError
        An id or a time is null or can't be used; the message names row and column.
    """
    if not isinstance(examples, pd.DataFrame):
        raise SchemaError(
            f"examples: expected a pandas DataFrame, found {type(examples).__name__}; a string would be run as SQL by "
            "Feast: read it into a frame first"
        )
    repeated = examples.columns[examples.columns.duplicated()]
    if len(repeated):
        raise SchemaError(f"examples: expected distinct columns, found {repeated[0]!r} twice; rename one")
    for column in (USER_ID, ITEM_ID, EVENT_TIMESTAMP):
        if column not in examples.columns:
            hint = did_you_mean(column, [str(name) for name in examples.columns])
            raise SchemaError(f"examples: column {column!r} is missing; {hint}")
    return (
        _ids(examples[USER_ID], USER_ID),
        _ids(examples[ITEM_ID], ITEM_ID),
        check_timestamps(examples[EVENT_TIMESTAMP], name=f"examples, column {EVENT_TIMESTAMP!r}"),
    )


def no_examples() -> pd.DataFrame:
    """Return a frame of no examples, with the columns of some."""
    columns = {name: pd.Series([], dtype=object) for name in (USER_ID, ITEM_ID)}
    return pd.DataFrame({**columns, EVENT_TIMESTAMP: pd.Series([], dtype="datetime64[us, UTC]")})


def check_segments(examples: pd.DataFrame) -> Ids | None:
    """Return the segment of each example's user as object (n,) of str or None; None without such a column.

    Raises
    ------
    SchemaError
        A segment is no string.
    """
    if SEGMENT not in examples.columns:
        return None
    series = examples[SEGMENT]
    codes, distinct = pd.factorize(series)
    known = np.array([*distinct, None], dtype=object)
    for code, value in enumerate(known[:-1]):
        if not isinstance(value, str):
            raise SchemaError(
                f"examples: column {SEGMENT!r}, row {_row(series, np.argmax(codes == code))}: expected str or null, "
                f"found {type(value).__name__} {value!r}; use .astype(str), or rename the column if it is no segment"
            )
    given = [value if isinstance(value, str) else "" for value in series]
    check_no_nul(given, name=lambda place: f"examples: column {SEGMENT!r}, row {_row(series, place)}")
    segments: Ids = known[codes]
    return segments


def _ids(series: pd.Series[Any], column: str) -> Ids:
    if not len(series):
        return np.empty(0, dtype=object)
    missing = np.flatnonzero(series.isna().to_numpy()).tolist()
    if missing:
        raise RowError(f"examples: row {_row(series, missing[0])}, column {column!r}: null; drop the row")
    if pd.api.types.is_numeric_dtype(series.dtype) or pd.api.types.is_datetime64_any_dtype(series.dtype):
        raise SchemaError(f"examples: column {column!r}: expected str, found {series.dtype}; use .astype(str)")
    codes, distinct = pd.factorize(series)
    values = np.asarray(distinct, dtype=object)
    for code, value in enumerate(values):
        if not isinstance(value, str):
            raise SchemaError(
                f"examples: column {column!r}, row {_row(series, np.argmax(codes == code))}: expected str, found "
                f"{type(value).__name__} {value!r}; use .astype(str)"
            )
        if not _is_utf8(value):
            check_id(value, name=f"examples: column {column!r}, row {_row(series, np.argmax(codes == code))}")
    check_no_nul(series.tolist(), name=lambda place: f"examples: column {column!r}, row {_row(series, place)}")
    return values[codes]


def _is_utf8(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _row(series: pd.Series[Any], position: Any) -> str:
    """Return how to name a row: its place from 0, and its label where that is another."""
    label = series.index[int(position)]
    label = label.item() if isinstance(label, np.generic) else label
    return f"{int(position)}" if label == int(position) else f"{int(position)} (index {label!r})"
