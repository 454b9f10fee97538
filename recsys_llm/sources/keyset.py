"""Going on in a sorted SQL result after the connection was lost, by the key of the last row (keyset pagination)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

NULLS_LAST = {"postgresql", "oracle"}
"""Dialects that sort nulls after all values; the others sort them before."""


class KeyGroups:
    """Hands out rows whole groups of one sort key at a time, so that a group is either all handed out or not at all.

    Parameters
    ----------
    keys
        How many of the last columns are the sort key; 0: there is none, and nothing to go on from.

    Examples
    --------
    >>> groups = KeyGroups(1)
    >>> groups.add([("a", 1), ("b", 2), ("c", 2)]), groups.position
    ([('a', 1)], (1,))
    >>> groups.forget()  # the connection is lost: "b" and "c" come again
    >>> groups.add([("b", 2), ("c", 2)]), groups.rest(), groups.position
    ([], [('b', 2), ('c', 2)], (2,))
    """

    def __init__(self, keys: int) -> None:
        self._keys = keys
        self._held: list[Sequence[Any]] = []
        self.position: tuple[Any, ...] | None = None
        """Sort key of the last row that was handed out."""

    def add(self, rows: Sequence[Sequence[Any]]) -> list[Sequence[Any]]:
        """Take rows in their order, and return those whose groups are known to be whole."""
        if not self._keys:
            return list(rows)
        held = [*self._held, *rows]
        last = self._key(held[-1])
        end = next((place + 1 for place in range(len(held) - 2, -1, -1) if self._key(held[place]) != last), 0)
        return self._hand_out(held, end)

    def rest(self) -> list[Sequence[Any]]:
        """Return what was held back; the result has ended."""
        return self._hand_out(self._held, len(self._held))

    def forget(self) -> None:
        """Drop what was held back: it will be read again."""
        self._held = []

    def _hand_out(self, rows: list[Sequence[Any]], end: int) -> list[Sequence[Any]]:
        whole, self._held = rows[:end], rows[end:]
        if whole:
            self.position = self._key(whole[-1])
        return whole

    def _key(self, row: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(row[len(row) - self._keys :])


def after(keys: Sequence[Any], values: Sequence[Any], *, nulls_last: bool) -> Any:
    """Return the condition that a row sorts after ``values``.

    Parameters
    ----------
    keys
        Expressions that the result is sorted by, ascending.
    values
        Bound values of one row; None stands for null.
    """
    return sa.or_(sa.false(), *_places(keys, values, nulls_last))


def _places(keys: Sequence[Any], values: Sequence[Any], nulls_last: bool) -> Iterator[Any]:
    """Yield for each key: all keys before it are equal, and it sorts later."""
    for place, (key, value) in enumerate(zip(keys, values, strict=True)):
        equal = [
            one.is_(None) if other is None else one == other
            for one, other in zip(keys[:place], values[:place], strict=True)
        ]
        if value is None:
            later = sa.false() if nulls_last else key.is_not(None)
        else:
            later = sa.or_(key > value, key.is_(None)) if nulls_last else key > value
        yield sa.and_(*equal, later)
