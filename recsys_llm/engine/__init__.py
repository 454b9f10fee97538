"""Feast's compute engine seam: ``feast materialize`` computes features here."""

from recsys_llm.engine.engine import FeatureComputeEngine, FeatureComputeEngineConfig

__all__ = ["FeatureComputeEngine", "FeatureComputeEngineConfig"]
