"""Marks in Redis that go when the rows go.

A Redis that was flushed, or that came back without its data, answers every read with "no such row". So each view that
was published has a mark: a random id, in one hash for the project. The ledger notes which views went to the holder of
that id; readers take a missing mark for an error. While a view is filled for the first time its mark is a separate one,
so that a killed run goes on where it stopped and readers are not told that all is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recsys_llm.errors import EmptiedStoreError

_END = """
if redis.call('HGET', KEYS[1], ARGV[1]) == ARGV[3] then return 1 end
if redis.call('HGET', KEYS[1], ARGV[2]) ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
redis.call('HDEL', KEYS[1], ARGV[2])
return 1
"""
"""In one step: a mark must not come back that was flushed in between."""


class RunMarkers:
    """The marks of one project.

    Parameters
    ----------
    client
        Of redis-py, with or without a cluster.
    """

    def __init__(self, client: Any, project: str) -> None:
        self._client = client
        self._key = marks_key(project)

    def begin(self, view: str, fresh: str) -> str:
        """Return the id of the run that published ``view`` or began to; where there is none, note ``fresh``."""
        published = self._client.hget(self._key, view)
        if published is not None:
            return _text(published)
        self._client.hsetnx(self._key, _filling(view), fresh)
        return _text(self._client.hget(self._key, _filling(view)))

    def end(self, view: str, run: str) -> None:
        """Mark ``view`` as published.

        Raises
        ------
        EmptiedStoreError
            The mark of the run is gone.
        """
        if not self._client.eval(_END, 1, self._key, view, _filling(view), run):
            raise EmptiedStoreError(
                f"Redis was emptied while view {view} was published to it; materialise again: rows that are computed "
                "already are published from the parts"
            )

    def missing(self, views: Sequence[str]) -> list[str]:
        """Return those of ``views`` that the store doesn't hold as published."""
        found = self._client.hmget(self._key, list(views)) if views else []
        return [view for view, run in zip(views, found, strict=True) if run is None]

    def forget(self, view: str) -> None:
        """Remove the mark of a view whose rows are removed."""
        self._client.hdel(self._key, view, _filling(view))


def marks_key(project: str) -> str:
    """Return the hash that holds the marks of a project, by view."""
    return f"recsys_llm:runs:{project}"


def emptied(project: str, views: Sequence[str]) -> EmptiedStoreError:
    """Return what a reader raises where these views have no marks."""
    return EmptiedStoreError(
        f"Redis holds no finished run of {', '.join(views)} in project {project}: it was emptied, restarted without "
        "its data, or is not filled yet; `feast materialize` fills it from the parts, or at once "
        f"`recsys-llm repair {views[0]}`"
    )


def _filling(view: str) -> str:
    return f"{view}:filling"


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
