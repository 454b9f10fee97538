"""Whole-word masking: which tokens a masked language model is asked for, and what it reads in their place.

Devlin et al. 2019, BERT, sections 3.1 and A.2; whole words as in the authors' release of 31 May 2019
(github.com/google-research/bert).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]

SPECIAL = -1
"""Word of a token that is no part of the text: [CLS], [SEP], <s>."""
MASKED_SHARE = 0.15
"""Of a text's tokens."""
REPLACED = 0.8
"""Share of the chosen tokens that become [MASK]."""
RANDOM = 0.1
"""Share of the chosen tokens that become a random token; the rest stay as they are."""


@dataclass(frozen=True, eq=False)
class Masked:
    """Texts as the model reads them, and what it is asked for."""

    ids: Ints
    """(N,)"""
    places: Ints
    """(M,) positions in ``ids`` of the chosen tokens, ascending."""
    targets: Ints
    """(M,) their true ids."""


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What stands in for a chosen token."""

    mask: int
    """Id of [MASK]."""
    ordinary: Ints
    """Ids that a random token is drawn from: all but special ones."""


def mask_words(
    ids: npt.NDArray[np.integer],
    words: npt.NDArray[np.integer],
    lengths: npt.NDArray[np.integer],
    vocabulary: Vocabulary,
    rng: np.random.Generator,
    *,
    share: float = MASKED_SHARE,
) -> Masked:
    """Choose whole words of each text and hide them.

    Words are drawn in random order until ``share`` of the text's tokens is reached. The word that crosses the border is
    taken with the probability that makes the expected number exact; the paper's own code rounds. Each text gives up at
    least one word, so a short text gives up more than ``share``. The chosen tokens become [MASK] (80%), a random token
    (10%) or stay (10%), each token by itself.

    Parameters
    ----------
    ids : int (N,)
        Token ids of some texts, one text after another.
    words : int (N,)
        Number of each token's word in its text, as a fast tokenizer's ``word_ids`` gives it; :data:`SPECIAL` for tokens
        that are never chosen.
    lengths : int (texts,)
        Tokens of each text; their sum is N.
    rng
        Another state gives another choice: call it anew in each epoch.

    Examples
    --------
    >>> ids, words = np.array([2, 11, 12, 13, 3]), np.array([-1, 0, 1, 1, -1])
    >>> masked = mask_words(ids, words, np.array([5]), Vocabulary(4, np.array([99])), np.random.default_rng(4))
    >>> masked.places.tolist(), masked.targets.tolist(), masked.ids.tolist()
    ([2, 3], [12, 13], [2, 11, 4, 4, 3])
    """
    places = _chosen_places(words, lengths, share, rng)
    targets = ids[places].astype(np.int64)
    seen = ids.astype(np.int64)
    fate = rng.random(len(places))
    drawn = rng.choice(vocabulary.ordinary, len(places))
    seen[places] = np.where(fate < REPLACED, vocabulary.mask, np.where(fate < REPLACED + RANDOM, drawn, targets))
    return Masked(seen, places, targets)


def _chosen_places(
    words: npt.NDArray[np.integer], lengths: npt.NDArray[np.integer], share: float, rng: np.random.Generator
) -> Ints:
    token_text = np.repeat(np.arange(len(lengths)), lengths)
    ordinary = np.flatnonzero(words != SPECIAL)
    text, word = token_text[ordinary], words[ordinary]
    begins = np.ones(len(ordinary), np.bool_)
    begins[1:] = (word[1:] != word[:-1]) | (text[1:] != text[:-1])
    word_of_token = np.cumsum(begins) - 1  # numbered through the batch
    size, text_of_word = np.bincount(word_of_token), text[begins]
    chosen = _chosen_words(size, text_of_word, share, rng)
    places: Ints = ordinary[chosen[word_of_token]]
    return places


def _chosen_words(size: Ints, text: Ints, share: float, rng: np.random.Generator) -> npt.NDArray[np.bool_]:
    """Return which words are chosen, bool (W,), from their tokens (W,) and their texts (W,), which are ascending."""
    order = np.lexsort((rng.random(len(size)), text))  # text by text, words in random order
    drawn = size[order]
    opens = np.ones(len(size), np.bool_)
    opens[1:] = text[1:] != text[:-1]
    group = np.cumsum(opens) - 1
    total = np.bincount(group, weights=drawn)
    before = np.cumsum(drawn) - drawn
    before -= before[opens][group]
    room = share * total[group] - before
    chosen = np.zeros(len(size), np.bool_)
    chosen[order] = opens | (rng.random(len(size)) * drawn < room)
    return chosen
