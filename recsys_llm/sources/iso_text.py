"""Timestamps as ISO 8601 texts, which is how sqlite stores them.

sqlite's own date functions are exact to a millisecond only, and texts with different offsets don't compare. So the
connection gets a function of ours that turns a text into microseconds, to filter and sort by.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from recsys_llm.errors import RowError
from recsys_llm.timestamps import to_micros

SQL_FUNCTION = "recsys_llm_micros"

_TOO_FINE = re.compile(r"[.,]\d{6}\d*[1-9]")


class IsoTextReader:
    """Reads ISO texts of one column, and remembers the first that it refused: sqlite passes on no exception."""

    def __init__(self, source: str, column: str) -> None:
        self._where = f"{source}: column {column!r}"
        self.problem: RowError | None = None

    def register(self, connection: Any, _: Any) -> None:
        """Add the SQL function to a new connection; an SQLAlchemy ``connect`` listener."""
        connection.create_function(SQL_FUNCTION, 1, self.micros, deterministic=True)

    def micros(self, value: Any) -> int | None:
        """Return microseconds since the epoch, or None for a null.

        Raises
        ------
        RowError
            The value is no text, is not ISO 8601, has no offset, or is finer than a microsecond.

        Examples
        --------
        >>> IsoTextReader("events", "time").micros("1970-01-01 01:00:00.000001+01:00")
        1
        """
        if value is None:
            return None
        try:
            return to_micros(self._parse(value))
        except RowError as problem:
            self.problem = self.problem or problem
            raise

    def _parse(self, value: Any) -> datetime:
        expected = "expected ISO 8601 text with an offset, such as '2024-01-31 12:00:00+00:00'"
        if not isinstance(value, str):
            remedy = "in the query, convert Unix seconds with strftime('%Y-%m-%dT%H:%M:%fZ', ..., 'unixepoch')"
            raise RowError(f"{self._where}: {expected}, found {value!r}; {remedy}")
        if _TOO_FINE.search(value):
            raise RowError(f"{self._where}: expected whole microseconds, found {value!r}; round it in the query")
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            raise RowError(f"{self._where}: {expected}, found {value!r}; convert it in the query") from None
        if time.tzinfo is None:
            remedy = "if the values are UTC, append '+00:00' in the query"
            raise RowError(f"{self._where}: {expected}, found {value!r} without one; {remedy}")
        return time
