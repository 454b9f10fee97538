"""Texts to token ids, and token counts to batches of about equal cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_CHARACTERS_PER_TOKEN = 8
"""English has 4 to 5; a text whose first ``8 * max_tokens`` characters hold fewer tokens is read whole."""
_TEXTS_AT_ONCE = 1024
"""An encoding of the tokenizers library takes about 100 bytes a token until its ids are copied out."""


class Tokenizer:
    """Token ids of texts, cut at ``max_tokens``.

    Parameters
    ----------
    backend
        A ``tokenizers.Tokenizer``; its own truncation and padding settings are replaced.
    max_tokens
        Tokens per text at most, special ones included.
    """

    def __init__(self, backend: Any, *, max_tokens: int) -> None:
        backend.no_padding()
        backend.enable_truncation(max_tokens)
        self.max_tokens = max_tokens
        self._encode = getattr(backend, "encode_batch_fast", backend.encode_batch)

    def __call__(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        """Return the ids of each text, in input order; texts must be valid Unicode.

        Only the head of a long text is tokenised, up to a space, unless that holds fewer than ``max_tokens`` tokens;
        the ids are those of the whole text.
        """
        heads = [_head(text, _CHARACTERS_PER_TOKEN * self.max_tokens) for text in texts]
        ids = self._ids(heads)
        short = [
            place
            for place, head in enumerate(heads)
            if len(head) < len(texts[place]) and len(ids[place]) < self.max_tokens
        ]
        for place, whole in zip(short, self._ids([texts[place] for place in short]), strict=True):
            ids[place] = whole
        return ids

    def _ids(self, texts: Sequence[str]) -> list[npt.NDArray[np.int32]]:
        return [
            np.asarray(encoding.ids, np.int32)
            for start in range(0, len(texts), _TEXTS_AT_ONCE)
            for encoding in self._encode(texts[start : start + _TEXTS_AT_ONCE])
        ]


def batch_end(lengths: npt.NDArray[np.int64], start: int, *, budget: int, is_padded: bool) -> int:
    """Return where the batch that begins at ``start`` ends.

    Parameters
    ----------
    lengths : int64 (n,)
        Tokens of each text, longest first.
    budget
        Tokens of a batch at most; a longer text is a batch of its own.
    is_padded
        Whether every text costs as much as the longest of its batch.

    Examples
    --------
    >>> batch_end(np.array([9, 3, 3, 2]), 1, budget=6, is_padded=True)
    3
    >>> batch_end(np.array([9, 3, 2, 1]), 1, budget=6, is_padded=False)
    4
    """
    if is_padded:
        return min(len(lengths), start + max(1, budget // int(lengths[start])))
    total = np.cumsum(lengths[start : start + budget])
    return start + max(1, int(np.searchsorted(total, budget, side="right")))


def batch_slices(lengths: npt.NDArray[np.int64], *, budget: int, is_padded: bool) -> Iterator[slice]:
    """Yield the slices that cut all of ``lengths`` into batches, as :func:`batch_end` does one by one.

    Examples
    --------
    >>> [(batch.start, batch.stop) for batch in batch_slices(np.array([9, 3, 3, 2]), budget=6, is_padded=True)]
    [(0, 1), (1, 3), (3, 4)]
    """
    start = 0
    while start < len(lengths):
        stop = batch_end(lengths, start, budget=budget, is_padded=is_padded)
        yield slice(start, stop)
        start = stop


def token_places(offsets: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the places of the tokens of some texts, text after text, where all texts lie one after another.

    Parameters
    ----------
    offsets : int64 (texts + 1,)
        Place of each text's first token, then the number of tokens.

    Examples
    --------
    >>> token_places(np.array([0, 2, 5, 6]), np.array([2, 0])).tolist()
    [5, 0, 1]
    """
    lengths = offsets[rows + 1] - offsets[rows]
    starts = np.cumsum(lengths) - lengths
    found: npt.NDArray[np.int64] = np.arange(lengths.sum()) + np.repeat(offsets[rows] - starts, lengths)
    return found


def _head(text: str, characters: int) -> str:
    """Return the start of ``text`` up to a space, where that is shorter; cut elsewhere, the last word would change."""
    if len(text) <= characters:
        return text
    space = text.rfind(" ", 0, characters)
    return text[:space] if space > 0 else text
