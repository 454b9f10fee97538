"""Feature families, and the way from due rows to stored features."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

from recsys_llm.config import Config, TextEncoderConfig
from recsys_llm.errors import ConfigError, did_you_mean
from recsys_llm.producers.base import Producer, ProducerTag
from recsys_llm.producers.item_statistics import ItemStatistics
from recsys_llm.producers.ledger import Ledger
from recsys_llm.producers.next_items import NextItems
from recsys_llm.producers.next_vectors import NextVectors
from recsys_llm.producers.parts import Parts
from recsys_llm.producers.pipeline import Summary, plan, produce
from recsys_llm.producers.rollout_lists import RolloutLists
from recsys_llm.producers.sequence_states import SequenceStates
from recsys_llm.producers.text_embedding import ItemTextEmbedding, UserTextEmbedding
from recsys_llm.producers.user_statistics import UserStatistics
from recsys_llm.schema import ITEM_STATISTICS, NEXT_ITEMS, NEXT_VECTORS, ROLLOUT_LISTS, SEQUENCE_STATES, TEXT_EMBEDDING
from recsys_llm.seqgan.rolling import RollingModel
from recsys_llm.text import TextEncoder

_Settings = TypeVar("_Settings")
_OVER_HISTORIES: dict[str, Callable[..., Producer]] = {
    NEXT_ITEMS: NextItems,
    ROLLOUT_LISTS: RolloutLists,
    SEQUENCE_STATES: SequenceStates,
}

__all__ = [
    "Ledger",
    "Parts",
    "Producer",
    "ProducerTag",
    "Summary",
    "encoder_model",
    "encoder_settings",
    "load_encoder",
    "open_ledger",
    "open_producer",
    "plan",
    "produce",
]


def open_producer(view: str, tag: ProducerTag, config: Config, *, device: str = "auto") -> Producer:
    """Return the producer that a view's tag names, with its model loaded.

    Raises
    ------
    ConfigError
        The tag names a model that recsys_llm.yaml doesn't have, or a source that the producer can't use.
    """
    if tag.producer == TEXT_EMBEDDING:
        settings = _model(view, tag, config.text_encoders, "text_encoders")
        encoder = load_encoder(settings, config, device=device)
        return (ItemTextEmbedding if tag.source == "items" else UserTextEmbedding)(config, settings, encoder)
    if tag.source != "interactions":
        raise ConfigError(f"view {view}: producer {tag.producer!r} reads 'interactions', its tag says {tag.source!r}")
    if tag.producer == NEXT_VECTORS or tag.producer in _OVER_HISTORIES:
        model = _model(view, tag, config.sequence_models, "sequence_models")
        models = RollingModel.load(config.path(model.checkpoint))
        if tag.producer == NEXT_VECTORS:
            return NextVectors(config, model, models)
        return _OVER_HISTORIES[tag.producer](config, model, models, device=device)
    return ItemStatistics(config) if tag.producer == ITEM_STATISTICS else UserStatistics(config)


def open_ledger(config: Config) -> Ledger:
    """Return the ledger of a feature repository, with its tables made."""
    return Ledger(config.ledger, lock_directory=config.path("data/locks")).open()


def encoder_settings(name: str, config: Config) -> TextEncoderConfig:
    """Return the settings of a text encoder of recsys_llm.yaml.

    Raises
    ------
    ConfigError
        There is none of that name.
    """
    if name not in config.text_encoders:
        raise ConfigError(f"unknown text encoder {name!r}; {did_you_mean(name, config.text_encoders)}")
    return config.text_encoders[name]


def load_encoder(settings: TextEncoderConfig, config: Config, *, device: str = "auto") -> TextEncoder:
    """Return a text encoder of recsys_llm.yaml; the views of one run share it."""
    transform = None if settings.transform is None else config.path(settings.transform)
    model = encoder_model(settings, config)
    written = _newest_change(Path(model)), None if transform is None else _newest_change(transform)
    return _load_encoder(model, device, settings.max_tokens, settings.pooling, settings.normalize, transform, written)


def encoder_model(settings: TextEncoderConfig, config: Config) -> str:
    """Return a model as :func:`~recsys_llm.text.resolve_model` takes it: a directory starts at the repository."""
    local = config.path(settings.model)
    return str(local) if local.is_dir() else settings.model


@lru_cache(maxsize=2)
def _load_encoder(
    model: str,
    device: str,
    max_tokens: int,
    pooling: Literal["mean", "cls"],
    normalize: bool,
    transform: Path | None,
    written: tuple[int | None, int | None],
) -> TextEncoder:
    # ``written`` is there to load an encoder anew that was trained again in place.
    return TextEncoder.load(
        model, device=device, max_tokens=max_tokens, pooling=pooling, normalize=normalize, transform=transform
    )


def _newest_change(directory: Path) -> int | None:
    """Return when a file of a directory was last written (nanoseconds); None where there is no directory."""
    return max((path.stat().st_mtime_ns for path in directory.iterdir()), default=0) if directory.is_dir() else None


def _model(view: str, tag: ProducerTag, known: dict[str, _Settings], section: str) -> _Settings:
    if tag.model is None or tag.model not in known:
        named = "names no model" if tag.model is None else f"names the model {tag.model!r}"
        raise ConfigError(
            f"view {view}: its tag {named}; recsys_llm.yaml has under {section}: {did_you_mean(tag.model or '', known)}"
        )
    return known[tag.model]
