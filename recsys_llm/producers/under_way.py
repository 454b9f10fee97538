"""Reconciliation of what an executor was sent with what came back of it: each chunk once, before a run is done.

What comes back is stored and recorded before the next chunk is asked for, so chunks recorded are chunks sent.
"""

from __future__ import annotations

from collections.abc import Iterator

from recsys_llm.errors import ExecutorError
from recsys_llm.producers.base import Due


class UnderWay:
    """Chunks that were sent and haven't come back.

    Parameters
    ----------
    view
        Whose rows are computed; for messages.
    """

    def __init__(self, view: str) -> None:
        self._view = view
        self._chunks: dict[int, Due] = {}

    def sent(self, chunks: Iterator[Due]) -> Iterator[Due]:
        """Hand out chunks, and remember them."""
        for chunk in chunks:
            self._chunks[id(chunk)] = chunk
            yield chunk

    def returned(self, chunk: Due) -> None:
        """Take note of a chunk that came back, before any of it is stored.

        Raises
        ------
        ExecutorError
            It wasn't under way: it has come back before, or was never sent.
        """
        if self._chunks.pop(id(chunk), None) is None:
            raise self._refused(chunk.rows.num_rows, "came back that was not under way")

    def check(self) -> None:
        """Refuse to call a run done while chunks are under way.

        Raises
        ------
        ExecutorError
            A chunk hasn't come back.
        """
        for chunk in self._chunks.values():
            raise self._refused(chunk.rows.num_rows, "was sent and never came back")

    def _refused(self, rows: int, problem: str) -> ExecutorError:
        return ExecutorError(
            f"view {self._view}: expected each chunk back once, a chunk of {rows} rows {problem}; what is recorded is "
            "kept, run the command again"
        )
