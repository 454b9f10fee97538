"""Load a transformers encoder and its tokenizer, and refuse what would give wrong vectors quietly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from recsys_llm.errors import ConfigError, ModelError
from recsys_llm.text.model_files import ModelFiles


def load_backbone(files: ModelFiles, *, device: torch.device) -> nn.Module:
    """Return the encoder in float32, in evaluation mode, on ``device``.

    Only safetensors are read and no code of the model's directory is run.

    Raises
    ------
    ModelError
        The files can't be loaded, weights are missing or not finite, or the model is no plain encoder.
    """
    from transformers import AutoModel  # takes seconds, and planning a run without new texts needs none of it

    # transformers takes SDPA by itself, and eager attention for an architecture without it (MPNet).
    with quiet_transformers():
        try:
            model, found = AutoModel.from_pretrained(
                str(files.directory),
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
        except Exception as error:  # its layers raise many kinds: OSError, KeyError, SafetensorError, ImportError...
            raise ModelError(
                f"model {files.name!r}: transformers can't load {files.directory}: {type(error).__name__}: {error}; "
                "download it again, or choose a BERT-family encoder"
            ) from error
    # The pooler (BERT's tanh layer for next-sentence prediction) is not used, and many checkpoints lack it.
    missing = sorted(key for key in found["missing_keys"] if "pooler" not in key.split("."))
    wrong = missing + sorted(str(key) for key in found["mismatched_keys"])
    if wrong:
        raise ModelError(
            f"model {files.name!r}: {len(wrong)} weights are missing or have another shape than config.json says, "
            f"such as {wrong[0]}; the vectors would be random. Download the model again"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"model {files.name!r}: expected an encoder, found the encoder-decoder {model.config.model_type}"
        )
    for name, weights in model.named_parameters():
        if not torch.isfinite(weights).all():
            raise ModelError(f"model {files.name!r}: weights {name} hold NaN or infinite values; download it again")
    loaded: nn.Module = model.float().eval().to(device)
    return loaded


def load_tokenizer(files: ModelFiles) -> Any:
    """Return the transformers tokenizer of a model, which has a fast backend.

    Raises
    ------
    ModelError
        It can't be loaded, or has no fast version.
    """
    from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                str(files.directory), use_fast=True, trust_remote_code=False, local_files_only=True
            )
        except Exception as error:  # as above
            raise ModelError(
                f"model {files.name!r}: transformers can't load the tokenizer of {files.directory}: "
                f"{type(error).__name__}: {error}"
            ) from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"model {files.name!r}: expected a fast tokenizer, found {type(tokenizer).__name__}; "
            "save it once with a fast one so that the directory has tokenizer.json"
        )
    return tokenizer


def check_fit(files: ModelFiles, model: nn.Module, tokenizer: Any, *, max_tokens: int) -> None:
    """Refuse a length that the model can't read and a tokenizer that is another model's.

    Raises
    ------
    ConfigError
        ``max_tokens`` is above the model's position limit, or leaves no room for a token of the text.
    ModelError
        The tokenizer has ids that the model has no embedding for.
    """
    special = int(tokenizer.num_special_tokens_to_add(pair=False))
    if max_tokens <= special:
        raise ConfigError(f"max_tokens: expected more than the {special} special tokens, found {max_tokens}")
    limit = position_limit(model)
    if limit is not None and max_tokens > limit:
        raise ConfigError(
            f"max_tokens: model {files.name!r} reads at most {limit} tokens, found {max_tokens}; set {limit} or less"
        )
    largest = max(tokenizer.get_vocab().values())
    rows = int(model.get_input_embeddings().num_embeddings)  # type: ignore[operator]
    if largest >= rows:
        raise ModelError(
            f"model {files.name!r}: the tokenizer has ids up to {largest}, the model embeddings for {rows} ids; "
            "they belong to different models. Download both again"
        )


def position_limit(model: nn.Module) -> int | None:
    """Return how many tokens a model can read; None where its positions have no limit.

    RoBERTa counts positions from its padding index, which takes two of its 514 rows.
    """
    for name, module in model.named_modules():
        if name.rpartition(".")[2] == "position_embeddings" and isinstance(module, nn.Embedding):
            taken = 0 if module.padding_idx is None else module.padding_idx + 1
            return module.num_embeddings - taken
    limit = getattr(model.config, "max_position_embeddings", None)
    return int(limit) if isinstance(limit, int) and limit > 0 else None


def resolve_device(device: str | torch.device) -> torch.device:
    """Return the device of that name; ``auto`` is CUDA where there is one, else the CPU.

    Raises
    ------
    ConfigError
        The name is unknown, or there is no such device.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(f"device: expected 'auto', 'cpu' or 'cuda[:N]', found {device!r}") from None
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device: {device!r} asked for, {torch.cuda.device_count()} CUDA devices found; use 'auto' or 'cpu'"
        )
    return resolved


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers from printing progress bars and load reports; its settings are restored afterwards."""
    from transformers.utils import logging as transformers_logging

    level = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if bars:
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
