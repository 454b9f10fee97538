"""A client of a Redis cluster whose requests end in time, however many nodes and retries they take.

redis-py asks the nodes of a request one after the other, asks the others for the slots when one fails, and sends each
command that failed again by itself: with a timeout of its own for each, a frozen node would hold up a lookup as many
times as it has candidates.
"""

from __future__ import annotations

from typing import Any

from redis import RedisCluster

from recsys_llm.stores.redis_connection import Deadline, spanning


class SpannedCluster(RedisCluster):
    """Redis-py's client with one deadline for each request.

    Parameters
    ----------
    budget
        Seconds for a request, and for finding the nodes; None: no limit but that of each wait.
    settings
        Of ``RedisCluster``.
    """

    def __init__(self, budget: float | None, **settings: Any) -> None:
        self._budget = budget
        with spanning(self._begun()):
            super().__init__(**settings)

    def execute_command(self, *args: Any, **kwargs: Any) -> Any:
        """Send one command, as redis-py does."""
        with spanning(self._begun()):
            return super().execute_command(*args, **kwargs)  # type: ignore[no-untyped-call]

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> Any:
        """Return a pipeline whose execution is one request."""
        pipe: Any = super().pipeline(transaction, shard_hint)  # type: ignore[no-untyped-call]
        execute = pipe.execute

        def within_budget(raise_on_error: bool = True) -> Any:
            with spanning(self._begun()):
                return execute(raise_on_error)

        pipe.execute = within_budget
        return pipe

    def _begun(self) -> Deadline:
        deadline = Deadline()
        deadline.begin(self._budget)
        return deadline
