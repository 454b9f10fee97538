"""Who is told of lookups, such as ``recsys_llm.metrics.LookupMetrics``; serving itself needs no metrics library."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from recsys_llm.errors import StoreError
from recsys_llm.retrieval.blocks import FeatureBatch


class LookupObserver(Protocol):
    """Is told of every lookup, in the thread that asks, so it must be quick and never raise."""

    def watch(self, client: Any) -> None:
        """Take note of the client: its ``project``, ``cache_totals()`` and ``breaker_state`` may be asked for later."""
        ...

    def answered(self, seconds: float, batches: Sequence[FeatureBatch]) -> None:
        """Note what a lookup gave."""
        ...

    def failed(self, seconds: float) -> None:
        """Note that a lookup raised."""
        ...

    def store_failed(self, error: StoreError) -> None:
        """Note that the store failed, whether the lookup goes on without it or not."""
        ...
