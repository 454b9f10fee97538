"""A directory of one safetensors file and one manifest with its SHA-256, written whole or not at all. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from recsys_llm.errors import CheckpointError
from recsys_llm.files import replaced_directory, write_synced

MANIFEST = "manifest.json"
TENSORS = "tensors.safetensors"
FORMAT = 2
"""2: pairwise columns are not known where a row stands in for a user's own."""

Tensors = Mapping[str, npt.NDArray[Any]]


def write_bundle(directory: Path | str, kind: str, tensors: Tensors, facts: Mapping[str, Any]) -> None:
    """Write ``tensors`` and ``facts`` (JSON values) to ``directory``, replacing what an earlier call wrote there.

    Raises
    ------
    CheckpointError
        ``directory`` exists and is no bundle.
    """
    target = Path(directory)
    if target.exists() and (not target.is_dir() or (any(target.iterdir()) and not (target / MANIFEST).is_file())):
        raise CheckpointError(f"{target}: expected a new directory or an old checkpoint, found something else; move it")
    data = save_tensors({name: np.ascontiguousarray(value) for name, value in tensors.items()})
    body = {"kind": kind, "facts": dict(facts)}
    manifest = {"format": FORMAT, **body, "sha256": {TENSORS: _hash(data), "facts": _hash(_canonical(body))}}
    with replaced_directory(target) as made:
        write_synced(made / TENSORS, data)
        write_synced(made / MANIFEST, json.dumps(manifest, indent=1, sort_keys=True).encode())


def read_bundle(directory: Path | str, kind: str) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """Return the tensors and facts that :func:`write_bundle` wrote.

    Raises
    ------
    CheckpointError
        A file is missing or altered, or the bundle is of another kind or format.
    """
    root = Path(directory)
    try:
        manifest = json.loads((root / MANIFEST).read_bytes())
        data = (root / TENSORS).read_bytes()
        found = (manifest["format"], manifest["kind"])
        hashes = (manifest["sha256"][TENSORS], manifest["sha256"]["facts"])
        facts: dict[str, Any] = manifest["facts"]
    except OSError as error:
        raise CheckpointError(f"{root}: expected {MANIFEST} and {TENSORS}: {error.strerror}; save the {kind} again")\
            from None  # fmt: skip
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{root / MANIFEST}: not a manifest of ours ({error!r}); save the {kind} again") from None
    if found != (FORMAT, kind):
        raise CheckpointError(
            f"{root}: expected a {kind} of format {FORMAT}, found {found[1]!r} of format {found[0]}; train it again"
        )
    for name, expected, actual in (
        (TENSORS, hashes[0], _hash(data)),
        (MANIFEST, hashes[1], _hash(_canonical({"kind": kind, "facts": facts}))),
    ):
        if expected != actual:
            raise CheckpointError(f"{root / name}: altered: expected SHA-256 {expected}, found {actual}; save it again")
    try:
        return load_tensors(data), facts
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{root / TENSORS}: not a safetensors file: {error}") from None


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
