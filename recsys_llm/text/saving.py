"""Write an encoder that was trained here, as a transformers model directory with a manifest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, cast

from torch import nn

from recsys_llm.errors import CheckpointError
from recsys_llm.files import replaced_directory
from recsys_llm.text.loading import quiet_transformers
from recsys_llm.text.manifest import MANIFEST, EncoderManifest
from recsys_llm.text.model_files import CONFIG, ModelFiles


def check_target(target: Path, files: ModelFiles) -> None:
    """Refuse a directory that :func:`save_encoder` would refuse; called before hours of training.

    Raises
    ------
    CheckpointError
        ``target`` holds something that was not trained here, or is the encoder that training starts from.
    """
    if target.exists() and target.samefile(files.directory):
        raise CheckpointError(f"{target}: is the encoder that training starts from; name another directory")
    if target.is_file():
        raise CheckpointError(f"{target}: is a file; name a directory")
    if target.exists() and any(target.iterdir()) and not (target / MANIFEST).is_file():
        raise CheckpointError(
            f"{target}: exists and holds no {MANIFEST}, so it was not trained here; name another directory"
        )


def save_encoder(target: Path, model: nn.Module, files: ModelFiles, manifest: EncoderManifest) -> None:
    """Write an encoder for :meth:`~recsys_llm.text.TextEncoder.load`, whole or not at all; an older one is replaced.

    Parameters
    ----------
    target
        Directory; its parents are made.
    model
        A transformers encoder without a head, as :func:`~recsys_llm.text.loading.load_backbone` returns it. A pooler,
        which no encoder here uses, is left out.
    files
        The model that training started from; its tokenizer is copied as it is.
    manifest
        Written last, with the checksum of every file.

    Raises
    ------
    CheckpointError
        See :func:`check_target`.
    """
    check_target(target, files)
    weights = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if "pooler" not in name.split(".")
    }
    with replaced_directory(target) as fresh:
        with quiet_transformers():
            cast(Any, model).save_pretrained(fresh, state_dict=weights)
        for file in files.tokenizer:
            shutil.copyfile(file, fresh / file.name)
        for file in fresh.iterdir():
            shutil.copymode(fresh / CONFIG, file)  # safetensors lets nobody else read what it writes
            _sync(file)
        manifest.write(fresh)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
