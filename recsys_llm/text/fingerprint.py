"""One short name for everything that decides a text's vector."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from recsys_llm.errors import ModelError
from recsys_llm.files import sha256_of
from recsys_llm.text.model_files import CONFIG, ModelFiles

LENGTH = 32
"""Hex digits of a fingerprint: 128 bits."""

# Notes of the program that saved a file, and settings that the encoder sets itself.
_NO_EFFECT = {
    CONFIG: {"_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache"},
    "tokenizer.json": {"truncation", "padding"},
    "tokenizer_config.json": {"name_or_path", "model_max_length", "special_tokens_map_file", "tokenizer_file"},
}


def encoder_fingerprint(
    files: ModelFiles, *, pooling: str, normalize: bool, max_tokens: int, trained_until: datetime | None = None
) -> str:
    """Hash what an encoder's vectors depend on, without loading the model.

    That is: weights, architecture (config.json), tokenizer files, pooling, normalisation, maximum length and dimension;
    for an encoder that was trained here, also the time from which its vectors may be seen. The path, the device, the
    machine, and notes such as the version that saved a file have no part in it.

    Parameters
    ----------
    files
        From :func:`~recsys_llm.text.resolve_model`.
    trained_until
        From the model's :class:`~recsys_llm.text.manifest.EncoderManifest`, where there is one.

    Returns
    -------
    str
        32 hex digits.

    Raises
    ------
    ModelError
        A file can't be read.
    """
    paths = (files.directory / CONFIG, *files.tokenizer, *files.weights)
    content: dict[str, Any] = {
        "version": 1,
        "files": {path.name: _digest(path) for path in paths},
        "pooling": pooling,
        "normalize": normalize,
        "max_tokens": max_tokens,
        "dim": files.dim,
    }
    if trained_until is not None:
        content["trained_until"] = trained_until.isoformat()
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:LENGTH]


def _digest(path: Path) -> str:
    try:
        if path.name in _NO_EFFECT:
            return hashlib.sha256(_canonical(path)).hexdigest()
        return sha256_of(path)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: can't be read for the model's fingerprint: {error}") from None


def _canonical(path: Path) -> bytes:
    content: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, found {type(content).__name__}; download the model again")
    kept = {key: value for key, value in content.items() if key not in _NO_EFFECT[path.name]}
    return json.dumps(kept, sort_keys=True).encode()
