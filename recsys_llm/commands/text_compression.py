"""``recsys-llm text compress``: what smaller vectors of an encoder still find, and the one to serve.

Maps are fitted to the texts known strictly before a time, and measured on the events from then on. One half of the
users chooses, the other half says what the choice keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from recsys_llm.bench.vector_lookup import LookupCost, lookup_costs
from recsys_llm.commands.text_vectors import CatalogueVectors, catalogue_vectors
from recsys_llm.config import Config, TextEncoderConfig, load_config
from recsys_llm.errors import ConfigError, DataError, LeakageError, did_you_mean
from recsys_llm.producers import ProducerTag, encoder_settings, load_encoder
from recsys_llm.retrieval import open_store
from recsys_llm.schema import TEXT_EMBEDDING
from recsys_llm.sources import tables
from recsys_llm.text.compression import FULL, Quality, fit_candidates, measure, pareto_front, smallest_that_keeps
from recsys_llm.text.evaluation import NextItemPairs, next_item_pairs
from recsys_llm.text.transform import VectorTransform, check_target
from recsys_llm.timestamps import as_utc, now

if TYPE_CHECKING:
    import feast

    from recsys_llm.text import TextEncoder

MOST_PAIRS = 20_000
"""Pairs that candidates are measured on, at most; more are sampled."""
CANDIDATES = 500
"""Items in a timed lookup."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done and how much there is."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """One way to make vectors smaller, measured."""

    name: str
    transform: VectorTransform
    choosing: Quality
    """On the users that the choice is made by."""
    quality: Quality
    """On the other users."""
    cost: LookupCost
    on_front: bool
    """No other has as much recall in as few bytes, and more or fewer."""

    @property
    def lookup_ms(self) -> float:
        """Median."""
        return float(np.median(self.cost.milliseconds))


@dataclass(frozen=True, eq=False)
class Compression:
    """All candidates, and the one that was chosen."""

    encoder: str
    settings: TextEncoderConfig
    candidates: tuple[Candidate, ...]
    chosen: Candidate
    directory: Path | None
    """Where its transform was saved; None where the full vectors were chosen."""
    until: datetime
    end: datetime
    keep: float
    seed: int
    sources: dict[str, Any]
    """Where the vectors came from, and how many items, pairs and users there are."""
    views: tuple[feast.FeatureView, ...]
    """The registered views of the encoder."""
    registered: tuple[str, ...]
    """Names of all registered views."""


def compress_encoder(
    repository: Path,
    name: str,
    *,
    until: datetime,
    out: Path,
    config_file: str | None = None,
    end: datetime | None = None,
    choose: str | None = None,
    keep: float = 0.97,
    runs: int = 15,
    seed: int = 0,
    device: str = "auto",
    progress: Progress | None = None,
) -> Compression:
    """Measure all candidates, choose one and save its transform.

    Parameters
    ----------
    until
        Maps are fitted to item texts stamped strictly before it, and measured on events from it on.
    end
        Events before it count; by default all until now.
    out
        Directory for the transform.
    config_file
        As for :func:`recsys_llm.retrieval.open_store`; the registry there knows the encoder's views.
    choose
        Name of a candidate; None: the smallest that keeps enough.
    keep
        Share of the full vectors' recall@20 and NDCG@10 that the choice must keep.
    runs
        Timed lookups of each form.
    seed
        Of sampling and the bootstrap.

    Raises
    ------
    ConfigError
        There is no such encoder or candidate, the encoder has a transform already, or the times make no sense.
    LeakageError
        The encoder was trained on data from after ``until``.
    DataError
        There are no items before ``until``, or no events to measure on.
    CheckpointError
        ``out`` holds something else.
    """
    config = load_config(repository)
    settings = _settings(config, name)
    until, end = _period(until, end)
    check_target(out)
    encoder = load_encoder(settings, config, device=device)
    _check_cutoff(encoder, name, until)
    store = open_store(repository, config_file=config_file)
    registered = sorted(store.list_feature_views(), key=lambda view: str(view.name))  # the registry has no order
    views = tuple(view for view in registered if _is_of(view, name))
    vectors = catalogue_vectors(config, settings, encoder, views, until=until, end=end, progress=progress)
    choosing, reported = _halves(_pairs(config, vectors, until, end, seed), until, seed)
    fitted = fit_candidates(vectors.fitting, encoder.fingerprint, normalize=settings.normalize, until=until, seed=seed)
    if choose is not None and choose not in fitted:
        raise ConfigError(f"--choose: unknown candidate {choose!r}; {did_you_mean(choose, fitted)}")
    candidates = _measured(fitted, vectors.catalogue, choosing, reported, runs=runs, seed=seed, progress=progress)
    chosen = candidates[choose if choose is not None else _smallest(candidates, keep)]
    sources = {
        "vectors": vectors.origin,
        "fitted_items": len(vectors.fitting),
        "items": len(vectors.item_ids),
        "choosing_users": len(np.unique(choosing.user)),
        "users": len(np.unique(reported.user)),
        "pairs": len(reported),
    }
    directory = None if chosen.name == FULL else _save(chosen, out, until, end, sources)
    return Compression(
        name,
        settings,
        tuple(candidates.values()),
        chosen,
        directory,
        until,
        end,
        keep,
        seed,
        sources,
        views,
        tuple(view.name for view in registered),
    )


def _settings(config: Config, name: str) -> TextEncoderConfig:
    settings = encoder_settings(name, config)
    if settings.transform is not None:
        raise ConfigError(
            f"text encoder {name!r}: has the transform {settings.transform} already; compress the encoder without one"
        )
    return settings


def _period(until: datetime, end: datetime | None) -> tuple[datetime, datetime]:
    until, end = as_utc(until, name="until"), now() if end is None else as_utc(end, name="end")
    if not until < end:
        raise ConfigError(
            f"until: expected a time before {end}, found {until}; events between the two are what is measured on"
        )
    return until, end


def _check_cutoff(encoder: TextEncoder, name: str, until: datetime) -> None:
    if encoder.trained_until is not None and encoder.trained_until > until:
        raise LeakageError(
            f"text encoder {name!r} was trained on data up to {encoder.trained_until}, so events from {until} on say "
            "nothing about it; measure from that time on, or later"
        )


def _is_of(view: feast.FeatureView, encoder: str) -> bool:
    tag = ProducerTag.of(view.name, view.tags)
    return tag is not None and tag.producer == TEXT_EMBEDDING and tag.model == encoder


def _pairs(config: Config, vectors: CatalogueVectors, until: datetime, end: datetime, seed: int) -> NextItemPairs:
    interactions = tables.interactions(config, end=end)
    pairs = next_item_pairs(interactions, vectors.item_ids, start=until, end=end, until=until, seed=seed)
    if not len(pairs):
        raise DataError(
            f"no user liked two items with the second from {until} on and before {end}; choose an earlier --until"
        )
    if len(pairs) > MOST_PAIRS:
        drawn = np.random.default_rng(seed).choice(len(pairs), MOST_PAIRS, replace=False)
        pairs = pairs.take(np.sort(drawn))
    return pairs


def _halves(pairs: NextItemPairs, until: datetime, seed: int) -> tuple[NextItemPairs, NextItemPairs]:
    """Split the users in two at random."""
    users = np.random.default_rng(seed).permutation(np.unique(pairs.user))
    if len(users) < 2:
        raise DataError(
            f"expected two users or more that liked two items, the second from {until} on, one half to choose "
            "by and one to measure on; choose an earlier --until"
        )
    chooses = np.isin(pairs.user, users[: len(users) // 2])
    return pairs.take(chooses), pairs.take(~chooses)


def _measured(
    fitted: dict[str, VectorTransform],
    catalogue: npt.NDArray[np.float32],
    choosing: NextItemPairs,
    reported: NextItemPairs,
    *,
    runs: int,
    seed: int,
    progress: Progress | None,
) -> dict[str, Candidate]:
    costs = lookup_costs((transform.stored for transform in fitted.values()), candidates=CANDIDATES, runs=runs)
    chosen_by: dict[str, Quality] = {}
    qualities: dict[str, Quality] = {}
    for found, pairs in ((chosen_by, choosing), (qualities, reported)):
        for name, quality in measure(fitted, catalogue, pairs, seed=seed):
            found[name] = quality
            if progress is not None:
                progress("measuring", len(chosen_by) + len(qualities), 2 * len(fitted))
    sizes = {name: costs[transform.stored].bytes_per_item for name, transform in fitted.items()}
    front = pareto_front([qualities[name].recall for name in fitted], [sizes[name] for name in fitted])
    return {
        name: Candidate(name, transform, chosen_by[name], qualities[name], costs[transform.stored], on_front)
        for (name, transform), on_front in zip(fitted.items(), front, strict=True)
    }


def _smallest(candidates: dict[str, Candidate], keep: float) -> str:
    sizes = {name: found.cost.bytes_per_item for name, found in candidates.items()}
    return smallest_that_keeps({name: found.choosing for name, found in candidates.items()}, sizes, keep=keep)


def _save(chosen: Candidate, out: Path, until: datetime, end: datetime, sources: dict[str, Any]) -> Path:
    quality = chosen.quality
    measured = {
        "from": until.isoformat(),
        "to": end.isoformat(),
        **quality.scores.as_dict(),
        "recall_kept": quality.recall_kept,
        "ndcg_kept": quality.ndcg_kept,
        "recall_kept_when_chosen": chosen.choosing.recall_kept,
        "ndcg_kept_when_chosen": chosen.choosing.ndcg_kept,
        "bytes_per_item": chosen.cost.bytes_per_item,
        "lookup_ms": chosen.lookup_ms,
        **sources,
    }
    notes = {**chosen.transform.notes, "candidate": chosen.name, "measured": measured}
    replace(chosen.transform, notes=notes).save(out)
    return out
