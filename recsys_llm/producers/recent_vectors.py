"""Vectors of the texts that were encoded last: a text that comes again in a later chunk is not encoded again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

MOST_BYTES = 16 << 20

Floats = npt.NDArray[np.float32]


class RecentVectors:
    """Encodes each distinct text once, as long as it is among the last ones.

    Parameters
    ----------
    encode
        Texts to float32 (n, dim); a text's vector must not depend on the others.
    dim
        Length of a vector.
    most_bytes
        Of texts and vectors that are kept; the oldest go first.

    Examples
    --------
    >>> asked = []
    >>> recent = RecentVectors(lambda texts: asked.extend(texts) or np.ones((len(texts), 2), np.float32), 2)
    >>> recent.encode(["a", "b", "a"]).shape, recent.encode(["b", "c"]).shape, asked
    ((3, 2), (2, 2), ['a', 'b', 'c'])
    """

    def __init__(self, encode: Callable[[Sequence[str]], Floats], dim: int, *, most_bytes: int = MOST_BYTES) -> None:
        self._encode = encode
        self._dim = dim
        self._most_bytes = most_bytes
        self._held: dict[str, Floats] = {}
        self._bytes = 0

    def encode(self, texts: Sequence[str]) -> Floats:
        """Return the vector of each text, float32 (n, dim)."""
        distinct = dict.fromkeys(texts)
        known = {text: self._held[text] for text in distinct if text in self._held}
        new = [text for text in distinct if text not in known]
        if new:
            fresh = dict(zip(new, self._encode(new), strict=True))
            known |= fresh
            self._keep(fresh)
        vectors = np.empty((len(texts), self._dim), np.float32)
        for row, text in enumerate(texts):
            vectors[row] = known[text]
        return vectors

    def _keep(self, fresh: dict[str, Floats]) -> None:
        self._held |= fresh
        self._bytes += sum(map(self._size, fresh))
        while self._bytes > self._most_bytes:
            oldest = next(iter(self._held))
            del self._held[oldest]
            self._bytes -= self._size(oldest)

    def _size(self, text: str) -> int:
        return len(text) + 4 * self._dim
