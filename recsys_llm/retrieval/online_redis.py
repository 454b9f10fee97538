"""Feast's Redis store, read by one pipelined HMGET for each entity: all views of an entity share a hash.

An emptied Redis answers that nobody is known. So the marks of the views (:mod:`recsys_llm.stores.runs`) are read in the
same round trip, always: users and items that are really unknown are asked for all the time, and cost nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from operator import add
from typing import Any, NamedTuple

import redis
from redis.exceptions import RedisError

from recsys_llm.errors import StoreError
from recsys_llm.retrieval.decode import decode_timestamps
from recsys_llm.retrieval.layout import RedisLayout
from recsys_llm.retrieval.online import NO_ROW, Meanwhile, Request, StoredRows
from recsys_llm.retrieval.redis_exchange import Replies, exchange_alike
from recsys_llm.retrieval.reply_table import ReplyTable
from recsys_llm.retrieval.service import View
from recsys_llm.stores.runs import emptied, marks_key

MAX_COMMANDS = 256
"""Sets of views whose commands are kept; one for each entity of each service."""


class Asked(NamedTuple):
    """Commands for some requests."""

    packed: bytes
    """In RESP: those of the requests in turn, then one for the marks if there are any. Marks come last: rows that were
    flushed before they were read have no mark any more."""
    counts: tuple[int, ...]
    """Commands of each request, and 1 for the marks."""
    marked: tuple[str, ...]
    """Views whose marks are asked for."""


class RedisReader:
    """Reads users and candidates in one round trip.

    Parameters
    ----------
    client
        Returns the client whose connections are used.
    layout
        Where a view is.
    project
        Whose marks of published views are read too; None: the store has no marks.
    """

    def __init__(
        self, client: Callable[[], Any], layout: Callable[[View], RedisLayout], project: str | None = None
    ) -> None:
        self.client = client
        self.layout = layout
        self.project = project
        self._commands: dict[tuple[View, ...], Commands] = {}

    def read(self, requests: Sequence[Request], meanwhile: Meanwhile = None) -> list[list[StoredRows]]:
        """Return for each request and view, what is stored of its entities; one round trip for all of them.

        Raises
        ------
        EmptiedStoreError
            A row is missing in a view that Redis doesn't hold as published.
        StoreError
            Redis failed.
        """
        asked = [place for place, request in enumerate(requests) if request.views and request.ids]
        asked.sort(key=lambda place: -len(requests[place].ids))  # what may come as a table is asked for first
        if not asked:
            return [[] if not request.views else self.rows(request, []) for request in requests]
        whole = self.ask([requests[place] for place in asked])
        first, others = self._exchange(whole, [requests[place] for place in asked], meanwhile)
        replies: dict[int, ReplyTable | list[Any]] = {asked[0]: first}
        start = 0
        for place, count in zip(asked[1:], whole.counts[1:], strict=False):
            replies[place] = others[start : start + count]
            start += count
        found = [
            self.rows(request, replies.get(place, [])) if request.views else []
            for place, request in enumerate(requests)
        ]
        if whole.marked:
            self.check_marks(whole, others[-1], zip(requests, found, strict=True))
        return found

    def commands(self, views: tuple[View, ...]) -> Commands:
        """Return what reads these views, made once."""
        if views not in self._commands:
            if len(self._commands) >= MAX_COMMANDS:
                self._commands.clear()
            marked = tuple(view.name for view in views if view.is_computed)
            self._commands[views] = Commands([self.layout(view) for view in views], marked)
        return self._commands[views]

    def close(self) -> None:
        """Do nothing: the client is somebody else's."""

    def ask(self, requests: Sequence[Request]) -> Asked:
        """Return the commands for requests, each of which has views and ids."""
        each = [(request, self.commands(request.views)) for request in requests]
        packed = [commands.pack(request.ids) for request, commands in each]
        counts = [len(request.ids) for request in requests]
        marked = tuple(name for _, commands in each for name in commands.marked) if self.project is not None else ()
        if marked:
            packed.append(_marks(str(self.project), marked))
            counts.append(1)
        return Asked(b"".join(packed), tuple(counts), marked)

    def rows(self, request: Request, replies: ReplyTable | list[Any]) -> list[StoredRows]:
        """Return the rows of each view from the replies, one for each entity."""
        return self.commands(request.views).split(request, replies)

    def check_marks(
        self, asked: Asked, marks: Sequence[bytes | None], found: Iterable[tuple[Request, Sequence[StoredRows]]]
    ) -> None:
        """Refuse rows that are missing because Redis was emptied.

        Raises
        ------
        EmptiedStoreError
            A view has no mark and lacks a row that was asked for.
        """
        if None not in marks:
            return
        unmarked = {view for view, mark in zip(asked.marked, marks, strict=True) if mark is None}
        lost = [
            view.name
            for request, stored in found
            for view, rows in zip(request.views, stored, strict=True)
            if view.name in unmarked and (rows.timestamps == NO_ROW).any()
        ]
        if lost:
            raise emptied(str(self.project), lost)

    def _exchange(self, asked: Asked, requests: Sequence[Request], meanwhile: Meanwhile) -> Replies:
        """Return the replies to the first request, and those to all others."""
        counts = asked.counts
        client = self.client()
        try:
            if isinstance(client, redis.Redis):
                fields = len(self.commands(requests[0].views).fields)
                return exchange_alike(client, asked.packed, (counts[0], sum(counts[1:])), fields, meanwhile)
            # A cluster: each key has a server of its own, so redis-py sends the commands.
            with client.pipeline(transaction=False) as pipe:
                for request in requests:
                    commands = self.commands(request.views)
                    for key in commands.key.keys(request.ids):
                        pipe.hmget(key, list(commands.fields))
                if asked.marked:
                    pipe.hmget(marks_key(str(self.project)), list(asked.marked))
                replies: list[Any] = pipe.execute()
                return replies[: counts[0]], replies[counts[0] :]
        except RedisError as error:
            raise store_error(error) from error


class Commands:
    """The HMGET of an entity in some views, in RESP but for the id; and how to read its reply."""

    def __init__(self, layouts: Sequence[RedisLayout], marked: tuple[str, ...] = ()) -> None:
        self.key = layouts[0].key
        self.marked = marked
        self.fields = tuple(field for layout in layouts for field in (*layout.fields, layout.stamp))
        self._after = b"".join([self.key.tail, b"\r\n", *map(_bulk, self.fields)])
        self._before = _Starts(self._start)

    def pack(self, ids: Sequence[str]) -> bytes:
        """Return one HMGET for each entity."""
        encoded = [*map(str.encode, ids)]
        started = map(add, map(self._before.__getitem__, map(len, encoded)), encoded)
        return self._after.join([*started, b""])

    def split(self, request: Request, replies: ReplyTable | list[list[bytes | None]]) -> list[StoredRows]:
        """Return the rows of each view from the replies, one for each entity."""
        columns: Sequence[Sequence[bytes | None]]
        if isinstance(replies, ReplyTable):
            columns = replies.columns()
        else:
            columns = list(zip(*replies, strict=True)) or [()] * len(self.fields)
        found, start = [], 0
        for view in request.views:
            end = start + len(view.features)
            values = {feature.name: column for feature, column in zip(view.features, columns[start:end], strict=True)}
            found.append(StoredRows(decode_timestamps(columns[end], view, request.ids), values))
            start = end + 1
        return found

    def _start(self, length: int) -> bytes:
        before = self.key.before(length)
        size = len(before) + length + len(self.key.tail)
        return b"*%d\r\n$5\r\nHMGET\r\n$%d\r\n%s" % (len(self.fields) + 2, size, before)


class _Starts(dict[int, bytes]):
    """What comes before an id, by its length in bytes; made once."""

    def __init__(self, make: Callable[[int], bytes]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, length: int) -> bytes:
        self[length] = made = self._make(length)
        return made


def store_error(error: RedisError) -> StoreError:
    """Return what a lookup raises when Redis fails."""
    return StoreError(
        f"Redis: {type(error).__name__}: {error}; check that it is up and that online_store in feature_store.yaml "
        "names it"
    )


@lru_cache(maxsize=MAX_COMMANDS)
def _marks(project: str, views: tuple[str, ...]) -> bytes:
    """Return the HMGET of the marks of views, in RESP."""
    key = marks_key(project).encode()
    return b"*%d\r\n" % (len(views) + 2) + b"".join(map(_bulk, [b"HMGET", key, *(view.encode() for view in views)]))


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(value), value)
