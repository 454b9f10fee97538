"""A linear map behind an encoder: fewer dimensions, or another model's space.

Both PCA compression and the bridge from a new encoder to an old one are ``y = (x - mean) @ matrix``, fitted once and
kept in a directory. The map is part of the encoder's fingerprint.

::

    minilm_v1_pca128/
      transform.safetensors   mean (dim,), matrix (dim, new_dim)
      transform.json          kind, normalize, storage, calibration, what was measured, SHA-256 of the tensors
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from recsys_llm.errors import CheckpointError, ModelError
from recsys_llm.files import read_signed_json, replaced_directory, signed_json, write_synced
from recsys_llm.storage import StorageKind, VectorStorage
from recsys_llm.timestamps import as_utc

FORMAT = 1
_TENSORS = "transform.safetensors"
MANIFEST = "transform.json"
_SMALLEST_NORM = 1e-12

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class VectorTransform:
    """What is done to an encoder's vectors before they are stored."""

    kind: str
    """``truncate``, ``pca``, ``none`` or ``bridge``; for people."""
    input_fingerprint: str
    """Of the encoder that the map was fitted to; another one is refused."""
    mean: Floats
    """(dim,)"""
    matrix: Floats
    """(dim, new_dim)"""
    normalize: bool = True
    """Scale the result to length 1."""
    storage: StorageKind = "float32"
    """How a view stores the vectors."""
    scale: float | None = None
    """int8: the value of the code 127, from calibration."""
    notes: Mapping[str, Any] = field(default_factory=dict)
    """What was measured when it was fitted; JSON values, no part of the fingerprint but for ``trained_until``."""

    @property
    def dim(self) -> int:
        """Length of a vector after the map."""
        return int(self.matrix.shape[1])

    @property
    def stored(self) -> VectorStorage:
        """Form in which a view keeps the vectors."""
        return VectorStorage(self.storage, self.dim, self.scale)

    @property
    def trained_until(self) -> datetime | None:
        """Cut-off of what the map learned from: texts, and what an older encoder knew, if it is a bridge to that."""
        known = self.notes.get("trained_until")
        return None if known is None else as_utc(datetime.fromisoformat(known), name="trained_until")

    @property
    def fingerprint(self) -> str:
        """Hash (hex) of what decides the stored vectors."""
        identity: dict[str, Any] = {
            "version": FORMAT,
            "input": self.input_fingerprint,
            "tensors": hashlib.sha256(self._tensors()).hexdigest(),
            "normalize": self.normalize,
            "storage": self.storage,
            "scale": self.scale,
        }
        if self.trained_until is not None:
            identity["trained_until"] = self.trained_until.isoformat()
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]

    def apply(self, vectors: Floats) -> Floats:
        """Map vectors of the encoder.

        Parameters
        ----------
        vectors : float32 (n, dim)

        Returns
        -------
        float32 (n, new_dim)

        Examples
        --------
        >>> swap = VectorTransform("bridge", "", np.zeros(2, np.float32), np.array([[0, 1], [1, 0]], np.float32))
        >>> swap.apply(np.array([[3.0, 4.0]], np.float32)).round(1).tolist()
        [[0.800000011920929, 0.6000000238418579]]
        """
        mapped: Floats = np.matmul(vectors - self.mean, self.matrix, dtype=np.float32)
        return unit_rows(mapped) if self.normalize else mapped

    def save(self, directory: Path | str) -> None:
        """Write the map; a directory with an older one is replaced.

        Raises
        ------
        CheckpointError
            See :func:`check_target`.
        """
        target = Path(directory)
        check_target(target)
        tensors = self._tensors()
        content = {
            "format": FORMAT,
            "kind": self.kind,
            "input_fingerprint": self.input_fingerprint,
            "normalize": self.normalize,
            "storage": self.storage,
            "scale": self.scale,
            "notes": dict(self.notes),
            "tensors_sha256": hashlib.sha256(tensors).hexdigest(),
        }
        with replaced_directory(target) as fresh:
            write_synced(fresh / _TENSORS, tensors)
            write_synced(fresh / MANIFEST, signed_json(content))

    @classmethod
    def load(cls, directory: Path | str) -> Self:
        """Read a map.

        Raises
        ------
        CheckpointError
            A file is missing, altered, or of another version.
        """
        path = Path(directory)
        try:
            content = read_signed_json((path / MANIFEST).read_bytes())
            tensors = (path / _TENSORS).read_bytes()
            if content["format"] != FORMAT:
                raise CheckpointError(f"{path / MANIFEST}: expected format {FORMAT}, found {content['format']}")
            if hashlib.sha256(tensors).hexdigest() != content["tensors_sha256"]:
                raise CheckpointError(f"{path / _TENSORS}: altered or truncated since it was saved; fit it again")
            arrays = load_tensors(tensors)
            return cls(
                content["kind"],
                content["input_fingerprint"],
                arrays["mean"],
                arrays["matrix"],
                content["normalize"],
                content["storage"],
                content["scale"],
                content["notes"],
            )
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise CheckpointError(
                f"{path}: no readable transform ({type(error).__name__}: {error}); expected a directory that "
                "`recsys-llm text compress` or `recsys-llm migrate` has written"
            ) from None

    def check_input(self, fingerprint: str, *, model: str) -> None:
        """Refuse an encoder that the map was not fitted to.

        Raises
        ------
        ModelError
            The fingerprint is another encoder's.
        """
        if fingerprint != self.input_fingerprint:
            raise ModelError(
                f"model {model!r} has fingerprint {fingerprint}, its transform was fitted to the vectors of "
                f"{self.input_fingerprint}; fit the transform again, or give the model that it belongs to"
            )

    def _tensors(self) -> bytes:
        found: bytes = save_tensors(
            {"mean": np.ascontiguousarray(self.mean), "matrix": np.ascontiguousarray(self.matrix)}
        )
        return found


def check_target(directory: Path) -> None:
    """Refuse a directory that :meth:`VectorTransform.save` would refuse; called before long work.

    Raises
    ------
    CheckpointError
        ``directory`` exists and holds something else.
    """
    if directory.exists() and not (directory / MANIFEST).is_file():
        raise CheckpointError(f"{directory}: exists and holds no {MANIFEST}; name another directory")


def unit_rows(vectors: Floats) -> Floats:
    """Return each row divided by its Euclidean norm, (n, dim); a row of zeros stays as it is.

    Examples
    --------
    >>> unit_rows(np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)).round(1).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    scaled: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), _SMALLEST_NORM)
    return scaled
