"""What the encoder is given: item texts, and user texts from what was known strictly before."""

from __future__ import annotations

import numpy as np
import pytest

from recsys_llm.errors import SchemaError
from recsys_llm.producers.text_embedding import TEXT, ItemTextEmbedding, UserTextEmbedding
from tests.builders import config_for, hours, write_interactions, write_items, write_tags

ENCODERS = (
    'text_encoders:\n  minilm_v1: {model: m, template: "{title}. {text}", '
    "user: {granularity: 1h, recent_items: 2, cold_start_days: 0}}\n"
)
LONG_AGO, FOREVER = hours(-24 * 365 * 60), hours(24 * 365)


class LetterCounter:
    """Stands in for an encoder: a vector of the lengths of words."""

    fingerprint = "letters"
    dim = 2
    transform = None
    trained_until = None

    def encode(self, texts):
        return np.array([[len(text), text.count(" ")] for text in texts], np.float32).reshape(len(texts), 2)

    def count_tokens(self, texts):
        return sum(len(text.split()) for text in texts)


def producer(kind, folder, *, words=False):
    config = config_for(folder, ENCODERS, words=words)
    return kind(config, config.text_encoders["minilm_v1"], LetterCounter())


def texts_of(made, start=LONG_AGO, end=FOREVER):
    return [
        (row[made.join_key], row["event_timestamp"], row[TEXT])
        for due in made.inputs(start, end)
        for row in due.rows.to_pylist()
    ]


def test_item_texts_follow_the_template_and_their_own_time(tmp_path):
    write_items(
        tmp_path, [("i1", hours(1), "Heat", "Crime"), ("i1", hours(5), "Heat 2", "Crime"), ("i2", None, "Old", "")]
    )
    made = producer(ItemTextEmbedding, tmp_path)
    assert [(key, text) for key, _, text in texts_of(made)] == [
        ("i1", "Heat. About Heat."),
        ("i1", "Heat 2. About Heat 2."),
        ("i2", "Old. About Old."),
    ]
    assert [time for _, time, _ in texts_of(made, start=hours(1))] == [hours(5)]
    rows = next(iter(made.inputs(LONG_AGO, FOREVER))).rows
    features = made.compute(rows, None)
    assert features.column("embedding").to_pylist()[0] == [17.0, 2.0]
    assert made.cost(rows) == 3 + 5 + 3


def test_user_texts_hold_what_was_liked_and_written_before(tmp_path):
    write_items(tmp_path, [("i1", hours(0), "One", ""), ("i2", hours(0), "Two", ""), ("i3", hours(2.5), "Three", ""),
                           ("i1", hours(9), "One renamed", "")])  # fmt: skip
    write_interactions(
        tmp_path,
        [
            ("u1", "i1", hours(1.2), 5.0, None),
            ("u1", "i2", hours(1.5), 2.0, None),  # not liked
            ("u1", "i2", hours(2.1), 4.0, None),
            ("u1", "i3", hours(2.6), 4.5, None),
            ("u2", "i1", hours(1.0), 1.0, None),  # has liked nothing
        ],
    )
    write_tags(tmp_path, [("u1", "slow", hours(1.9)), ("u1", "later", hours(3)), ("u2", "grim", hours(8))])
    made = producer(UserTextEmbedding, tmp_path, words=True)
    assert texts_of(made) == [
        ("u1", hours(2), "One. slow"),
        ("u1", hours(3), "Three. Two. slow"),
        ("u1", hours(4), "Three. Two. later. slow"),
        ("u2", hours(9), "grim"),
    ]


def test_a_missing_column_is_named(tmp_path):
    write_items(tmp_path, [("i1", hours(1), "Heat", "Crime")])
    config = config_for(tmp_path, ENCODERS.replace("{text}", "{blurb}"))
    made = ItemTextEmbedding(config, config.text_encoders["minilm_v1"], LetterCounter())
    with pytest.raises(SchemaError, match="blurb"):
        list(made.inputs(LONG_AGO, FOREVER))
