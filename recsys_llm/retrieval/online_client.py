"""What every client of an online store answers: lookups of users and candidates."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Self, TypedDict, Unpack

from recsys_llm.errors import LayoutError, StoreError
from recsys_llm.retrieval.blocks import FeatureBatch
from recsys_llm.retrieval.ids import checked_list
from recsys_llm.retrieval.lookup import Lookup, checked_requests, checked_user
from recsys_llm.retrieval.observer import LookupObserver
from recsys_llm.retrieval.online_failures import OnStoreError


class LookupOptions(TypedDict, total=False):
    """Keywords of :meth:`OnlineClient.lookup`."""

    service: str | None
    segment: str | None
    on_store_error: OnStoreError


class OnlineClient(ABC):
    """Lookups of users and candidates in an online store."""

    _observer: LookupObserver | None = None

    @property
    def breaker_state(self) -> str:
        """Of the store's circuit breaker: ``closed`` or ``open``; ``closed`` where there is none."""
        return "closed"

    @property
    @abstractmethod
    def project(self) -> str | None:
        """Of Feast; None before the repository is opened."""

    @abstractmethod
    def cache_totals(self) -> tuple[int, int]:
        """Return hits and misses of the item caches of all services."""

    def lookup(
        self,
        user_id: str,
        candidate_ids: Iterable[str],
        *,
        service: str | None = None,
        segment: str | None = None,
        on_store_error: OnStoreError = "raise",
    ) -> FeatureBatch:
        """Read the features of one user and N candidates from the online store.

        Parameters
        ----------
        user_id
            An unknown user has the row of the segment or of everyone where the view has such rows (the feature
            ``provenance`` says so), and misses all else.
        candidate_ids
            N of them; none, unknown ones and repeated ones are fine.
        service
            Feature service to read; a client of one service knows it.
        segment
            The user's, such as a country, as the source has it.
        on_store_error
            ``defaults``: of a store that fails, all is UNAVAILABLE, and the batch's ``store_error`` says why.

        Returns
        -------
        FeatureBatch, N pairs
            In the order of ``candidate_ids``; each distinct candidate is read once.

        Raises
        ------
        RowError, SchemaError
            An id is null or no string; or the candidates are a single string.
        ServiceError
            The service is unknown, or asks for what can't be read.
        FingerprintError
            The service mixes vectors of two models.
        StoreError
            The online store failed, or holds bytes that are no value of the feature.
        """
        user = checked_user(user_id, segment)
        candidates = checked_list(candidate_ids, name="candidate_ids")
        return self._answer(service, [user], [candidates], on_store_error)[0]

    def lookup_many(
        self,
        requests: Iterable[tuple[str, Iterable[str]]],
        *,
        service: str | None = None,
        segments: Sequence[str | None] | None = None,
        on_store_error: OnStoreError = "raise",
    ) -> list[FeatureBatch]:
        """Read the features of several users and their candidates at once.

        Users and candidates that several requests share are read once, all of them in one round trip; the batches share
        their blocks of features.

        Parameters
        ----------
        requests
            Of each, a user id and candidate ids, as :meth:`lookup` takes them.
        service
            As :meth:`lookup`.
        segments
            Of each request's user; None: not known.
        on_store_error
            As :meth:`lookup`.

        Returns
        -------
        list of FeatureBatch
            One for each request, with what :meth:`lookup` would give.

        Raises
        ------
        RowError, SchemaError, ServiceError, FingerprintError, StoreError
            As :meth:`lookup`; the message gives the request's place.
        """
        return self._answer(service, *checked_requests(requests, segments), on_store_error)

    async def lookup_async(
        self, user_id: str, candidate_ids: Iterable[str], **options: Unpack[LookupOptions]
    ) -> FeatureBatch:
        """Do what :meth:`lookup` does in a thread, so that the event loop stays free.

        Waiting for the store lets other threads run; an own asynchronous reader would only add the event loop's cost to
        each read.
        """
        return await asyncio.to_thread(partial(self.lookup, user_id, candidate_ids, **options))

    @abstractmethod
    def close(self) -> None:
        """Close connections that the client opened itself."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    @abstractmethod
    def _lookup(self, service: str | None) -> Lookup:
        """Return what reads a service."""

    def _renewed(self, lookup: Lookup) -> Lookup | None:
        """Return what reads the service as it is defined now; None where that has not changed."""
        return None

    def _answer(
        self,
        service: str | None,
        users: Sequence[tuple[str, str | None]],
        candidates: Sequence[list[str]],
        on_store_error: OnStoreError,
    ) -> list[FeatureBatch]:
        observer = self._observer
        if observer is None:
            return self._read(service, users, candidates, on_store_error, None)
        started = time.perf_counter()
        try:
            batches = self._read(service, users, candidates, on_store_error, observer.store_failed)
        except Exception:
            observer.failed(time.perf_counter() - started)
            raise
        observer.answered(time.perf_counter() - started, batches)
        return batches

    def _read(
        self,
        service: str | None,
        users: Sequence[tuple[str, str | None]],
        candidates: Sequence[list[str]],
        on_store_error: OnStoreError,
        store_failed: Callable[[StoreError], None] | None,
    ) -> list[FeatureBatch]:
        lookup = self._lookup(service)
        try:
            return lookup.batches(users, candidates, on_store_error, store_failed)
        except LayoutError:
            # The service may have been applied anew since it was read from the registry.
            renewed = self._renewed(lookup)
            if renewed is None:
                raise
        return renewed.batches(users, candidates, on_store_error, store_failed)
