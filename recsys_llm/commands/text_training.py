"""``recsys-llm text pretrain``: an encoder from the texts of a feature repository."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import nn

from recsys_llm.config import Config, TextEncoderConfig, load_config
from recsys_llm.errors import ConfigError
from recsys_llm.producers import encoder_model, encoder_settings
from recsys_llm.schema import USER_ID
from recsys_llm.sources import tables
from recsys_llm.text import ModelFiles, item_documents, resolve_model
from recsys_llm.text.documents import SEPARATOR, one_line
from recsys_llm.text.loading import resolve_device
from recsys_llm.text.manifest import EncoderManifest
from recsys_llm.text.pretraining import Pretrained, pretrain
from recsys_llm.text.pretraining_loop import Progress
from recsys_llm.text.pretraining_settings import PretrainingConfig, PretrainingProgress
from recsys_llm.text.saving import check_target, save_encoder
from recsys_llm.timestamps import MICROSECOND, as_utc, now
from recsys_llm.training_state import discard_state, state_directory

_CHARACTERS_PER_TOKEN = 4


@dataclass(frozen=True)
class TrainedEncoder:
    """An encoder that was trained and saved."""

    name: str
    """Of the encoder that training started from, in recsys_llm.yaml."""
    directory: Path
    manifest: EncoderManifest
    seconds: float
    """Of this run: a resumed one counts from where it took up."""
    tokens_per_s: float | None
    """Of the encoder's training steps; None where this run made fewer than two."""

    @property
    def origin(self) -> dict[str, str]:
        """What was trained from what, for ``--json``."""
        return {
            "model": self.name,
            "base": self.manifest.base,
            "directory": str(self.directory),
            "trained_until": self.manifest.trained_until.isoformat(),
        }


def pretrain_encoder(
    repository: Path,
    name: str,
    *,
    until: datetime,
    out: Path,
    settings: PretrainingConfig | None = None,
    device: str = "auto",
    resume: bool = True,
    progress: Progress | None = None,
) -> TrainedEncoder:
    """Train an encoder of ``recsys_llm.yaml`` on texts stamped strictly before ``until``, and save it.

    The state of an unfinished training is kept beside ``out``, in ``OUT.partial``, and removed at the end.

    Parameters
    ----------
    settings
        ``max_tokens`` above the encoder's own is lowered to that.
    resume
        Go on with an unfinished training of the same model, texts and settings; False: start again.

    Raises
    ------
    ConfigError
        ``recsys_llm.yaml`` has no such encoder, ``until`` lies in the future or before what the encoder was trained on.
    ModelError
        The encoder can't be loaded, or its tokenizer has no mask token.
    CheckpointError
        ``out`` holds something that was not trained here, or the unfinished training is damaged.
    TrainingError
        There are too few texts, or the loss is no longer finite.
    """
    started = time.perf_counter()
    config = load_config(repository)
    encoder, files, until = starting_point(config, name, until=until, out=out)
    wanted = settings or PretrainingConfig()
    wanted = replace(wanted, max_tokens=min(wanted.max_tokens, encoder.max_tokens))
    state = open_state(out, resume=resume)
    meter = _Meter(progress)
    found = pretrain(
        files,
        domain_texts(config, encoder, until=until),
        wanted,
        device=resolve_device(device),
        state=state,
        progress=meter,
    )
    manifest = EncoderManifest("pretrained", encoder.model, until, _settings(wanted, encoder), _scores(found))
    save_trained(out, found.model, files, manifest)
    return TrainedEncoder(name, out, manifest, time.perf_counter() - started, meter.tokens_per_s)


def starting_point(
    config: Config, name: str, *, until: datetime, out: Path
) -> tuple[TextEncoderConfig, ModelFiles, datetime]:
    """Return an encoder of ``recsys_llm.yaml``, its files, and ``until`` in UTC, with everything checked.

    Raises
    ------
    ConfigError
        There is no such encoder, or ``until`` lies in the future or before what the encoder was trained on.
    ModelError
        Its files can't be found or were altered.
    CheckpointError
        ``out`` holds something that was not trained here, or the encoder itself.
    """
    encoder = encoder_settings(name, config)
    until = as_utc(until, name="until")
    if until > now():
        raise ConfigError(f"until: expected a time that has passed, found {until}; later texts would count as unseen")
    files = resolve_model(encoder_model(encoder, config))
    check_target(out, files)
    base = EncoderManifest.read(files.directory)
    if base is not None and base.trained_until > until:
        raise ConfigError(
            f"until: {name} was itself trained on what came before {base.trained_until}, found {until}; "
            "give that time or a later one"
        )
    return encoder, files, until


def open_state(out: Path, *, resume: bool) -> Path:
    """Return where the state of an unfinished training of ``out`` is kept; without ``resume``, nothing is left there.

    Raises
    ------
    CheckpointError
        The directory holds something that is no training state.
    """
    state = state_directory(out)
    if not resume:
        discard_state(state)
    return state


def save_trained(out: Path, model: nn.Module, files: ModelFiles, manifest: EncoderManifest) -> None:
    """Write a trained encoder, and remove the state that its training was kept in."""
    save_encoder(out, model, files, manifest)
    discard_state(state_directory(out))


def domain_texts(config: Config, encoder: TextEncoderConfig, *, until: datetime) -> Iterator[str]:
    """Yield what the encoder would read of items and of users' own words, stamped strictly before ``until``.

    Each version of an item's text counts; an item without a time has always been known. A user's words are joined as in
    a user's text, newest first, since a single word has no context to be guessed from.
    """
    last = until - MICROSECOND
    for batch in tables.items(config, end=last):
        yield from item_documents(batch, encoder.template, source=config.sources.items.origin)
    if encoder.user.recent_words:
        longest = _CHARACTERS_PER_TOKEN * encoder.max_tokens
        for words in _words_by_user(tables.user_words(config, end=last)):
            yield from joined_words(words, count=encoder.user.recent_words, longest=longest)


def joined_words(words: Iterable[str], *, count: int, longest: int) -> Iterator[str]:
    """Yield a user's words as texts.

    Parameters
    ----------
    words
        Newest first; blank ones are left out, and a repeated one counts once in a text.
    count
        Most words in a text.
    longest
        Characters after which a text takes no more words.

    Examples
    --------
    >>> list(joined_words(["slow", "pixar", " ", "slow", "a long review"], count=2, longest=8))
    ['slow. pixar', 'slow. a long review']
    >>> list(joined_words(["a long review", "pixar"], count=2, longest=8))
    ['a long review', 'pixar']
    """
    text: list[str] = []
    for word in filter(None, map(one_line, words)):
        text.append(word)
        if len(text) == count or sum(map(len, text)) >= longest:
            yield SEPARATOR.join(dict.fromkeys(text))
            text = []
    if text:
        yield SEPARATOR.join(dict.fromkeys(text))


def _words_by_user(batches: Iterable[pa.RecordBatch]) -> Iterator[list[str]]:
    """Yield the words of each user, newest first."""
    rows = (
        row
        for batch in batches
        for row in zip(batch.column(USER_ID).to_pylist(), batch.column(tables.TEXT).to_pylist(), strict=True)
    )
    for _, group in groupby(rows, key=itemgetter(0)):
        yield [text for _, text in group][::-1]


def _settings(settings: PretrainingConfig, encoder: TextEncoderConfig) -> dict[str, Any]:
    return {**settings.identity(), "template": encoder.template, "recent_words": encoder.user.recent_words}


def _scores(found: Pretrained) -> dict[str, Any]:
    return {**found.history.as_scores(), "steps": found.steps, "texts": found.texts}


class _Meter:
    """Passes reports on, and measures tokens per second between the first and the last of the encoder's steps."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._tokens = 0
        self._first: float | None = None
        self._last = 0.0

    @property
    def tokens_per_s(self) -> float | None:
        return self._tokens / (self._last - self._first) if self._first is not None and self._tokens else None

    def __call__(self, report: PretrainingProgress) -> None:
        if report.phase == "encoder":
            self._last = time.perf_counter()
            if self._first is None:
                self._first = self._last
            else:
                self._tokens += report.tokens
        if self._progress is not None:
            self._progress(report)
