"""Feast's Redis store, read by one pipelined HMGET for each entity: all views of an entity share a hash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import add
from typing import Any

import redis

from recsys_llm.errors import StoreError
from recsys_llm.redis_errors import REDIS_FAILED
from recsys_llm.retrieval.decode import decode_timestamps
from recsys_llm.retrieval.layout import RedisLayout
from recsys_llm.retrieval.online import Meanwhile, Request, StoredRows
from recsys_llm.retrieval.redis_exchange import Replies, exchange_alike
from recsys_llm.retrieval.reply_table import ReplyTable
from recsys_llm.retrieval.service import View

MAX_COMMANDS = 256
"""Sets of views whose commands are kept; one for each entity of each service."""


class RedisReader:
    """Reads users and candidates in one round trip.

    Parameters
    ----------
    client
        Returns the client whose connections are used.
    layout
        Where a view is.
    """

    def __init__(self, client: Callable[[], Any], layout: Callable[[View], RedisLayout]) -> None:
        self.client = client
        self.layout = layout
        self._commands: dict[tuple[View, ...], Commands] = {}

    def read(self, requests: Sequence[Request], meanwhile: Meanwhile = None) -> list[list[StoredRows]]:
        """Return for each request and view, what is stored of its entities; one round trip for all of them."""
        asked = [place for place, request in enumerate(requests) if request.views and request.ids]
        asked.sort(key=lambda place: -len(requests[place].ids))  # what may come as a table is asked for first
        first, others = self._exchange([requests[place] for place in asked], meanwhile) if asked else ([], [])
        replies: dict[int, ReplyTable | list[Any]] = {place: first for place in asked[:1]}
        start = 0
        for place in asked[1:]:
            end = start + len(requests[place].ids)
            replies[place] = others[start:end]
            start = end
        return [
            self.commands(request.views).split(request, replies.get(place, [])) if request.views else []
            for place, request in enumerate(requests)
        ]

    def commands(self, views: tuple[View, ...]) -> Commands:
        """Return what reads these views, made once."""
        if views not in self._commands:
            if len(self._commands) >= MAX_COMMANDS:
                self._commands.clear()
            self._commands[views] = Commands([self.layout(view) for view in views])
        return self._commands[views]

    def close(self) -> None:
        """Do nothing: the client is somebody else's."""

    def _exchange(self, requests: Sequence[Request], meanwhile: Meanwhile) -> Replies:
        """Return the replies to the first request, and those to all others."""
        asked = [(request, self.commands(request.views)) for request in requests]
        counts = [len(request.ids) for request in requests]
        try:
            client = self.client()  # of a cluster: it asks its nodes who has what
            if isinstance(client, redis.Redis):
                packed = b"".join([commands.pack(request.ids) for request, commands in asked])
                counted = counts[0], sum(counts[1:])
                return exchange_alike(client, packed, counted, len(asked[0][1].fields), meanwhile)
            # A cluster: each key has a server of its own, so redis-py sends the commands.
            with client.pipeline(transaction=False) as pipe:
                for request, commands in asked:
                    for key in commands.key.keys(request.ids):
                        pipe.hmget(key, list(commands.fields))
                replies: list[Any] = pipe.execute()
                return replies[: counts[0]], replies[counts[0] :]
        except REDIS_FAILED as error:
            raise store_error(error) from error


class Commands:
    """The HMGET of an entity in some views, in RESP but for the id; and how to read its reply."""

    def __init__(self, layouts: Sequence[RedisLayout]) -> None:
        self.key = layouts[0].key
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


def store_error(error: Exception) -> StoreError:
    """Return what a lookup raises when Redis fails."""
    reason = str(error).rpartition("of pipeline caused error: ")[2]  # before that, redis-py shows whose row it was
    return StoreError(
        f"Redis: {type(error).__name__}: {reason}; check that it is up and that online_store in feature_store.yaml "
        "names it"
    )


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%s\r\n" % (len(value), value)
