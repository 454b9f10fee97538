"""``recsys-llm text evaluate``: how well encoders find the next item, on what came after their training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys_llm.bench.report import report
from recsys_llm.bench.retrieval_report import result_of, show_results
from recsys_llm.bench.wordless_baselines import baseline_scores
from recsys_llm.config import Config, TextEncoderConfig, load_config
from recsys_llm.errors import ConfigError, LeakageError, TrainingError, did_you_mean
from recsys_llm.producers import load_encoder
from recsys_llm.sources import tables
from recsys_llm.text.evaluation import NextItemPairs, RetrievalScores, evaluate_vectors, pair_events
from recsys_llm.text.events import Events, read_events
from recsys_llm.text.pairs import item_texts
from recsys_llm.timestamps import MICROSECOND, as_utc, now, to_micros


@dataclass(frozen=True, eq=False)
class EncoderEvaluation:
    """Scores of some encoders on the same pairs."""

    until: datetime
    end: datetime
    pairs: NextItemPairs
    encoders: dict[str, RetrievalScores]
    """In the order asked for; the first is what the others are compared with."""
    baselines: dict[str, RetrievalScores]


def evaluate_encoders(
    repository: Path,
    encoders: Sequence[str],
    *,
    until: datetime,
    end: datetime | None = None,
    device: str = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> EncoderEvaluation:
    """Evaluate encoders on events with ``until <= time < end``; the catalogue's texts are those known before ``end``.

    Parameters
    ----------
    encoders
        Names under ``text_encoders`` in ``recsys_llm.yaml``, or directories of models; a directory reads the texts, and
        is pooled, as the first name does (or the first encoder of the file).
    end
        None: now.
    progress
        Called with an encoder's name, its texts encoded so far, and all of them.

    Raises
    ------
    ConfigError
        An encoder is neither a name nor a directory.
    LeakageError
        An encoder was trained on what came at or after ``until``.
    TrainingError
        No user has two liked events of which one lies in the period.
    """
    config = load_config(repository)
    until, end = as_utc(until, name="until"), as_utc(end or now(), name="end")
    settings = {name: _settings_of(config, name, encoders) for name in encoders}
    last = end - MICROSECOND
    interactions = pa.Table.from_batches(list(tables.interactions(config, end=last)), schema=tables.INTERACTIONS_SCHEMA)
    scores: dict[str, RetrievalScores] = {}
    baselines: dict[str, RetrievalScores] = {}
    for name, encoder in settings.items():
        items = item_texts(tables.items(config, end=last), encoder, until=end, source=config.sources.items.origin)
        events = read_events(interactions, items.ids)
        pairs = _pairs(events, len(items), until, end)
        scores[name] = evaluate_vectors(_vectors(config, encoder, name, items.texts, until, device, progress), pairs)
        if not baselines:
            baselines = baseline_scores(events.where(events.time < to_micros(until)), pairs)
    return EncoderEvaluation(until, end, pairs, scores, baselines)


def _pairs(events: Events, items: int, until: datetime, end: datetime) -> NextItemPairs:
    pairs = pair_events(events, items, start=until, end=end, until=until)
    if not len(pairs):
        raise TrainingError(
            f"expected users with a liked item from {until} to {end} and one before, found none; check the period"
        )
    return pairs


def _settings_of(config: Config, encoder: str, among: Sequence[str]) -> TextEncoderConfig:
    if encoder in config.text_encoders:
        return config.text_encoders[encoder]
    if not Path(encoder).is_dir() or not config.text_encoders:
        raise ConfigError(
            f"encoder {encoder!r}: expected a directory, or a name under text_encoders; "
            f"{did_you_mean(encoder, config.text_encoders)}"
        )
    like = next((name for name in among if name in config.text_encoders), next(iter(config.text_encoders)))
    update = {"model": str(Path(encoder).resolve()), "transform": None}
    return config.text_encoders[like].model_copy(update=update)


def _vectors(
    config: Config,
    settings: TextEncoderConfig,
    name: str,
    texts: list[str],
    until: datetime,
    device: str,
    progress: Callable[[str, int, int], None] | None,
) -> Any:
    encoder = load_encoder(settings, config, device=device)
    if encoder.trained_until is not None and encoder.trained_until > until:
        raise LeakageError(
            f"encoder {name!r} was trained on what came before {encoder.trained_until}; evaluate from then on "
            f"(--until), or an encoder that was trained until {until}"
        )
    report_on = None if progress is None else lambda done: progress(name, done, len(texts))
    return encoder.encode(texts, progress=report_on)


def evaluation_report(found: EncoderEvaluation) -> dict[str, Any]:
    """Return the figures for ``--json``."""
    first = next(iter(found.encoders))
    results = [
        result_of(name, [scores], baseline=(first, [found.encoders[first]]) if name != first else None)
        for name, scores in {**found.encoders, **found.baselines}.items()
    ]
    settings = {
        "until": found.until.isoformat(),
        "end": found.end.isoformat(),
        "pairs": len(found.pairs),
        "cold_pairs": int(found.pairs.is_cold.sum()),
        "items": len(found.pairs.cold_items),
    }
    return report("text evaluate", settings=settings, results=results, targets=[])


def show_evaluation(content: dict[str, Any], echo: Callable[[str], object]) -> None:
    """Print the figures of :func:`evaluation_report`."""
    settings = content["settings"]
    echo(
        f"{settings['pairs']:,} pairs from {settings['until']} on, {settings['cold_pairs']:,} with a cold target; "
        f"{settings['items']:,} items"
    )
    show_results(content["results"], echo)
