"""A text that comes again is not encoded again, whatever is kept and dropped in between."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys_llm.producers.recent_vectors import RecentVectors
from recsys_llm.producers.text_embedding import ItemTextEmbedding
from tests.builders import write_items
from tests.producers.test_text_embedding import FOREVER, LONG_AGO, LetterCounter, producer

chunks = st.lists(st.lists(st.text("ab", max_size=3), max_size=6), max_size=8)


class Counting(LetterCounter):
    def __init__(self):
        self.asked = []

    def encode(self, texts):
        self.asked += texts
        return super().encode(texts)


@given(chunks, st.sampled_from([0, 9, 30, 1000]))
def test_vectors_are_those_of_the_encoder(chunks, most_bytes):
    encoder = Counting()
    recent = RecentVectors(encoder.encode, encoder.dim, most_bytes=most_bytes)
    for texts in chunks:
        assert np.array_equal(recent.encode(texts), LetterCounter().encode(texts))
    texts = [text for chunk in chunks for text in chunk]
    if most_bytes == 1000:
        assert sorted(encoder.asked) == sorted(set(texts))
    if most_bytes == 0:
        assert len(encoder.asked) == sum(len(set(chunk)) for chunk in chunks)


def test_the_oldest_are_dropped_to_stay_in_bounds():
    encoder = Counting()
    recent = RecentVectors(encoder.encode, 2, most_bytes=20)  # two texts of one letter and two floats
    for text in "abcacb":
        recent.encode([text])
    assert encoder.asked == ["a", "b", "c", "a", "b"]


def test_a_duplicate_in_a_later_chunk_is_not_encoded(tmp_path):
    write_items(tmp_path, [(f"i{row}", None, "Same", "") for row in range(5)])
    made = producer(ItemTextEmbedding, tmp_path)
    made.encoder = encoder = Counting()
    made._recent = RecentVectors(encoder.encode, encoder.dim)
    rows = next(iter(made.inputs(LONG_AGO, FOREVER))).rows
    found = [made.compute(rows.slice(row, 1), None).column("embedding").to_pylist() for row in range(5)]
    assert found == [[[17.0, 2.0]]] * 5
    assert encoder.asked == ["Same. About Same."]
