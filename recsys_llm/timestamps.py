"""The one clock of the package: tz-aware UTC at microseconds.

Feast's point-in-time join is inclusive: a feature row stamped ``t`` is seen by an example at ``t``. A user row that was
computed from events up to and including ``t`` is therefore stamped after ``t``: by a microsecond, or at the end of
the period that a batch job would have waited for (:func:`valid_from`).
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys_llm.errors import ConfigError, SchemaError

TIMESTAMP: Any
"""Arrow type of every timestamp, microseconds in UTC. Nanoseconds break DuckDB's casts."""

MICROSECOND = timedelta(microseconds=1)

BEGINNING = datetime(1970, 1, 2, tzinfo=UTC)
"""Stamp of a row that has always been valid (an item without a timestamp). Redis reads the epoch itself as missing."""

FUTURE_TOLERANCE = timedelta(minutes=5)
"""A row stamped later than now plus this is refused: on Redis it would block every later write."""

_GRANULARITY = re.compile(r"^([1-9][0-9]*)(m|h|d)\Z")
_UNITS = {"m": 60_000_000, "h": 3_600_000_000, "d": 86_400_000_000}


def __getattr__(name: str) -> Any:
    # Readers of an online store know the time without pyarrow.
    if name == "TIMESTAMP":
        import pyarrow as pa

        return pa.timestamp("us", tz="UTC")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def now() -> datetime:
    """Return the present as tz-aware UTC."""
    return datetime.now(UTC)


def as_utc(value: datetime, *, name: str = "timestamp") -> datetime:
    """Return ``value`` in UTC; a naive one is refused, since nobody can know its zone.

    Raises
    ------
    SchemaError
        ``value`` has no time zone.
    """
    if value.tzinfo is None:
        raise SchemaError(f"{name}: expected a tz-aware datetime, found naive {value!r}; add tzinfo=UTC")
    return value.astimezone(UTC)


def to_micros(value: datetime) -> int:
    """Return microseconds since the epoch.

    Examples
    --------
    >>> to_micros(datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC))
    1000000
    """
    return (as_utc(value) - datetime(1970, 1, 1, tzinfo=UTC)) // MICROSECOND


def from_micros(value: int) -> datetime:
    """Return the tz-aware UTC datetime of ``value`` microseconds since the epoch."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=int(value))


def parse_granularity(text: str) -> int:
    """Return the period of ``text`` in microseconds; 0 for ``event``.

    Raises
    ------
    ConfigError
        ``text`` is neither ``event`` nor a whole number of minutes, hours or days.

    Examples
    --------
    >>> parse_granularity("event"), parse_granularity("1d")
    (0, 86400000000)
    """
    if text == "event":
        return 0
    match = _GRANULARITY.match(text)
    if match is None:
        raise ConfigError(f"granularity: expected 'event' or a period like '30m', '1h', '1d', found {text!r}")
    return int(match[1]) * _UNITS[match[2]]


def valid_from(event_micros: npt.NDArray[np.int64], period: int) -> npt.NDArray[np.int64]:
    """Return when a row computed from events up to each time may first be seen.

    Parameters
    ----------
    event_micros : int64 (n,)
        Time of the newest event in each row, microseconds since the epoch.
    period
        Microseconds, from :func:`parse_granularity`. 0: one microsecond after the event. Otherwise: the end of the
        period that the event falls in.

    Returns
    -------
    int64 (n,)
        Always strictly later than ``event_micros``.

    Examples
    --------
    >>> valid_from(np.array([0, 59_999_999, 60_000_000]), 60_000_000).tolist()
    [60000000, 60000000, 120000000]
    """
    if period == 0:
        return event_micros + 1
    return (event_micros // period + 1) * period
