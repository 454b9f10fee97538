"""How an encoder that was trained here came to be, beside its weights.

::

    minilm_films/
      config.json  model.safetensors  tokenizer.json ...   what any transformers model directory holds
      recsys_llm.json                                      kind, base, trained_until, settings, scores, SHA-256 of files

A directory with a manifest is refused when one byte of its files differs, the manifest included. One without is
somebody else's model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

from recsys_llm.errors import CheckpointError, SchemaError
from recsys_llm.files import is_plain_name, read_signed_json, sha256_of, signed_json, write_synced
from recsys_llm.timestamps import as_utc

MANIFEST = "recsys_llm.json"
FORMAT = 1
Kind = Literal["pretrained", "finetuned"]


@dataclass(frozen=True)
class EncoderManifest:
    """What is known of an encoder that was trained here."""

    kind: Kind
    base: str
    """Name or directory of the encoder that training started from."""
    trained_until: datetime
    """No text or event at or after this time was used; rows made with the encoder are stamped no earlier."""
    settings: Mapping[str, Any]
    """Training settings, JSON values."""
    scores: Mapping[str, Any]
    """What training measured: losses, validation figures; JSON values."""

    def write(self, directory: Path) -> None:
        """Write the manifest with the SHA-256 of every other file of ``directory``; the last step of saving a model."""
        content = {
            "format": FORMAT,
            "kind": self.kind,
            "base": self.base,
            "trained_until": as_utc(self.trained_until, name="trained_until").isoformat(),
            "settings": dict(self.settings),
            "scores": dict(self.scores),
            "files": {path.name: sha256_of(path) for path in sorted(directory.iterdir()) if path.name != MANIFEST},
        }
        write_synced(directory / MANIFEST, signed_json(content))

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """Return the manifest of a model directory, with every file's checksum compared; None: there is no manifest.

        Raises
        ------
        CheckpointError
            A file is missing, truncated or altered, or the manifest is not readable.
        """
        path = directory / MANIFEST
        if not path.is_file():
            return None
        try:
            content = read_signed_json(path.read_bytes())
            if content["format"] != FORMAT:
                raise CheckpointError(f"{path}: expected format {FORMAT}, found {content['format']}")
            found = cls(
                content["kind"],
                content["base"],
                as_utc(datetime.fromisoformat(content["trained_until"]), name="trained_until"),
                content["settings"],
                content["scores"],
            )
            files: dict[str, str] = dict(content["files"])
        except (OSError, ValueError, KeyError, TypeError, SchemaError) as error:
            raise CheckpointError(f"{path}: not readable ({type(error).__name__}: {error}); train it again") from None
        for name, expected in files.items():
            if not is_plain_name(name):
                raise CheckpointError(f"{path}: expected names of files beside it, found {name!r}; train it again")
            if not (directory / name).is_file():
                raise CheckpointError(f"{directory / name}: missing; train the encoder again, or copy it whole")
            if sha256_of(directory / name) != expected:
                raise CheckpointError(
                    f"{directory / name}: altered or truncated since it was saved (its SHA-256 differs from {MANIFEST}"
                    "); train the encoder again, or copy it whole"
                )
        return found
