"""Token ids of long texts, padding and pooling."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys_llm.text.padded import padded
from recsys_llm.text.pooling import cls_pooling, mean_pooling, unit_length
from recsys_llm.text.tokens import Tokenizer


def test_padding_is_on_the_right_and_masked():
    ids, mask = padded([np.array([7, 8, 9], np.int32), np.array([7], np.int32)], pad=1)
    assert ids.tolist() == [[7, 8, 9], [7, 1, 1]] and ids.dtype == np.int64
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_pooling_ignores_padding_and_never_divides_by_zero():
    hidden = torch.tensor([[[1.0, 0.0], [3.0, 4.0], [99.0, 99.0]], [[5.0, 5.0]] * 3])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert mean_pooling(hidden, mask).tolist() == [[2.0, 2.0], [0.0, 0.0]]
    assert cls_pooling(hidden, mask).tolist() == [[1.0, 0.0], [5.0, 5.0]]
    assert unit_length(torch.zeros(1, 3)).tolist() == [[0.0, 0.0, 0.0]]
    torch.testing.assert_close(unit_length(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.6, 0.8]]))


class Words:
    """A backend with one token per word, which counts the characters that it reads."""

    read = 0
    cut = 0

    def no_padding(self) -> None:
        pass

    def enable_truncation(self, max_length: int) -> None:
        self.cut = max_length

    def encode_batch(self, texts):
        self.read += sum(map(len, texts))
        return [type("Encoding", (), {"ids": [len(word) for word in text.split()][: self.cut]}) for text in texts]


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("ab " * 1000, 29),  # the head alone fills 4 tokens
        ("a" * 20 + " " + "b" * 500 + " c", 20 + 523),  # the head is one word, so the whole is read
        ("a" * 600, 600),  # no space to cut at
        (" " * 400 + "a b c d e", 31 + 409),
        ("a b", 3),
    ],
)
def test_long_texts_are_read_only_as_far_as_needed(text, read):
    backend = Words()
    ids = Tokenizer(backend, max_tokens=4)([text])[0]
    assert ids.tolist() == [len(word) for word in text.split()][:4]
    assert backend.read == read
