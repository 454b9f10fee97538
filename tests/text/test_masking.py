"""Whole words of each text are hidden, as many as the paper says, and other ones in each epoch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_llm.text.masking import SPECIAL, Vocabulary, mask_words

MASK, ORDINARY = 4, np.arange(100, 1100)
VOCABULARY = Vocabulary(MASK, ORDINARY)


def texts_of(word_sizes: list[list[int]]):
    """Return ids, words and lengths of texts with words of these sizes, each text between two special tokens."""
    words = [[SPECIAL, *np.repeat(np.arange(len(sizes)), sizes), SPECIAL] for sizes in word_sizes]
    lengths = np.array([len(row) for row in words])
    flat = np.concatenate(words).astype(np.int64)
    ids = np.where(flat == SPECIAL, 2, 100 + np.arange(len(flat)) % 1000)
    return ids, flat, lengths


def long_texts(count: int = 400, seed: int = 0):
    rng = np.random.default_rng(seed)
    return texts_of([rng.integers(1, 5, rng.integers(30, 60)).tolist() for _ in range(count)])


def test_the_shares_of_the_paper():
    ids, words, lengths = long_texts()
    masked = mask_words(ids, words, lengths, VOCABULARY, np.random.default_rng(1))
    chosen, count = masked.ids[masked.places], len(masked.places)
    assert count > 6000
    assert count / (words != SPECIAL).sum() == pytest.approx(0.15, abs=0.005)
    assert (chosen == MASK).mean() == pytest.approx(0.8, abs=0.02)
    kept = (chosen == masked.targets).mean()
    assert kept == pytest.approx(0.1, abs=0.015)
    assert 1 - kept - (chosen == MASK).mean() == pytest.approx(0.1, abs=0.015)


def test_long_and_short_words_are_chosen_alike():
    sizes = [[1, 4] * 20] * 500
    ids, words, lengths = texts_of(sizes)
    masked = mask_words(ids, words, lengths, VOCABULARY, np.random.default_rng(2))
    of_long = np.isin(masked.places, np.flatnonzero(words % 2 == 1)).mean()
    assert of_long == pytest.approx(0.8, abs=0.03)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(1, 6), max_size=12), min_size=1, max_size=6),
    st.integers(0, 2**32),
    st.sampled_from([0.01, 0.15, 0.9]),
)
def test_whole_words_of_each_text_and_nothing_else(word_sizes, seed, share):
    ids, words, lengths = texts_of(word_sizes)
    before = ids.copy()
    masked = mask_words(ids, words, lengths, VOCABULARY, np.random.default_rng(seed), share=share)
    text = np.repeat(np.arange(len(lengths)), lengths)
    chosen = np.zeros(len(ids), np.bool_)
    chosen[masked.places] = True
    np.testing.assert_array_equal(ids, before)
    np.testing.assert_array_equal(masked.targets, ids[masked.places])
    np.testing.assert_array_equal(masked.ids[~chosen], ids[~chosen])
    assert (np.diff(masked.places) > 0).all()
    assert not chosen[words == SPECIAL].any()
    for row, sizes in enumerate(word_sizes):
        found = [chosen[(text == row) & (words == word)] for word in range(len(sizes))]
        assert all(part.all() or not part.any() for part in found)
        assert any(part.any() for part in found) or not sizes


def test_the_share_is_exact_in_the_mean_for_a_text_whose_words_do_not_divide():
    ids, words, lengths = texts_of([[3, 2, 4, 1, 5, 2, 3]] * 20_000)
    masked = mask_words(ids, words, lengths, VOCABULARY, np.random.default_rng(3), share=0.5)
    assert len(masked.places) / (words != SPECIAL).sum() == pytest.approx(0.5, abs=0.004)


def test_other_words_in_each_epoch_and_the_same_for_a_seed():
    ids, words, lengths = long_texts(20)
    rng = np.random.default_rng(5)
    first, second = (mask_words(ids, words, lengths, VOCABULARY, rng) for _ in range(2))
    again = mask_words(ids, words, lengths, VOCABULARY, np.random.default_rng(5))
    both = len(np.intersect1d(first.places, second.places))
    assert both < 0.4 * len(first.places)
    np.testing.assert_array_equal(first.places, again.places)
    np.testing.assert_array_equal(first.ids, again.ids)


def test_random_tokens_are_ordinary_ones():
    ids, words, lengths = long_texts()
    masked = mask_words(ids, words, lengths, VOCABULARY, np.random.default_rng(6))
    chosen = masked.ids[masked.places]
    drawn = chosen[(chosen != MASK) & (chosen != masked.targets)]
    assert np.isin(drawn, ORDINARY).all()
    assert len(np.unique(drawn)) > 300


def test_the_input_may_be_any_integers():
    ids, words, lengths = long_texts(5)
    one = mask_words(ids, words, lengths, VOCABULARY, np.random.default_rng(7))
    other = mask_words(
        ids.astype(np.int32), words.astype(np.int16), lengths.astype(np.int32), VOCABULARY, np.random.default_rng(7)
    )
    np.testing.assert_array_equal(one.ids, other.ids)
    assert other.ids.dtype == other.targets.dtype == np.int64
