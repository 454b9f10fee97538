"""Go on with an encoder's masked-language-model training on the texts of a domain.

Devlin et al. 2019, BERT, sections 3.1 and A.2 (without next-sentence prediction, as Liu et al. 2019); Gururangan et al.
2020 for going on with it on a domain's texts. Masks are drawn anew in each epoch. What is drawn in a step follows from
the seed and the step, and dropout's random numbers are part of the saved state, so a resumed training ends with the
weights of an undisturbed one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys_llm.errors import TrainingError
from recsys_llm.text.fingerprint import encoder_fingerprint
from recsys_llm.text.loading import check_fit, load_backbone, load_tokenizer
from recsys_llm.text.masked_language_model import MaskedLanguageModel
from recsys_llm.text.masked_word_head import load_head
from recsys_llm.text.model_files import ModelFiles
from recsys_llm.text.pretraining_loop import History, Progress, Trainer
from recsys_llm.text.pretraining_settings import PretrainingConfig
from recsys_llm.text.training_texts import TokenTexts, held_out_rows
from recsys_llm.training_state import TrainingState, data_digest, run_name


@dataclass(frozen=True, eq=False)
class Pretrained:
    """What :func:`pretrain` returns."""

    model: nn.Module
    """The encoder of the best epoch, in evaluation mode, without a head."""
    history: History
    steps: int
    """Gradient steps of the encoder."""
    texts: dict[str, int]
    """``train`` and ``held_out``: distinct texts of two words or more; ``tokens``: of the training texts."""


def pretrain(
    files: ModelFiles,
    texts: Iterable[str],
    config: PretrainingConfig,
    *,
    device: torch.device,
    state: Path | None = None,
    progress: Progress | None = None,
) -> Pretrained:
    """Train an encoder to guess hidden words of ``texts``, and return it as of its best epoch.

    A checkpoint without a head (sentence encoders have none) is given a fresh one. That is trained first, with the
    encoder as it is, so that "before" says how much the encoder knows of the texts, not how bad an untrained head is.

    Parameters
    ----------
    files
        From :func:`~recsys_llm.text.resolve_model`.
    texts
        Duplicates count once; texts of one word are left out.
    state
        Directory of the training's state. One of the same model, texts and settings is taken up; another is replaced.
        None: nothing is saved.

    Raises
    ------
    ConfigError
        The model reads fewer than ``max_tokens`` tokens.
    ModelError
        The model can't be loaded, or its tokenizer has no mask token.
    TrainingError
        There are too few texts, or the loss is no longer finite.
    CheckpointError
        ``state`` is damaged, or holds something else.
    """
    distinct = sorted(set(texts))
    run = _run_name(files, distinct, config)
    saved = None if state is None else TrainingState.load(state, run=run)
    backbone, tokenizer = load_backbone(files, device=device), load_tokenizer(files)
    check_fit(files, backbone, tokenizer, max_tokens=config.max_tokens)
    if getattr(backbone, "pooler", None) is not None:
        backbone.pooler = None  # type: ignore[assignment]  # it has no part in this, and may be random
    train, measure = _sides(tokenizer.backend_tokenizer, distinct, config)
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(config.seed)
        head, is_stored = load_head(files, backbone)
        trainer = Trainer(
            MaskedLanguageModel(backbone, head),
            (train, measure),
            config,
            tokenizer,
            name=files.name,
            progress=progress or (lambda report: None),
        )
        if saved is not None:
            trainer.restore(saved)
        else:
            trainer.prepare(is_stored=is_stored)
        trainer.train(lambda step, tensors, values: _save(state, run, step, tensors, values))
        trainer.model.backbone.load_state_dict(trainer.best)
    sizes = {"train": len(train), "held_out": len(measure), "tokens": len(train.ids)}
    return Pretrained(trainer.model.backbone.eval(), trainer.history, trainer.step, sizes)


def _save(state: Path | None, run: str, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    if state is not None:
        TrainingState(run, step, tensors, values).save(state)


def _sides(backend: Any, texts: list[str], config: PretrainingConfig) -> tuple[TokenTexts, TokenTexts]:
    """Return the texts to train on and those to measure on."""
    tokens, kept = TokenTexts.read(backend, texts, max_tokens=config.max_tokens)
    held_out = held_out_rows([texts[place] for place in kept.tolist()], config.held_out)
    if not 0 < held_out.sum() < len(tokens):
        raise TrainingError(
            f"expected texts of two words or more to train on and to measure on, found {len(tokens)} among {len(texts)}"
            " distinct texts; check the encoder's template and --until"
        )
    return tokens.subset(np.flatnonzero(~held_out)), tokens.subset(np.flatnonzero(held_out))


def _run_name(files: ModelFiles, texts: list[str], config: PretrainingConfig) -> str:
    base = encoder_fingerprint(files, pooling="mean", normalize=False, max_tokens=config.max_tokens)
    return run_name(training="masked words", base=base, texts=data_digest(texts), settings=config.identity())
