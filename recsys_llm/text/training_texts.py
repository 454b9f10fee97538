"""Texts to token ids and words, held-out texts, and batches of similar length."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from recsys_llm.text.masking import SPECIAL
from recsys_llm.text.tokens import batch_slices, token_places

Ints = npt.NDArray[np.int64]

_TEXTS_AT_ONCE = 1024
_SHORTEST = 2
"""Words. The only word of a text would be guessed from nothing."""


@dataclass(frozen=True, eq=False)
class TokenTexts:
    """Tokens of many texts, one text after another: 6 bytes a token."""

    ids: npt.NDArray[np.int32]
    """(N,)"""
    words: npt.NDArray[np.int16]
    """(N,) number of each token's word in its text; :data:`~recsys_llm.text.masking.SPECIAL` for [CLS] and the like."""
    offsets: Ints
    """(texts + 1,) place of each text's first token, then N."""

    @classmethod
    def read(cls, backend: Any, texts: Sequence[str], *, max_tokens: int) -> tuple[Self, Ints]:
        """Tokenise texts, cut at ``max_tokens``; those of fewer than two words are left out.

        Parameters
        ----------
        backend
            A ``tokenizers.Tokenizer``; its own truncation and padding settings are replaced.

        Returns
        -------
        tokens, int (kept,)
            The second are the positions in ``texts`` of what was not left out.
        """
        backend.no_padding()
        backend.enable_truncation(max_tokens)
        ids: list[npt.NDArray[np.int32]] = [np.empty(0, np.int32)]
        words: list[npt.NDArray[np.int16]] = [np.empty(0, np.int16)]
        kept: list[int] = []
        for place, encoding in enumerate(_encodings(backend, texts)):
            found = np.array([SPECIAL if word is None else word for word in encoding.word_ids], np.int16)
            if len(np.unique(found[found != SPECIAL])) >= _SHORTEST:
                ids.append(np.array(encoding.ids, np.int32))
                words.append(found)
                kept.append(place)
        offsets = np.cumsum([0, *map(len, ids[1:])])
        return cls(np.concatenate(ids), np.concatenate(words), offsets), np.array(kept, np.int64)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> Ints:
        """Tokens of each text, (texts,)."""
        return np.diff(self.offsets)

    def take(self, rows: Ints) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int16], Ints]:
        """Return the ids and words of some texts, one text after another, and their lengths."""
        places = token_places(self.offsets, rows)
        return self.ids[places], self.words[places], self.lengths[rows]

    def subset(self, rows: Ints) -> TokenTexts:
        """Return some of the texts, copied."""
        ids, words, lengths = self.take(rows)
        return TokenTexts(ids, words, np.cumsum([0, *lengths.tolist()]))


def _encodings(backend: Any, texts: Sequence[str]) -> Iterator[Any]:
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        yield from backend.encode_batch(texts[start : start + _TEXTS_AT_ONCE])


def held_out_rows(texts: Sequence[str], share: float) -> npt.NDArray[np.bool_]:
    """Return which texts are only measured on, bool (texts,).

    A text's side follows from the text alone, so a larger catalogue measures on the same texts as a smaller one. Where
    no text falls on that side, the one that came nearest does.

    Parameters
    ----------
    share
        Expected share of the texts.

    Examples
    --------
    >>> held_out = held_out_rows([f"text {number}" for number in range(1000)], 0.05)
    >>> 30 < int(held_out.sum()) < 70
    True
    """
    places = np.array([_place(text) for text in texts])
    held_out: npt.NDArray[np.bool_] = places < share
    if len(texts) and not held_out.any():
        held_out[np.argmin(places)] = True
    return held_out


def _place(text: str) -> float:
    """Return a number in [0, 1) that looks random."""
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def similar_lengths(lengths: Ints, budget: int, rng: np.random.Generator) -> list[Ints]:
    """Cut texts into batches of similar length, and put the batches into random order.

    Their number follows from lengths and budget alone; which of the texts of one length meet is drawn.

    Parameters
    ----------
    lengths : int (texts,)
        Tokens of each text.
    budget
        Tokens of a batch at most, padding included; a longer text is a batch of its own.

    Returns
    -------
    list of int (batch,)
        Each text once.

    Examples
    --------
    >>> batches = similar_lengths(np.array([2, 9, 3, 3]), 9, np.random.default_rng(0))
    >>> sorted(sorted(batch.tolist()) for batch in batches)
    [[0, 2, 3], [1]]
    """
    order = np.lexsort((rng.random(len(lengths)), -lengths))
    batches = [order[batch] for batch in batch_slices(lengths[order], budget=budget, is_padded=True)]
    return [batches[place] for place in rng.permutation(len(batches))]
