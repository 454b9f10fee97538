"""What a failing online store means for a lookup: an error, or defaults that say so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, TypeVar, get_args

import numpy as np

from recsys_llm.errors import LayoutError, SchemaError, StoreError, did_you_mean
from recsys_llm.retrieval.blocks import EntityBlock, Status
from recsys_llm.retrieval.online import NO_ROW, Meanwhile, OnlineReader, Request, StoredRows
from recsys_llm.retrieval.service import View

OnStoreError = Literal["raise", "defaults"]
T = TypeVar("T")


class LookupReader:
    """Reads for one lookup. With ``defaults`` a failure is kept, no row is there, and nothing is asked again.

    Raises
    ------
    SchemaError
        There is no such policy.
    """

    def __init__(self, reader: OnlineReader, policy: str, failed: Callable[[StoreError], None] | None = None) -> None:
        known = get_args(OnStoreError)
        if policy not in known:
            raise SchemaError(f"on_store_error: unknown {policy!r}; {did_you_mean(str(policy), known)}")
        self._reader = reader
        self._policy = policy
        self._failed = failed
        self.failure: StoreError | None = None

    @property
    def reason(self) -> str | None:
        """What failed."""
        return None if self.failure is None else str(self.failure)

    def read(self, requests: Sequence[Request], meanwhile: Meanwhile = None) -> list[list[StoredRows]]:
        """Return what is stored, or that nothing is."""
        return self.attempt(
            lambda: self._reader.read(requests, meanwhile),
            lambda: [[_no_rows(view, len(request.ids)) for view in request.views] for request in requests],
        )

    def attempt(self, ask: Callable[[], T], without: Callable[[], T]) -> T:
        """Return what asking the store gives, or what is given without it."""
        if self.failure is None:
            try:
                return ask()
            except LayoutError:
                raise  # the store answered: it is the registry that is read again
            except StoreError as error:
                if self._failed is not None:
                    self._failed(error)
                if self._policy == "raise":
                    raise
                self.failure = error
        return without()


def flagged(block: EntityBlock, failure: StoreError | None) -> EntityBlock:
    """Return the block, its missing rows as UNAVAILABLE if that is because the store failed."""
    if failure is None:
        return block
    status = {
        view: np.where(states == Status.MISSING, Status.UNAVAILABLE, states).astype(np.uint8)
        for view, states in block.status.items()
    }
    return replace(block, status=status)


def _no_rows(view: View, count: int) -> StoredRows:
    names = [feature.name for feature in view.features]
    return StoredRows(np.full(count, NO_ROW, dtype=np.int64), {name: [None] * count for name in names})
