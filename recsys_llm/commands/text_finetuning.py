"""``recsys-llm text finetune``: an encoder whose vectors find the next item, from a repository's own events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console

from recsys_llm.bench.report import report
from recsys_llm.commands.repository import path_in
from recsys_llm.commands.steps import progress_bar
from recsys_llm.commands.text_training import TrainedEncoder, open_state, save_trained, starting_point
from recsys_llm.config import Config, TextEncoderConfig, load_config
from recsys_llm.errors import TrainingError
from recsys_llm.sources import tables
from recsys_llm.text.categories import Categories
from recsys_llm.text.finetuning import Progress, finetune
from recsys_llm.text.finetuning_settings import FinetuningConfig, FinetuningProgress
from recsys_llm.text.loading import resolve_device
from recsys_llm.text.manifest import EncoderManifest
from recsys_llm.text.objectives import Contrastive, Objective
from recsys_llm.text.pairs import ItemTexts, TextPairs, item_texts, text_pairs
from recsys_llm.timestamps import MICROSECOND


def finetune_encoder(
    repository: Path,
    name: str,
    *,
    until: datetime,
    out: Path,
    settings: FinetuningConfig | None = None,
    start: Path | None = None,
    device: str = "auto",
    resume: bool = True,
    progress: Progress | None = None,
) -> TrainedEncoder:
    """Fine-tune an encoder of ``recsys_llm.yaml`` on texts and events from strictly before ``until``, and save it.

    The state of an unfinished training is kept beside ``out``, in ``OUT.partial``, and removed at the end. Where no
    epoch validates better than the start, the start's weights are saved, and the manifest's scores say so.

    Parameters
    ----------
    settings
        ``max_tokens`` above the encoder's own is lowered to that.
    start
        Directory of the weights to start from, such as a pre-trained encoder; None: the encoder's own model.
    resume
        Go on with an unfinished training of the same model, data and settings; False: start again.

    Raises
    ------
    ConfigError
        ``recsys_llm.yaml`` has no such encoder, ``until`` lies in the future or before what the encoder was trained on.
    ModelError
        The encoder can't be loaded.
    CheckpointError
        ``out`` holds something that was not trained here, or the unfinished training is damaged.
    TrainingError
        There are too few pairs, the architecture can't be fine-tuned, or the loss is no longer finite.
    """
    started = time.perf_counter()
    config = load_config(repository)
    encoder, files, until = starting_point(_starting_from(config, name, start), name, until=until, out=out)
    wanted = settings or FinetuningConfig()
    wanted = replace(wanted, max_tokens=min(wanted.max_tokens, encoder.max_tokens))
    state = open_state(out, resume=resume)
    objective, sizes = make_objective(config, encoder, wanted, until=until)
    found = finetune(
        files,
        objective,
        wanted,
        pooling=encoder.pooling,
        normalize=encoder.normalize,
        device=resolve_device(device),
        state=state,
        progress=progress,
    )
    manifest = EncoderManifest(
        "finetuned", files.name, until, _settings(wanted, encoder), {**found.scores, "data": sizes}
    )
    save_trained(out, found.model, files, manifest)
    return TrainedEncoder(name, out, manifest, time.perf_counter() - started, None)


def _starting_from(config: Config, name: str, start: Path | None) -> Config:
    if start is None or name not in config.text_encoders:
        return config
    encoder = config.text_encoders[name].model_copy(update={"model": str(start.resolve())})
    return config.model_copy(update={"text_encoders": {**config.text_encoders, name: encoder}})


def make_objective(
    config: Config, encoder: TextEncoderConfig, settings: FinetuningConfig, *, until: datetime
) -> tuple[Objective, dict[str, int]]:
    """Return the task of a fine-tuning on a repository's tables from before ``until``, and the sizes of its data.

    Raises
    ------
    TrainingError
        There are too few pairs, or too few items with a category.
    """
    last = until - MICROSECOND
    items = item_texts(tables.items(config, end=last), encoder, until=until, source=config.sources.items.origin)
    interactions = pa.Table.from_batches(list(tables.interactions(config, end=last)), schema=tables.INTERACTIONS_SCHEMA)
    if settings.objective == "contrastive":
        pairs = pairs_for(interactions, items, encoder, settings, until=until)
        sizes = {"items": len(items), "texts": len(pairs.texts), "pairs": len(pairs)}
        return Contrastive(pairs, settings), sizes | {"validation_pairs": len(pairs.validation)}
    try:
        next_items = pairs_for(interactions, items, encoder, settings, until=until).validation
    except TrainingError:  # categories need no events; without any, there is just no recall to report
        next_items = None
    categories = Categories(items, settings, next_items)
    return categories, {"items": len(items), "categories": len(categories.names), "labelled": len(categories)}


def pairs_for(
    interactions: pa.Table, items: ItemTexts, encoder: TextEncoderConfig, settings: FinetuningConfig, *, until: datetime
) -> TextPairs:
    """Return the pairs that the settings ask for."""
    return text_pairs(
        interactions,
        items,
        until=until,
        item_pairs=settings.item_pairs,
        user_pairs=settings.user_pairs,
        recent_items=encoder.user.recent_items,
        validation_share=settings.validation_share,
        validation_pairs=settings.validation_pairs,
        seed=settings.seed,
    )


def _settings(settings: FinetuningConfig, encoder: TextEncoderConfig) -> dict[str, Any]:
    read = {"template": encoder.template, "user_template": encoder.user.template, "pooling": encoder.pooling}
    return {**settings.identity(), "learning_rate": settings.rate, **read}


@contextmanager
def finetuning_bar(console: Console) -> Iterator[Callable[[FinetuningProgress], None]]:
    """Hand out a callback that shows step and loss; nothing where there is no terminal."""
    with progress_bar(console) as bar:
        task = bar.add_task("fine-tuning", total=None)

        def show(found: FinetuningProgress) -> None:
            bar.update(task, completed=found.step, total=found.total, description=f"loss {found.loss:.3f}")

        yield show


def show_finetuning(trained: TrainedEncoder, repository: Path, echo: Callable[[str], object]) -> None:
    """Say what was trained, on what, and what came of it."""
    scores = trained.manifest.scores
    metric, chosen = scores["metric"], scores["chosen"]
    sizes = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in scores["data"].items())
    echo(f"{sizes}; {trained.seconds:,.1f} s")
    for epoch in scores["epochs"]:
        loss = "the start  " if epoch["loss"] is None else f"loss {epoch['loss']:.4f}"
        is_kept = epoch["epoch"] == chosen["epoch"] and chosen["share"] in (0.0, 1.0)
        kept = "  (kept)" if is_kept else ""
        echo(f"epoch {epoch['epoch']}: {loss}  {_figures(epoch)}{kept}")
    for between in scores["interpolation"]:
        kept = "  (kept)" if between["share"] == chosen["share"] else ""
        echo(f"{between['share']:.0%} of the way from the start: {_figures(between)}{kept}")
    if scores["helped"]:
        echo(
            f"saved {trained.directory}; next: a new encoder with `model: {path_in(repository, trained.directory)}` in "
            "recsys_llm.yaml"
        )
    else:
        echo(f"no epoch had a better {metric} than the start: {trained.directory} holds the start's weights, unchanged")


def _figures(scores: dict[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4f}" for name, value in scores.items() if name not in ("epoch", "loss", "share"))


def finetuning_report(trained: TrainedEncoder) -> dict[str, Any]:
    """Return the figures for ``--json``."""
    manifest = trained.manifest
    scores = manifest.scores
    results = [{"name": f"epoch_{epoch['epoch']}", **epoch} for epoch in scores["epochs"]]
    results += [{"name": f"share_{between['share']}", **between} for between in scores["interpolation"]]
    results.append({"name": "training", "seconds": trained.seconds})
    content = report("text finetune", settings=manifest.settings, results=results, targets=[])
    return content | {**trained.origin, **{name: scores[name] for name in ("chosen", "helped", "data")}}
