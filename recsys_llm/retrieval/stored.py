"""Columns of features in memory, without pyarrow: what kinds there are, and stored values shared by many rows.

A column is one of

- float32 (n,), NaN where the value is null;
- float32 (n, d), a row of NaN where the vector is missing;
- strings or lists, null where missing: a pyarrow array, or :class:`Cells` for rows that were read online, so that
  serving needs no pyarrow.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

Column = Any
"""float32 (n,) | float32 (n, d) | :class:`Cells` | pyarrow.Array of string or list."""
Rows = npt.NDArray[np.int64]


class Kind(StrEnum):
    """What a feature is in memory."""

    SCALAR = "scalar"
    """A number: float32 (n,)."""
    VECTOR = "vector"
    """Numbers of one length for all rows: float32 (n, d)."""
    STRING = "string"
    STRINGS = "strings"
    """A list of strings, of any length."""
    FLOATS = "floats"
    """A list of float32, of any length."""
    INTS = "ints"
    """A list of int64, of any length."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Strings or lists as Python objects.

    Parameters
    ----------
    kind
        STRING, STRINGS, FLOATS or INTS.
    values : object (n,)
        str, or tuple of str, float or int; None where missing.
    """

    kind: Kind
    values: npt.NDArray[np.object_]

    @classmethod
    def of(cls, kind: Kind, values: list[Any]) -> Cells:
        """Return cells of these values."""
        cells = np.empty(len(values), dtype=object)
        cells[:] = values
        return cls(kind, cells)

    def __len__(self) -> int:
        return len(self.values)

    def to_pylist(self) -> list[Any]:
        """Return str or list for each row; None where missing."""
        return [list(value) if isinstance(value, tuple) else value for value in self.values]

    def to_arrow(self) -> Any:
        """Return the pyarrow array of the same values."""
        import pyarrow as pa

        from recsys_llm.retrieval.columns import ARROW_TYPES

        return pa.array(self.values.tolist(), type=ARROW_TYPES[self.kind])


@dataclass(frozen=True, eq=False)
class Stored:
    """Values kept once, and which of them each row has.

    ``values`` ends with one extra row that stands for missing: NaN, or null.
    """

    values: Column
    rows: Rows
    """int64 (n,): position in ``values``."""

    def gather(self) -> Column:
        """Return the column, one value per row."""
        return take(self.values, self.rows)


@dataclass(frozen=True, eq=False)
class Columns(Mapping[str, Column]):
    """Columns by full feature name; when asked for, :class:`Stored` ones are gathered, and cells are made Arrow."""

    plain: Mapping[str, Column] = field(default_factory=dict)
    shared: Mapping[str, Stored] = field(default_factory=dict)
    order: tuple[str, ...] | None = None
    """All names, in the order of the service; None: the plain ones, then the shared ones."""

    def __getitem__(self, name: str) -> Column:
        return as_arrow(self.shared[name].gather() if name in self.shared else self.plain[name])

    def __contains__(self, name: object) -> bool:
        return name in self.shared or name in self.plain

    def __iter__(self) -> Iterator[str]:
        yield from (*self.plain, *self.shared) if self.order is None else self.order

    def __len__(self) -> int:
        return len(self.plain) + len(self.shared)


def as_arrow(column: Column) -> Column:
    """Return a column for those who know pyarrow and not :class:`Cells`."""
    return column.to_arrow() if isinstance(column, Cells) else column


def take(column: Column, rows: Rows) -> Column:
    """Return ``column`` at ``rows``; contiguous, and faster than indexing."""
    if isinstance(column, np.ndarray):
        return np.take(column, rows, axis=0)
    if isinstance(column, Cells):
        return Cells(column.kind, column.values[rows])
    return column.take(rows)


def nulls(column: Column) -> npt.NDArray[np.bool_]:
    """Return bool (n,): which rows have no value. A vector counts as missing when all of it is NaN."""
    if isinstance(column, Cells):
        return np.array([value is None for value in column.values], dtype=np.bool_)
    if not isinstance(column, np.ndarray):
        missing: npt.NDArray[np.bool_] = column.is_null().to_numpy(zero_copy_only=False)
        return missing
    if column.ndim == 1:
        return np.isnan(column)
    return np.asarray(np.isnan(column).all(axis=1), dtype=np.bool_)


def defaulted(column: npt.NDArray[np.float32], default: float) -> npt.NDArray[np.float32]:
    """Return numbers or vectors with ``default`` in the place of missing ones."""
    where = nulls(column)
    if not where.any():
        return column
    filled = column.copy()
    filled[where] = default
    return filled


def blank(column: Column, where: npt.NDArray[np.bool_]) -> Column:
    """Return a column that was read online with the rows of ``where`` (bool (n,)) missing."""
    if isinstance(column, Cells):
        values = column.values.copy()
        values[where] = None
        return Cells(column.kind, values)
    mask = where if column.ndim == 1 else where[:, None]
    return np.where(mask, np.float32(np.nan), column)
