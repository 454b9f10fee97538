"""Online rows of any store, as blocks: the same decode, ttl and statuses for all.

Feast doesn't enforce a view's ttl online, so it is checked here: a row older than the ttl is STALE, and its values are
blanked, as a training set's would be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from recsys_llm.retrieval.blocks import EntityBlock, Status
from recsys_llm.retrieval.decode import NO_ROW, decode
from recsys_llm.retrieval.service import View
from recsys_llm.retrieval.stored import Column, Columns, blank, defaulted

if TYPE_CHECKING:
    import feast

__all__ = [
    "NO_ROW",
    "Decoded",
    "Meanwhile",
    "OnlineReader",
    "Request",
    "StoredRows",
    "decoded",
    "open_reader",
    "settled",
]


_PRESENT = int(Status.PRESENT)

Meanwhile = Callable[[], None] | None
"""What a reader may do while the store is at work."""


@dataclass(frozen=True)
class Request:
    """Rows to read: these entities, in all of these views."""

    entity: str
    views: tuple[View, ...]
    ids: tuple[str, ...]
    """Distinct."""


@dataclass(frozen=True, eq=False)
class StoredRows:
    """What a store holds of n entities in one view."""

    timestamps: npt.NDArray[np.int64]
    """int64 (n,), microseconds since the epoch; :data:`NO_ROW` where there is no row."""
    values: Mapping[str, Sequence[bytes | None]]
    """Feature to n serialised ``ValueProto``; None where there is none."""


@dataclass(frozen=True, eq=False)
class Decoded:
    """Rows of n entities as columns, before anything is said of their age."""

    columns: Mapping[str, Column]
    """Full feature name to column."""
    timestamps: Mapping[str, npt.NDArray[np.int64]]
    """View to int64 (n,), as :attr:`StoredRows.timestamps`."""


class OnlineReader(Protocol):
    """One online store."""

    def read(self, requests: Sequence[Request], meanwhile: Meanwhile = None) -> list[list[StoredRows]]:
        """Return for each request and view, what is stored of its entities, in order.

        Parameters
        ----------
        meanwhile
            What a reader may do, once, while the store is at work; it raises nothing.

        Raises
        ------
        StoreError
            The store can't be reached or refuses.
        """
        ...

    def close(self) -> None:
        """Close what was opened for reading."""
        ...


def open_reader(store: feast.FeatureStore) -> OnlineReader:
    """Return the fastest reader for the online store of ``store``."""
    from recsys_llm.retrieval.feast_layout import reader_of

    return reader_of(store)


def decoded(request: Request, rows: Sequence[StoredRows]) -> Decoded:
    """Decode what was read.

    Parameters
    ----------
    request
        What was asked for.
    rows
        One for each of its views.

    Raises
    ------
    LayoutError
        The store holds bytes that are no value of the feature.
    """
    columns = {
        feature.column: decode(stored.values[feature.name], view, feature, request.ids)
        for view, stored in zip(request.views, rows, strict=True)
        for feature in view.features
    }
    return Decoded(columns, {view.name: stored.timestamps for view, stored in zip(request.views, rows, strict=True)})


def settled(request: Request, rows: Decoded, now: int) -> EntityBlock:
    """Return the block of decoded rows: their statuses, and blanks where a row is missing or stale.

    Parameters
    ----------
    now
        Microseconds since the epoch; rows whose timestamp + ttl is before it are stale.
    """
    columns: dict[str, Column] = {}
    status: dict[str, npt.NDArray[np.uint8]] = {}
    for view in request.views:
        timestamps = rows.timestamps[view.name]
        absent = timestamps == NO_ROW
        states = np.full(len(absent), _PRESENT, dtype=np.uint8)
        if absent.any():
            states[absent] = Status.MISSING
        if view.ttl and len(absent) and (late := timestamps + view.ttl < now).any():
            states[~absent & late] = Status.STALE
        gone = states != _PRESENT
        some = bool(gone.any())
        for feature in view.features:
            column = rows.columns[feature.column]
            column = blank(column, gone) if some else column
            columns[feature.column] = column if feature.default is None else defaulted(column, feature.default)
        status[view.name] = states
    return EntityBlock(request.entity, request.ids, Columns(columns), status, rows.timestamps)
