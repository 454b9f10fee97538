"""Text embeddings and SeqGAN next items as features of a Feast feature store."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recsys_llm.retrieval import FeatureBatch, FeatureClient, LookupClient, TrainingSet
    from recsys_llm.text import TextEncoder

__version__ = "0.1.0"

__all__ = ["FeatureBatch", "FeatureClient", "LookupClient", "TextEncoder", "TrainingSet", "__version__"]

_HOMES = {
    "FeatureBatch": "recsys_llm.retrieval",
    "FeatureClient": "recsys_llm.retrieval",
    "LookupClient": "recsys_llm.retrieval",
    "TrainingSet": "recsys_llm.retrieval",
    "TextEncoder": "recsys_llm.text",
}


def __getattr__(name: str) -> Any:
    # Feast, torch and transformers take seconds to import; `feast apply` and `recsys-llm --help` need none of them.
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'recsys_llm' has no attribute {name!r}")
