"""Features of users and items, and the pairs of them that a ranker scores.

One structure serves training and serving. Training: n examples over the distinct (user, time) and (item, time) pairs
in them. Serving: N candidates over one user and the distinct candidates. Each entity's features are kept once; an
example is a pair of row numbers::

    user block            item block                user_rows  item_rows
    0: u1 at 09:00        0: i7 at 09:00            0          0          u1 and i7 at 09:00
    1: u1 at 10:00        1: i9 at 09:00            0          1          u1 and i9 at 09:00
                          2: i7 at 10:00            1          2          u1 and i7 at 10:00
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from recsys_llm.errors import ServiceError, did_you_mean
from recsys_llm.retrieval.pairwise import PairwiseInputs, pairwise_features, row_norms
from recsys_llm.retrieval.stored import Cells, Column, Columns, Rows, Stored, as_arrow, nulls, take
from recsys_llm.schema import ITEM_ID, JOIN_KEYS, USER_ID

if TYPE_CHECKING:
    import pandas as pd


class Status(IntEnum):
    """What is known of one entity in one view."""

    MISSING = 0
    """There is no row. History also says so of a row past its ttl: Feast's join doesn't tell the two apart."""
    STALE = 1
    """The row in the online store is older than the view's ttl; its values are blanked, as in a training set."""
    PRESENT = 2
    FALLBACK = 3
    """There is no row of the user's own (or one past its ttl); the values are those of its segment or of everyone."""
    UNAVAILABLE = 4
    """Nobody knows: the online store failed, and ``lookup(..., on_store_error="defaults")`` goes on without it."""


@dataclass(frozen=True, eq=False)
class EntityBlock:
    """Features of n rows of one entity.

    Parameters
    ----------
    entity
        ``user`` or ``item``.
    ids
        Entity keys, n of them.
    columns
        Full feature name (``view__feature``) to float32 (n,), float32 (n, d) or a pyarrow array (strings, lists);
        NaN or null where missing. :class:`~recsys_llm.retrieval.stored.Columns` keeps shared values once.
    status
        View to uint8 (n,) of :class:`Status`.
    timestamps
        View to int64 (n,), microseconds since the epoch, of the rows read online (0 where missing); empty for history.
    """

    entity: str
    ids: tuple[str, ...]
    columns: Mapping[str, Column]
    status: Mapping[str, npt.NDArray[np.uint8]] = field(default_factory=dict)
    timestamps: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)
    _norms: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.ids)

    def stored(self, column: str) -> Stored:
        """Return a column as its stored values and the value of each row; nothing is copied."""
        columns = self.columns
        if isinstance(columns, Columns) and column in columns.shared:
            return columns.shared[column]
        values = columns.plain[column] if isinstance(columns, Columns) else columns[column]
        return Stored(values, self.every_row)

    @cached_property
    def every_row(self) -> Rows:
        """int64 (n,): all rows in order; read-only."""
        rows = np.arange(len(self), dtype=np.int64)
        rows.flags.writeable = False
        return rows

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """A row of each distinct id."""
        return {id_: row for row, id_ in enumerate(self.ids)}

    def norms(self, column: str) -> npt.NDArray[np.float32]:
        """Return the Euclidean norm of each stored value of a vector column, computed once."""
        if column not in self._norms:
            self._norms[column] = row_norms(self.stored(column).values)
        return self._norms[column]

    def take(self, rows: Rows) -> EntityBlock:
        """Return a block of these rows, in this order; rows may repeat."""
        if isinstance(self.columns, Columns):
            plain, shared = self.columns.plain, self.columns.shared
        else:
            plain, shared = self.columns, {}
        return EntityBlock(
            entity=self.entity,
            ids=tuple(self.ids[row] for row in rows),
            columns=Columns(
                {name: take(values, rows) for name, values in plain.items()},
                {name: Stored(stored.values, stored.rows[rows]) for name, stored in shared.items()},
                tuple(self.columns),
            ),
            status={view: values[rows] for view, values in self.status.items()},
            timestamps={view: values[rows] for view, values in self.timestamps.items()},
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per entity: the key, then one column per feature. Vectors and lists are arrays, or None."""
        import pandas as pd

        data = {JOIN_KEYS[self.entity]: np.array(self.ids, dtype=object)}
        return pd.DataFrame(data | {name: cells(self.columns[name]) for name in self.columns})


@dataclass(frozen=True, eq=False)
class FeatureBatch:
    """Features of n (user, item) pairs.

    Parameters
    ----------
    service
        Feature service that they were read from.
    user, item
        Features of the distinct users and items.
    user_rows, item_rows
        int64 (n,): the rows of ``user`` and ``item`` that make each pair.
    fingerprints
        View to the fingerprint of the model that computed it; None where its parts are not at hand.
    bridges
        View to the fingerprint of the older view that it stands in for: its vectors were mapped into the older model's
        space (``recsys-llm migrate backfill --bridge``). Empty where nothing is bridged.
    store_error
        Why features are :attr:`Status.UNAVAILABLE`; None where none are.
    """

    service: str
    user: EntityBlock
    item: EntityBlock
    user_rows: Rows
    item_rows: Rows
    fingerprints: Mapping[str, str | None] = field(default_factory=dict)
    bridges: Mapping[str, str] = field(default_factory=dict)
    store_error: str | None = None

    def __len__(self) -> int:
        return len(self.user_rows)

    @property
    def columns(self) -> tuple[str, ...]:
        """Full names of all features, the user's first; without the pairwise ones."""
        return (*self.user.columns, *self.item.columns)

    def column(self, name: str) -> Column:
        """Return a feature of each pair, of whatever kind; strings and lists as a pyarrow array.

        Raises
        ------
        ServiceError
            There is no such feature in the service.
        """
        return as_arrow(self._taken(name))

    def to_pylist(self, name: str) -> list[Any]:
        """Return a feature of each pair as Python has it: str, list, or float; None where missing. Needs no pyarrow.

        Raises
        ------
        ServiceError
            There is no such feature in the service.
        """
        values = self._taken(name)
        if isinstance(values, np.ndarray):
            return [None if null else value.tolist() for value, null in zip(values, nulls(values), strict=True)]
        pylist: list[Any] = values.to_pylist()
        return pylist

    def scalar(self, column: str) -> npt.NDArray[np.float32]:
        """Return a numeric feature of each pair: contiguous float32 (n,), NaN where missing.

        Like a vector, it may share the batch's memory: copy it before you write into it.

        Raises
        ------
        ServiceError
            There is no such feature in the service, or it is no number.
        """
        return self._floats(column, 1, "a number")

    def vector(self, column: str) -> npt.NDArray[np.float32]:
        """Return a vector feature of each pair: contiguous float32 (n, d), rows of NaN where missing.

        Raises
        ------
        ServiceError
            There is no such feature in the service, or it is no vector.
        """
        return self._floats(column, 2, "a vector")

    def status(self, view: str) -> npt.NDArray[np.uint8]:
        """Return the :class:`Status` of each pair in a view: uint8 (n,).

        Raises
        ------
        ServiceError
            The view is not in the service.
        """
        for block, rows in ((self.user, self.user_rows), (self.item, self.item_rows)):
            if view in block.status:
                return block.status[view][rows]
        raise ServiceError(
            f"service {self.service}: no view {view!r}; {did_you_mean(view, [*self.user.status, *self.item.status])}"
        )

    @cached_property
    def pairwise_inputs(self) -> PairwiseInputs:
        """The columns that the pairwise features are made from."""
        return PairwiseInputs.of(self.user.columns, self.item.columns)

    @property
    def pairwise_names(self) -> tuple[str, ...]:
        """Names of the columns of :attr:`pairwise`."""
        return self.pairwise_inputs.names

    @cached_property
    def pairwise(self) -> npt.NDArray[np.float32]:
        """Features of user and item together: float32 (n, P); see :mod:`recsys_llm.retrieval.pairwise`."""
        return pairwise_features(self.user, self.item, self.user_rows, self.item_rows, self.pairwise_inputs)

    def take(self, rows: Rows) -> FeatureBatch:
        """Return the pairs at ``rows`` (int64 (k,)); features are shared, not copied."""
        return FeatureBatch(
            self.service,
            self.user,
            self.item,
            self.user_rows[rows],
            self.item_rows[rows],
            self.fingerprints,
            self.bridges,
            self.store_error,
        )

    def to_pandas(self) -> pd.DataFrame:
        """Return one row per pair: keys, features, pairwise features. Vectors and lists are arrays, or None."""
        import pandas as pd

        ids = {
            USER_ID: np.array(self.user.ids, dtype=object)[self.user_rows],
            ITEM_ID: np.array(self.item.ids, dtype=object)[self.item_rows],
        }
        return pd.concat([pd.DataFrame(ids), self._features_frame()], axis=1)

    def _features_frame(self) -> pd.DataFrame:
        import pandas as pd

        data = {name: cells(self.column(name)) for name in self.columns}
        data |= {name: self.pairwise[:, place] for place, name in enumerate(self.pairwise_names)}
        return pd.DataFrame(data, index=pd.RangeIndex(len(self)))

    @cached_property
    def _in_order(self) -> tuple[bool, bool]:
        """Whether the pairs are all users in order, and all items in order: their columns are then the blocks'."""
        user, item = self.user.every_row, self.item.every_row
        return np.array_equal(self.user_rows, user), np.array_equal(self.item_rows, item)

    def _side(self, column: str) -> tuple[EntityBlock, Rows]:
        if column in self.user.columns:
            return self.user, self.user_rows
        if column in self.item.columns:
            return self.item, self.item_rows
        raise ServiceError(f"service {self.service}: no feature {column!r}; {did_you_mean(column, self.columns)}")

    def _taken(self, name: str) -> Column:
        block, rows = self._side(name)
        stored = block.stored(name)
        return take(stored.values, stored.rows[rows])

    def _floats(self, column: str, ndim: int, expected: str) -> npt.NDArray[np.float32]:
        block, rows = self._side(column)
        stored = block.stored(column)
        values = stored.values
        if not isinstance(values, np.ndarray) or values.ndim != ndim:
            found = f"float32 {values.shape}" if isinstance(values, np.ndarray) else _type_of(values)
            raise ServiceError(f"service {self.service}: expected {column} to be {expected}, found {found}")
        if stored.rows is block.every_row and self._in_order[block is self.item]:
            return values
        places = stored.rows[rows]
        if len(places) == len(values) and np.array_equal(places, np.arange(len(values))):
            return values
        taken: npt.NDArray[np.float32] = take(values, places)
        return taken


def _type_of(column: Column) -> str:
    return str(column.kind if isinstance(column, Cells) else column.type)


def cells(column: Column) -> Any:
    """Return a column as pandas can hold it: numbers as they are, vectors and lists as objects, None where missing."""
    if isinstance(column, np.ndarray) and column.ndim == 1:
        return column
    objects = np.empty(len(column), dtype=object)
    if isinstance(column, np.ndarray):
        for row in np.flatnonzero(~nulls(column)).tolist():
            objects[row] = column[row]
    else:
        for row, value in enumerate(column.to_pylist()):
            objects[row] = value
    return objects
