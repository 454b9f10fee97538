"""The item vectors of an encoder, from the parts of its view where there are any."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from recsys_llm.config import Config, TextEncoderConfig
from recsys_llm.engine.engine import parts_directory
from recsys_llm.errors import DataError, FingerprintError
from recsys_llm.producers import ProducerTag
from recsys_llm.producers.hashing import fingerprint_of
from recsys_llm.producers.parts import part_files, read_manifest
from recsys_llm.producers.vectors import item_vectors
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM_ID
from recsys_llm.sources import tables
from recsys_llm.text import TextEncoder, item_documents
from recsys_llm.timestamps import MICROSECOND, as_utc

if TYPE_CHECKING:
    import feast

Floats = npt.NDArray[np.float32]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class CatalogueVectors:
    """An encoder's vectors of items."""

    fitting: Floats
    """float32 (m, dim): of the items known strictly before a time, by their newest texts by then."""
    item_ids: tuple[str, ...]
    """n items known strictly before a later time."""
    catalogue: Floats
    """float32 (n, dim): by their newest texts by that later time."""
    origin: str
    """The view that they were read from, or ``encoded``."""


def catalogue_vectors(
    config: Config,
    settings: TextEncoderConfig,
    encoder: TextEncoder,
    views: Sequence[feast.FeatureView],
    *,
    until: datetime,
    end: datetime,
    progress: Callable[[str, int, int], None] | None = None,
) -> CatalogueVectors:
    """Return the vectors of the items known before ``until``, and of those known before ``end``.

    Parameters
    ----------
    views
        Registered views of the encoder; a materialised one that holds all items saves encoding.

    Raises
    ------
    FingerprintError
        The view's parts come from another model, or another template.
    DataError
        No item is known before ``until``.
    """
    texts = _newest_texts(config, settings, until, end)
    view = next((view for view in views if _is_materialised(view, config.root)), None)
    # Rows of an encoder that was trained until then are stamped at that very time, whatever the age of their texts.
    if view is None or encoder.trained_until == until:
        return _encoded(encoder, texts, until, progress)
    directory = parts_directory(view, config.root)
    manifest = read_manifest(part_files(directory)[0])
    expected = fingerprint_of({"encoder": encoder.fingerprint, "template": settings.template})
    if manifest["fingerprint"] != expected:
        raise FingerprintError(
            f"view {view.name} holds vectors of fingerprint {manifest['fingerprint']}, the encoder and template at "
            f"hand have {expected}; restore the old settings, or compress the encoder that the view was computed with"
        )
    earlier, later = texts
    try:
        fitting, found = (item_vectors(directory, view.name, before=time) for time in (until, end))
    except DataError:  # none of that time
        return _encoded(encoder, texts, until, progress)
    if set(fitting.item_ids) != set(earlier) or set(found.item_ids) != set(later):
        _logger.warning(
            "view %s holds %d of %d items; all are encoded instead", view.name, len(found.item_ids), len(later)
        )
        return _encoded(encoder, texts, until, progress)
    return CatalogueVectors(fitting.vectors, found.item_ids, found.vectors, view.name)


def _is_materialised(view: feast.FeatureView, root: Path) -> bool:
    tag = ProducerTag.of(view.name, view.tags)
    return tag is not None and tag.source == "items" and bool(part_files(parts_directory(view, root)))


def _encoded(
    encoder: TextEncoder,
    newest: tuple[dict[str, str], dict[str, str]],
    until: datetime,
    progress: Callable[[str, int, int], None] | None,
) -> CatalogueVectors:
    earlier, later = newest
    if not earlier:
        raise DataError(f"no item is known before {until}; choose a later --until")
    texts = list(dict.fromkeys([*earlier.values(), *later.values()]))
    place = {text: row for row, text in enumerate(texts)}

    def advance(done: int) -> None:
        if progress is not None:
            progress("encoding", done, len(texts))

    vectors = encoder.encode(texts, progress=advance)
    fitting, catalogue = (vectors[[place[text] for text in found.values()]] for found in (earlier, later))
    return CatalogueVectors(fitting, tuple(later), catalogue, "encoded")


def _newest_texts(
    config: Config, settings: TextEncoderConfig, until: datetime, end: datetime
) -> tuple[dict[str, str], dict[str, str]]:
    """Return the newest text of each item by ``until``, and by ``end``; rows come ordered by item and time."""
    earlier: dict[str, str] = {}
    later: dict[str, str] = {}
    for batch in tables.items(config, end=end - MICROSECOND):
        texts = item_documents(batch, settings.template, source=config.sources.items.origin)
        ids, times = batch.column(ITEM_ID).to_pylist(), batch.column(EVENT_TIMESTAMP).to_pylist()
        for item, time, text in zip(ids, times, texts, strict=True):
            later[item] = text
            if as_utc(time) < until:
                earlier[item] = text
    return earlier, later
