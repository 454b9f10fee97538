"""``recsys-llm bench text-quality``: what training an encoder on a domain's own data is worth, split in time.

All training is on what came before T; next items are asked for from T on. Every contestant reads the same number of
tokens, and ranks the same catalogue for the same pairs.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys_llm.bench.report import report
from recsys_llm.bench.retrieval_report import result_of
from recsys_llm.bench.split import read_split
from recsys_llm.bench.wordless_baselines import baseline_scores
from recsys_llm.config import Config, TextEncoderConfig
from recsys_llm.producers import encoder_model
from recsys_llm.sources import tables
from recsys_llm.text.evaluation import NextItemPairs, RetrievalScores, evaluate_vectors, pair_events
from recsys_llm.text.events import Events, Ints, read_events
from recsys_llm.text.finetuning import fit
from recsys_llm.text.finetuning_settings import FinetuningConfig
from recsys_llm.text.loading import resolve_device
from recsys_llm.text.manifest import EncoderManifest
from recsys_llm.text.model_files import ModelFiles, resolve_model
from recsys_llm.text.objectives import Contrastive
from recsys_llm.text.pairs import ItemTexts, TextPairs, distinct_texts, item_texts, text_pairs
from recsys_llm.text.pretraining import pretrain
from recsys_llm.text.pretraining_settings import PretrainingConfig
from recsys_llm.text.saving import save_encoder
from recsys_llm.text.tunable import TunableEncoder
from recsys_llm.timestamps import MICROSECOND, to_micros

FROZEN, TUNED = "frozen", "fine-tuned"
PRETRAINED, BOTH = "pre-trained", "pre-trained, fine-tuned"


@dataclass(frozen=True)
class QualitySettings:
    """How much is trained; the defaults are for minutes on two cores, not for the best encoder."""

    seeds: int = 3
    """Trainings of each kind, at least 1."""
    train_share: float = 0.8
    """Share of the events that come before T."""
    max_tokens: int = 32
    """Tokens read of each text, in training and evaluation."""
    train_layers: int = 2
    """Layers that are fine-tuned."""
    epochs: int = 2
    """Of fine-tuning."""
    item_pairs: int = 3_000
    """Of an item and the next one, to fine-tune on."""
    user_pairs: int = 500
    """Of a user's text and the next item."""
    finetune_steps: int | None = 60
    """Gradient steps of a fine-tuning at most; None: all epochs."""
    pretrain_steps: int = 40
    """Gradient steps of a pre-training; 0: none."""


@dataclass(frozen=True, eq=False)
class _World:
    encoder: TextEncoderConfig
    files: ModelFiles
    until: datetime
    events: Events
    """Of the catalogue's items, before T."""
    known: ItemTexts
    """As of T."""
    texts: list[str]
    """Distinct: of all that is trained on, and of the catalogue."""
    catalogue: Ints
    """(items,) place of each item's text as of the last event."""
    train: tuple[TextPairs, ...]
    """Drawn for each seed."""
    test: NextItemPairs


def bench_text_quality(
    config: Config,
    encoder: str,
    settings: QualitySettings | None = None,
    *,
    device: str = "auto",
    echo: Callable[[str], object] = lambda line: None,
) -> dict[str, Any]:
    """Train an encoder in four ways, evaluate each on later events, and return the report.

    Parameters
    ----------
    encoder
        Name under ``text_encoders``.
    echo
        Told what is done, with losses, as soon as it is.

    Raises
    ------
    DataError
        There are too few events to split in time.
    TrainingError
        There are too few pairs to train on.
    """
    settings = settings or QualitySettings()
    world = _read(config, config.text_encoders[encoder], settings)
    echo(
        f"{len(world.catalogue):,} items, {len(world.train[0]):,} training pairs before {world.until:%Y-%m-%d %H:%M}, "
        f"{len(world.test):,} test pairs of {len(np.unique(world.test.user)):,} users from then on, "
        f"{int(world.test.is_cold.sum()):,} with a cold target"
    )
    contest = _Contest(world, settings, resolve_device(device), echo)
    contest.finetune_all(FROZEN, TUNED, contest.open(world.files), range(settings.seeds))
    if settings.pretrain_steps:
        contest.pretrain_all()
    return _report(contest, encoder, settings)


def _read(config: Config, encoder: TextEncoderConfig, settings: QualitySettings) -> _World:
    interactions, until, last = read_split(config, settings.train_share)
    end = last + MICROSECOND
    source, files = config.sources.items.origin, resolve_model(encoder_model(encoder, config))
    known = item_texts(tables.items(config, end=until - MICROSECOND), encoder, until=until, source=source)
    catalogue = item_texts(tables.items(config, end=end - MICROSECOND), encoder, until=end, source=source)
    train = [
        text_pairs(
            interactions,
            known,
            until=until,
            item_pairs=settings.item_pairs,
            user_pairs=settings.user_pairs,
            recent_items=encoder.user.recent_items,
            seed=seed,
        )
        for seed in range(settings.seeds)
    ]
    events = read_events(interactions, catalogue.ids)
    test = pair_events(events, len(catalogue), start=until, until=until)
    before = events.where(events.time < to_micros(until))
    texts, places = distinct_texts(itertools.chain(*(pairs.texts for pairs in train), catalogue.texts))
    ends = np.cumsum([len(pairs.texts) for pairs in train])
    drawn = tuple(
        replace(pairs, texts=texts, item_text=own[pairs.item_text], query_text=own[pairs.query_text])
        for pairs, own in zip(train, np.split(places, ends), strict=False)
    )
    return _World(encoder, files, until, before, known, texts, places[ends[-1] :], drawn, test)


class _Contest:
    """Runs each training, and keeps the scores of each seed and what was measured in training."""

    def __init__(
        self, world: _World, settings: QualitySettings, device: torch.device, echo: Callable[[str], object]
    ) -> None:
        self.world, self.settings, self.device, self.echo = world, settings, device, echo
        self.runs: dict[str, list[RetrievalScores]] = {}
        self.trainings: list[dict[str, Any]] = []
        self.finetuning = FinetuningConfig(
            train_layers=settings.train_layers,
            epochs=settings.epochs,
            max_steps=settings.finetune_steps,
            max_tokens=min(settings.max_tokens, world.encoder.max_tokens),
            validation_items=FinetuningConfig.validation_items // 2,
        )

    def open(self, files: ModelFiles) -> TunableEncoder:
        """Load an encoder and let it read all texts below the layers that are trained."""
        started = time.perf_counter()
        found = TunableEncoder.load(
            files,
            train_layers=self.settings.train_layers,
            rank=None,
            alpha=self.finetuning.lora_alpha,
            dropout=self.finetuning.dropout,
            max_tokens=self.finetuning.max_tokens,
            pooling=self.world.encoder.pooling,
            normalize=self.world.encoder.normalize,
            device=self.device,
        )
        found.remember(self.world.texts)
        self.echo(f"read {len(self.world.texts):,} texts below the top layers in {time.perf_counter() - started:.1f} s")
        return found

    def finetune_all(self, start: str, tuned: str, encoder: TunableEncoder, seeds: Iterable[int]) -> None:
        """Evaluate an encoder as it is, then fine-tune it once for each seed."""
        weights = encoder.top.trained_state()
        self._evaluate(start, encoder)
        for seed in seeds:
            encoder.top.restore(weights)
            settings = replace(self.finetuning, seed=seed)
            started = time.perf_counter()
            scores = fit(encoder, Contrastive(self.world.train[seed], settings), settings)
            seconds = round(time.perf_counter() - started, 1)
            self.trainings.append({"name": tuned, "seed": seed, "seconds": seconds, **scores})
            shown = "; ".join(
                ("start" if epoch["loss"] is None else f"loss {epoch['loss']:.4f}")
                + f" {scores['metric']} {epoch[scores['metric']]:.4f}"
                for epoch in scores["epochs"]
            )
            self.echo(f"{tuned}, seed {seed}, {seconds} s: {shown}; chosen {scores['chosen']}")
            self._evaluate(tuned, encoder)

    def pretrain_all(self) -> None:
        """Pre-train once for each seed, and fine-tune from there."""
        with tempfile.TemporaryDirectory() as folder:
            for seed in range(self.settings.seeds):
                files = self._pretrain(seed, Path(folder) / f"seed_{seed}")
                self.finetune_all(PRETRAINED, BOTH, self.open(files), [seed])

    def _pretrain(self, seed: int, target: Path) -> ModelFiles:
        settings = PretrainingConfig(
            epochs=1000,
            patience=1000,
            max_steps=self.settings.pretrain_steps,
            head_steps=min(PretrainingConfig.head_steps, self.settings.pretrain_steps),
            max_tokens=self.finetuning.max_tokens,
            seed=seed,
        )
        started = time.perf_counter()
        found = pretrain(self.world.files, self.world.known.texts, settings, device=self.device)
        seconds = round(time.perf_counter() - started, 1)
        scores = found.history.as_scores()
        self.trainings.append({"name": PRETRAINED, "seed": seed, "seconds": seconds, **scores})
        losses = ", ".join(
            f"loss {loss:.4f} held out {held_out:.4f}"
            for loss, held_out in zip(scores["losses"], scores["held_out_losses"], strict=True)
        )
        self.echo(f"{PRETRAINED}, seed {seed}, {seconds} s, {found.steps} steps: {losses}")
        manifest = EncoderManifest("pretrained", self.world.files.name, self.world.until, settings.identity(), scores)
        save_encoder(target, found.model, self.world.files, manifest)
        return resolve_model(target)

    def _evaluate(self, name: str, encoder: TunableEncoder) -> None:
        vectors = encoder.vectors(self.world.catalogue)
        scores = evaluate_vectors(vectors, self.world.test)
        self.runs.setdefault(name, []).append(scores)
        shown = ", ".join(f"{key} {value:.4f}" for key, value in scores.as_dict().items() if value is not None)
        self.echo(f"{name}: {shown}")


def _report(contest: _Contest, encoder: str, settings: QualitySettings) -> dict[str, Any]:
    world, runs = contest.world, contest.runs
    baseline = (FROZEN, runs[FROZEN])
    results = [result_of(name, found, baseline=None if name == FROZEN else baseline) for name, found in runs.items()]
    results += [result_of(name, [found]) for name, found in baseline_scores(world.events, world.test).items()]
    content = report(
        "bench text-quality",
        settings={
            **asdict(settings),
            "encoder": encoder,
            "model": world.files.name,
            "until": world.until.isoformat(),
            "items": len(world.catalogue),
            "training_pairs": len(world.train[0]),
            "test_pairs": len(world.test),
            "cold_test_pairs": int(world.test.is_cold.sum()),
            "finetuning": contest.finetuning.identity(),
        },
        results=results,
        targets=[],
    )
    return content | {"trainings": contest.trainings}
