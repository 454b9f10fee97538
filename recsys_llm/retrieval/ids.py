"""Entity keys as callers hand them in, checked before anything is asked of a store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys_llm.errors import RowError, SchemaError

Ids = npt.NDArray[np.object_]


def check_ids(ids: Any, *, name: str) -> Ids:
    """Return entity keys as object (n,) of str.

    Raises
    ------
    SchemaError, RowError
        As :func:`checked_list`.
    """
    values = checked_list(ids, name=name)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def checked_list(ids: Any, *, name: str) -> list[str]:
    """Return entity keys as a list.

    Raises
    ------
    SchemaError
        ``ids`` is a single string, or no sequence.
    RowError
        One of them is null, no string, or can't be encoded in UTF-8; the message gives its place.
    """
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):
        raise SchemaError(f"{name}: expected a sequence of str, found {type(ids).__name__} {ids!r}; put it in a list")
    values = list(ids)
    try:
        "".join(values).encode("utf-8")
    except (TypeError, UnicodeEncodeError):
        for place, value in enumerate(values):
            check_id(value, name=f"{name}[{place}]")
    return values


def check_id(value: Any, *, name: str) -> None:
    """Refuse what is no entity key.

    Raises
    ------
    RowError
        It is null, no string, or can't be encoded in UTF-8.
    """
    if not isinstance(value, str):
        found = "null" if _is_null(value) else f"{type(value).__name__} {value!r}"
        remedy = "leave it out" if found == "null" else f"use {str(value)!r}"
        raise RowError(f"{name}: expected a str, found {found}; {remedy}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError(f"{name}: expected text, found a lone surrogate in {value!r}; remove it") from None


def check_no_nul(values: Sequence[str], *, name: Callable[[int], str]) -> None:
    """Refuse a NUL character in what pandas is to compare: it takes two texts for one that are alike up to there.

    Parameters
    ----------
    name
        Of the value at a place, in messages.

    Raises
    ------
    RowError
        One of them holds it.
    """
    if "\0" in "".join(values):
        place = next(place for place, value in enumerate(values) if "\0" in value)
        raise RowError(
            f"{name(place)}: expected text, found a NUL character in {values[place]!r}: up to it, it could be "
            "taken for another one; remove it"
        )


def _is_null(value: Any) -> bool:
    """Return whether a value stands for missing: None, NaN, or pandas' NaT and NA (which compares to nothing)."""
    if value is None or type(value).__name__ == "NAType":
        return True
    unequal = value != value
    return isinstance(unequal, bool | np.bool_) and bool(unequal)
