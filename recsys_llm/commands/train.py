"""``recsys-llm train``: a SeqGAN from the events and item vectors of a feature repository."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from recsys_llm.commands.views import feature_view
from recsys_llm.config import Config, SequenceModelConfig, load_config
from recsys_llm.engine.engine import parts_directory
from recsys_llm.errors import ConfigError, did_you_mean
from recsys_llm.producers.vectors import item_vectors
from recsys_llm.seqgan import Checkpoint, ItemVectors, SeqGANConfig, TrainingProgress, train
from recsys_llm.sources import tables
from recsys_llm.timestamps import MICROSECOND, as_utc, now


def train_sequence_model(
    repository: Path,
    name: str,
    *,
    until: datetime,
    settings: SeqGANConfig | None = None,
    overwrite: bool = False,
    device: str = "auto",
    progress: Callable[[TrainingProgress], None] | None = None,
) -> Checkpoint:
    """Train a sequence model of ``recsys_llm.yaml`` on events strictly before ``until``, and save its checkpoint.

    Raises
    ------
    ConfigError
        ``recsys_llm.yaml`` has no such model, its checkpoint exists and ``overwrite`` is not set, or ``until`` lies in
        the future.
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
    if until > now():
        raise ConfigError(f"until: expected a time that has passed, found {until}; later events would count as unseen")
    target = config.path(model.checkpoint)
    if target.exists() and not overwrite:
        raise ConfigError(
            f"{target}: exists; views hold its predictions, which must not be mixed with another model's: add a model "
            "and a view of a new version, or pass --overwrite if no view has been materialised with it"
        )
    checkpoint = train(
        tables.interactions(config, end=until - MICROSECOND, order_by="user"),
        settings or SeqGANConfig(),
        until=until,
        item_vectors=_vectors(config, model, until),
        device=device,
        progress=progress,
    )
    checkpoint.save(target)
    return checkpoint


def _vectors(config: Config, model: SequenceModelConfig, until: datetime) -> ItemVectors | None:
    if model.item_vectors is None:
        return None
    view = feature_view(config.root, model.item_vectors)
    return item_vectors(parts_directory(view), view.name, before=until)
