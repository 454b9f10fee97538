"""Reading features: training sets as of each example's time, and lookups for one user and many candidates."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys_llm.retrieval.blocks import EntityBlock, FeatureBatch, Status
    from recsys_llm.retrieval.client import FeatureClient
    from recsys_llm.retrieval.item_cache import CacheSettings, CacheStats
    from recsys_llm.retrieval.lookup_client import LookupClient
    from recsys_llm.retrieval.pairwise import PAIRWISE
    from recsys_llm.retrieval.store import open_store
    from recsys_llm.retrieval.training import TrainingSet

__all__ = [
    "PAIRWISE",
    "CacheSettings",
    "CacheStats",
    "EntityBlock",
    "FeatureBatch",
    "FeatureClient",
    "LookupClient",
    "Status",
    "TrainingSet",
    "open_store",
]

_HOMES = {
    "PAIRWISE": "pairwise",
    "CacheSettings": "item_cache",
    "CacheStats": "item_cache",
    "EntityBlock": "blocks",
    "FeatureBatch": "blocks",
    "FeatureClient": "client",
    "LookupClient": "lookup_client",
    "Status": "blocks",
    "TrainingSet": "training",
    "open_store": "store",
}


def __getattr__(name: str) -> Any:
    # Serving needs neither pandas nor pyarrow.
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
