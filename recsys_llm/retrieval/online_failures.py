"""What a failing online store means for a lookup: an error, or defaults that say so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, Required, TypedDict, get_args

import numpy as np

from recsys_llm.errors import EmptiedStoreError, SchemaError, StoreError, did_you_mean
from recsys_llm.retrieval.blocks import EntityBlock, Status
from recsys_llm.retrieval.online import NO_ROW, OnlineReader, Request, StoredRows, open_reader
from recsys_llm.retrieval.service import View
from recsys_llm.schema import TAG
from recsys_llm.stores import RedisOnlineStore

if TYPE_CHECKING:
    import feast

OnStoreError = Literal["raise", "defaults"]


class LookupOptions(TypedDict, total=False):
    """Keywords of ``FeatureClient.lookup``."""

    service: Required[str]
    segment: str | None
    on_store_error: OnStoreError


class CheckedReader:
    """Reads over another reader, and takes "no such row" from an emptied Redis for an error.

    Where a view that recsys_llm computes has none of the rows asked for, one more round trip asks for its mark
    (:mod:`recsys_llm.stores.runs`).
    """

    def __init__(self, reader: OnlineReader, store: feast.FeatureStore, online: RedisOnlineStore) -> None:
        self._reader = reader
        self._store = store
        self._online = online

    def read(self, requests: Sequence[Request]) -> list[list[StoredRows]]:
        """Return what is stored.

        Raises
        ------
        EmptiedStoreError
            Redis doesn't hold what was published.
        """
        found = self._reader.read(requests)
        empty = [
            view.name
            for request, stored in zip(requests, found, strict=True)
            for view, rows in zip(request.views, stored, strict=True)
            if request.ids and TAG in view.definition.tags and not (rows.timestamps != NO_ROW).any()
        ]
        lost = self._online.unpublished(self._store.config, empty)
        if lost:
            raise EmptiedStoreError(
                f"Redis holds no finished run of {', '.join(lost)} in project {self._store.project}: it was emptied, "
                "restarted without its data, or is not filled yet; `feast materialize` fills it from the parts"
            )
        return found

    def close(self) -> None:
        """Close the other reader."""
        self._reader.close()


class LookupReader:
    """Reads for one lookup. With ``defaults`` a failure is kept, no row is there, and nothing is asked again.

    Raises
    ------
    SchemaError
        There is no such policy.
    """

    def __init__(self, reader: OnlineReader, policy: str) -> None:
        known = get_args(OnStoreError)
        if policy not in known:
            raise SchemaError(f"on_store_error: unknown {policy!r}; {did_you_mean(str(policy), known)}")
        self._reader = reader
        self._policy = policy
        self.failure: StoreError | None = None

    @property
    def reason(self) -> str | None:
        """What failed."""
        return None if self.failure is None else str(self.failure)

    def read(self, requests: Sequence[Request]) -> list[list[StoredRows]]:
        """Return what is stored, or that nothing is."""
        if self.failure is None:
            try:
                return self._reader.read(requests)
            except StoreError as error:
                if self._policy == "raise":
                    raise
                self.failure = error
        return [[_no_rows(view, len(request.ids)) for view in request.views] for request in requests]


def checked_reader(store: feast.FeatureStore) -> OnlineReader:
    """Return the reader of a store, which notices an emptied one where the store has marks for that."""
    reader, online = open_reader(store), store.provider.online_store
    return CheckedReader(reader, store, online) if isinstance(online, RedisOnlineStore) else reader


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
