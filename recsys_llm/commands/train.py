"""``recsys-llm train``: a SeqGAN from the events and item vectors of a feature repository."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from recsys_llm.config import Config, SequenceModelConfig, load_config
from recsys_llm.engine.engine import parts_directory
from recsys_llm.errors import ConfigError, did_you_mean
from recsys_llm.producers.vectors import item_vectors
from recsys_llm.retrieval import open_store
from recsys_llm.seqgan import Checkpoint, ItemVectors, SeqGANConfig, TrainingProgress, train
from recsys_llm.sources import tables
from recsys_llm.timestamps import MICROSECOND, as_utc


def train_sequence_model(
    repository: Path,
    name: str,
    *,
    until: datetime,
    settings: SeqGANConfig | None = None,
    device: str = "auto",
    progress: Callable[[TrainingProgress], None] | None = None,
) -> Checkpoint:
    """Train a sequence model of ``recsys_llm.yaml`` on events strictly before ``until``, and save its checkpoint.

    Raises
    ------
    ConfigError
        ``recsys_llm.yaml`` has no such model.
    DataError
        The view of item vectors that the model starts from has not been materialised.
    TrainingError
        There is nothing to train on, or the loss is no longer finite.
    """
    config = load_config(repository)
    if name not in config.sequence_models:
        raise ConfigError(f"unknown sequence model {name!r}; {did_you_mean(name, config.sequence_models)}")
    model = config.sequence_models[name]
    until = as_utc(until, name="until")
    checkpoint = train(
        tables.interactions(config, end=until - MICROSECOND, order_by="user"),
        settings or SeqGANConfig(),
        until=until,
        item_vectors=_vectors(config, model, until),
        device=device,
        progress=progress,
    )
    checkpoint.save(config.path(model.checkpoint))
    return checkpoint


def _vectors(config: Config, model: SequenceModelConfig, until: datetime) -> ItemVectors | None:
    if model.item_vectors is None:
        return None
    view = open_store(config.root).get_feature_view(model.item_vectors)
    return item_vectors(parts_directory(view), view.name, before=until)
