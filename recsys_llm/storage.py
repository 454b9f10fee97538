"""How a view stores its vectors: as float32, as int8, or as bits.

The one implementation of both ways, for those who write a view and those who read it. Every number is decided by the
vector itself and by :class:`VectorStorage`, which the view's tag carries: nothing else of a batch has a part in it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from recsys_llm.errors import ConfigError, did_you_mean
from recsys_llm.schema import VECTOR_TAG, vector_tag

StorageKind = Literal["float32", "int8", "binary"]
STORAGES: tuple[StorageKind, ...] = get_args(StorageKind)
LARGEST_CODE = 127

Floats = npt.NDArray[np.float32]
Codes = npt.NDArray[Any]

# Row b holds the signs of the bits of byte b, the highest bit first: the order of np.packbits.
_SIGNS = (np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.float32) * 2 - 1).astype(np.float32)


@dataclass(frozen=True)
class VectorStorage:
    """The form of one view's vectors.

    ``float32`` is a list of floats, as Feast has it. The others are bytes:

    - ``int8``: one code from -127 to 127 for each value, in steps of ``scale / 127``; what lies beyond ``scale`` gets
      the outermost code.
    - ``binary``: one bit for each value, set where it is positive; decoded to ``1 / sqrt(dim)`` and
      ``-1 / sqrt(dim)``, so that a decoded vector has length 1.

    Raises
    ------
    ConfigError
        A value is out of range, or ``scale`` is given where there is none, or is missing.

    Examples
    --------
    >>> stored = VectorStorage("int8", 3, scale=0.5)
    >>> codes = stored.encode(np.array([[0.5, -0.25, 2.0]], np.float32))
    >>> codes.tolist(), stored.decode(codes.view(np.uint8)).round(3).tolist()
    ([[127, -64, 127]], [[0.5, -0.25200000405311584, 0.5]])
    """

    storage: StorageKind
    dim: int
    """Length of a vector."""
    scale: float | None = None
    """int8: the value of the code 127."""

    def __post_init__(self) -> None:
        if self.storage not in STORAGES:
            raise ConfigError(f"storage: unknown {self.storage!r}; {did_you_mean(str(self.storage), STORAGES)}")
        if isinstance(self.dim, bool) or not isinstance(self.dim, int) or self.dim < 1:
            raise ConfigError(f"dim: expected the length of a vector, 1 or more, found {self.dim!r}")
        if (self.storage == "int8") != (self.scale is not None):
            raise ConfigError(f"scale: int8 has one and no other storage does; found {self.scale!r} for {self.storage}")
        if self.scale is not None and not (_is_number(self.scale) and math.isfinite(self.scale) and self.scale > 0):
            raise ConfigError(f"scale: expected a number above 0, found {self.scale!r}")

    @classmethod
    def of(cls, view: str, tags: Mapping[str, str]) -> VectorStorage | None:
        """Return what a view's tag says; None for a view without one.

        Raises
        ------
        ConfigError
            The tag is none that :func:`recsys_llm.schema.vector_tag` makes.
        """
        if VECTOR_TAG not in tags:
            return None
        try:
            content: Any = json.loads(tags[VECTOR_TAG])
            return cls(**content)
        except (json.JSONDecodeError, TypeError, ConfigError) as error:
            raise ConfigError(
                f"view {view}: tag {VECTOR_TAG!r}: {error}; found {tags[VECTOR_TAG]!r}, use "
                "recsys_llm.schema.vector_tag(...)"
            ) from None

    @property
    def tags(self) -> dict[str, str]:
        """The tag of a view with such vectors."""
        return vector_tag(self.storage, dim=self.dim, scale=self.scale)

    @property
    def is_bytes(self) -> bool:
        """Whether a value is Feast's ``Bytes``, and no list of floats."""
        return self.storage != "float32"

    @property
    def width(self) -> int:
        """Bytes of a vector."""
        return {"float32": 4 * self.dim, "int8": self.dim, "binary": (self.dim + 7) // 8}[self.storage]

    def __str__(self) -> str:
        scale = "" if self.scale is None else f", scale {self.scale}"
        return f"{self.storage} of length {self.dim}{scale}"

    def encode(self, vectors: Floats) -> Codes:
        """Return the codes of finite vectors.

        Parameters
        ----------
        vectors : float32 (n, dim)

        Returns
        -------
        float32 (n, dim), int8 (n, dim) or uint8 (n, width)
            C-contiguous: the bytes of row i are what is stored of vector i.
        """
        if self.storage == "binary":
            return np.ascontiguousarray(np.packbits(vectors > 0, axis=1))
        if self.scale is None:
            return np.ascontiguousarray(vectors, np.float32)
        steps = np.rint(vectors * np.float32(LARGEST_CODE / self.scale))
        codes: Codes = np.clip(steps, -LARGEST_CODE, LARGEST_CODE).astype(np.int8, order="C")
        return codes

    def decode(self, stored: npt.NDArray[np.uint8]) -> Floats:
        """Return the vectors of stored bytes.

        Parameters
        ----------
        stored : uint8 (n, width)

        Returns
        -------
        float32 (n, dim)
        """
        stored = np.ascontiguousarray(stored)
        if self.storage == "binary":
            signs: Floats = _SIGNS[stored].reshape(len(stored), 8 * stored.shape[1])[:, : self.dim]
            return np.ascontiguousarray(signs * np.float32(1 / math.sqrt(self.dim)))
        if self.scale is None:
            return stored.view("<f4")
        return stored.view(np.int8).astype(np.float32) * np.float32(self.scale / LARGEST_CODE)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
