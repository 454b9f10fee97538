"""Users and candidates of one feature service, from ids to batches: the same for every client and store."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import TypeVar

import numpy as np

from recsys_llm.errors import SchemaError, StoreError
from recsys_llm.retrieval.blocks import EntityBlock, FeatureBatch
from recsys_llm.retrieval.fallback import cold_views, filled_now
from recsys_llm.retrieval.ids import check_id, checked_list
from recsys_llm.retrieval.item_cache import ItemCache
from recsys_llm.retrieval.online import Decoded, OnlineReader, Request, StoredRows, decoded, settled
from recsys_llm.retrieval.online_failures import LookupReader, flagged
from recsys_llm.retrieval.service import Service, known_dimensions, unmeasured
from recsys_llm.retrieval.stored import Rows
from recsys_llm.schema import ITEM, SEGMENT, USER, USER_ID
from recsys_llm.timestamps import to_micros

T = TypeVar("T")


class Lookup:
    """Reads one service online.

    Parameters
    ----------
    service
        What is read.
    reader
        Of the online store.
    now
        The clock that ttl is measured with.
    fingerprints, bridges
        As :class:`FeatureBatch` has them.
    learnt
        Told of the service when lengths of vectors have become known by reading them.
    cache
        Of the items; None: they are read with the user.
    """

    def __init__(
        self,
        service: Service,
        reader: OnlineReader,
        now: Callable[[], datetime],
        fingerprints: Mapping[str, str | None],
        bridges: Mapping[str, str],
        learnt: Callable[[Service], None],
        cache: ItemCache | None = None,
    ) -> None:
        self.reader = reader
        self.now = now
        self.fingerprints = fingerprints
        self.bridges = bridges
        self.cache = cache
        self._learnt = learnt
        self._take(service)

    def batches(
        self,
        users: Sequence[tuple[str, str | None]],
        candidates: Sequence[list[str]],
        on_store_error: str,
        store_failed: Callable[[StoreError], None] | None = None,
    ) -> list[FeatureBatch]:
        """Return a batch for each user (id and segment) and their candidates; what they share is read once."""
        reader = LookupReader(self.reader, on_store_error, store_failed)
        if not users:
            return []
        people, person = _distinct(users)
        items, rows = _distinct(list(chain.from_iterable(candidates)))
        user, item = self._read(people, items, reader)
        self._learn(user, item)
        batches, start = [], 0
        for row, some in zip(person.tolist(), candidates, strict=True):
            end = start + len(some)
            pairs = np.full(len(some), row, dtype=np.int64)
            batches.append(
                FeatureBatch(
                    self.service.name,
                    user,
                    item,
                    pairs,
                    rows[start:end],
                    self.fingerprints,
                    self.bridges,
                    reader.reason,
                )
            )
            start = end
        return batches

    def _read(
        self, people: tuple[tuple[str, str | None], ...], items: tuple[str, ...], reader: LookupReader
    ) -> tuple[EntityBlock, EntityBlock]:
        """Read the distinct users and items of one or more requests, in one round trip where all have rows."""
        users, items_of, cold = self._views
        ids, rows = _distinct([user for user, _ in people])
        of_users, of_items = Request(USER, users, ids), Request(ITEM, items_of, items)
        cache = self.cache
        if cache is not None and items_of:
            found, ready = _read_while(cache, of_items, reader, of_users)
            item_rows = reader.attempt(
                lambda: ready or cache.read(of_items), lambda: decoded(of_items, reader.read([of_items])[0])
            )
        else:
            found, found_items = reader.read([of_users, of_items])
            item_rows = decoded(of_items, found_items)
        now = to_micros(self.now())
        user, item = settled(of_users, decoded(of_users, found), now), settled(of_items, item_rows, now)
        if len(ids) < len(people):  # one user in two segments
            user = user.take(rows)

        def standing_in(ids: tuple[str, ...]) -> EntityBlock:
            request = Request(USER, cold, ids)
            return settled(request, decoded(request, reader.read([request])[0]), now)

        user = filled_now(user, cold, [segment for _, segment in people], standing_in)
        return flagged(user, reader.failure), flagged(item, reader.failure)

    def _take(self, service: Service) -> None:
        self.service = service
        users = service.of(USER)
        self._views = users, service.of(ITEM), cold_views(users)
        self._unknown = unmeasured(service)

    def _learn(self, *blocks: EntityBlock) -> None:
        """Remember the lengths of vectors that were read and that nothing else tells."""
        if not self._unknown:
            return
        unknown = {feature.column for _, feature in self._unknown}
        found = {name: block.columns[name].shape[1] for block in blocks for name in unknown if name in block.columns}
        found = {name: length for name, length in found.items() if length}
        if found:
            self._take(known_dimensions(self.service, found))
            self._learnt(self.service)


def checked_requests(
    requests: Iterable[tuple[str, Iterable[str]]], segments: Sequence[str | None] | None
) -> tuple[list[tuple[str, str | None]], list[list[str]]]:
    """Return users, each with a segment, and their candidates.

    Raises
    ------
    RowError, SchemaError
        An id is none; there are not as many segments as requests. The message gives the place.
    """
    pairs = list(requests)
    told = [None] * len(pairs) if segments is None else list(segments)
    if len(told) != len(pairs):
        raise SchemaError(f"segments: expected one for each of {len(pairs)} requests, found {len(told)}")
    users: list[tuple[str, str | None]] = []
    candidates = []
    for place, (pair, segment) in enumerate(zip(pairs, told, strict=True)):
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise SchemaError(f"requests[{place}]: expected (user_id, candidate_ids), found {pair!r}")
        users.append(checked_user(pair[0], segment, name=f"requests[{place}]: "))
        candidates.append(checked_list(pair[1], name=f"requests[{place}]: candidate_ids"))
    return users, candidates


def checked_user(user_id: str, segment: str | None, *, name: str = "") -> tuple[str, str | None]:
    """Return a user and their segment.

    Raises
    ------
    RowError
        One of them is no string.
    """
    check_id(user_id, name=f"{name}{USER_ID}")
    if segment is not None:
        check_id(segment, name=f"{name}{SEGMENT}")
    return user_id, segment


def _distinct(values: Sequence[T]) -> tuple[tuple[T, ...], Rows]:
    """Return the distinct values in order, and which of them each is: int64 (n,)."""
    places = dict.fromkeys(values)
    if len(places) == len(values):
        return tuple(values), np.arange(len(values), dtype=np.int64)
    numbers = {value: number for number, value in enumerate(places)}
    return tuple(places), np.array([numbers[value] for value in values], dtype=np.int64)


def _read_while(
    cache: ItemCache, of_items: Request, reader: LookupReader, of_users: Request
) -> tuple[list[StoredRows], Decoded | None]:
    """Return what is stored of the users, and the items' rows if the cache had them all while the store looked.

    The store's answer is waited for by a deadline of its own, so that nothing here may wait for anything else.
    """
    ready: Decoded | None = None

    def look() -> None:
        nonlocal ready
        if ready is None:  # a request may be sent twice
            ready = cache.ready(of_items)

    (found,) = reader.read([of_users], look)
    return found, ready
