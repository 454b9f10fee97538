"""Reading features: training sets as of each example's time, and lookups for one user and many candidates."""

from recsys_llm.retrieval.blocks import EntityBlock, FeatureBatch, Status
from recsys_llm.retrieval.client import FeatureClient
from recsys_llm.retrieval.pairwise import PAIRWISE
from recsys_llm.retrieval.store import open_store
from recsys_llm.retrieval.training import TrainingSet

__all__ = ["PAIRWISE", "EntityBlock", "FeatureBatch", "FeatureClient", "Status", "TrainingSet", "open_store"]
