"""Texts that nobody meant to write, through producer and encoder: whole, bounded in tokens, and fast."""

from __future__ import annotations

import time
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_llm.producers.text_embedding import TEXT, ItemTextEmbedding, UserTextEmbedding
from recsys_llm.text import TextEncoder
from tests.builders import STAMP, config_for, hours, write_interactions, write_items
from tests.producers.memory_source import in_memory
from tests.producers.user_world import World

LONG_AGO, FOREVER = hours(-24 * 365 * 60), hours(24 * 365)
MILLION = 1_000_000
MAX_TOKENS = 30
SETTINGS = (
    f"text_encoders:\n  m: {{model: m, max_tokens: {MAX_TOKENS}, template: '{{title}}', "
    "user: {granularity: event, recent_items: 3, recent_words: 4}}\n"
)
ODD = {
    "long": "a cowboy doll " * (MILLION // 14),
    "one word": "a" * MILLION,
    "without spaces": "日本語" * (MILLION // 12),
    "white": " \n\t" * (MILLION // 3),
    "emoji": "😀👩‍👩‍👧 " * 1000,
    "empty": "",
}


@pytest.fixture(scope="module", params=["bert", "roberta"])
def model(request, make_model):
    return make_model(request.param)


@pytest.fixture(scope="module")
def encoder(model):
    return TextEncoder.load(model, device="cpu", max_tokens=MAX_TOKENS)


@pytest.fixture(scope="module")
def tokens_of(model):
    """Tokens of a text, also of one that the encoder would cut."""
    longer = TextEncoder.load(model, device="cpu", max_tokens=2 * MAX_TOKENS)
    return lambda text: longer.count_tokens([text])


def made_by(kind, folder, encoder):
    config = config_for(folder, SETTINGS, words=kind is UserTextEmbedding)
    return kind(config, config.text_encoders["m"], encoder)


def write_table(file, **columns):
    pq.write_table(pa.table(columns), file)


@pytest.mark.parametrize("odd", list(ODD))
def test_an_odd_text_of_an_item_and_of_a_user(tmp_path, encoder, tokens_of, odd):
    write_items(tmp_path, [("i1", hours(0), ODD[odd], ""), ("i2", hours(0), "The quick fox", "")])
    write_interactions(tmp_path, [("u1", "i1", hours(2), 5.0, None), ("u1", "i2", hours(2), 5.0, None)])
    stamps = pa.array([hours(1)] * 2, STAMP)
    write_table(tmp_path / "tags.parquet", user_id=["u1", "u2"], tag=[ODD[odd]] * 2, event_timestamp=stamps)
    started = time.perf_counter()
    texts, users = {}, made_by(UserTextEmbedding, tmp_path, encoder)
    for made in (made_by(ItemTextEmbedding, tmp_path, encoder), users):
        for due in made.inputs(LONG_AGO, FOREVER):
            vectors = made.compute(due.rows, due.events).column("embedding").flatten().to_numpy()
            assert np.isfinite(vectors).all() and len(vectors) == due.rows.num_rows * encoder.dim
            if made is users:
                texts |= {(row["user_id"], row["event_timestamp"]): row[TEXT] for row in due.rows.to_pylist()}
    assert time.perf_counter() - started < 20
    for text in texts.values():
        assert tokens_of(text) <= MAX_TOKENS and len(text) < 2000  # nothing long is kept or hashed
    newest = texts["u1", hours(2) + timedelta(microseconds=1)]
    assert newest.startswith("The quick fox") and (odd in ("white", "empty")) == (newest == "The quick fox")
    assert any(user == "u2" for user, _ in texts) == (odd not in ("white", "empty"))


@pytest.mark.parametrize("title", ["", "Heat", "😀"])
def test_a_hundred_thousand_equal_texts_are_encoded_a_few_times(tmp_path, make_model, title):
    encoder = TextEncoder.load(make_model("bert"), device="cpu", max_tokens=MAX_TOKENS)
    count = 100_000
    ids = [f"i{number:06d}" for number in range(count)]
    columns = {"title": [title] * count, "category": pa.nulls(count, pa.string())}
    times = pa.array([hours(0)] * count, STAMP)
    write_table(tmp_path / "items.parquet", item_id=ids, event_timestamp=times, **columns)
    made = made_by(ItemTextEmbedding, tmp_path, encoder)
    started, done = time.perf_counter(), 0
    for due in made.inputs(LONG_AGO, FOREVER):
        features = made.compute(due.rows, None)
        assert set(due.rows.column(TEXT).to_pylist()) == {title}
        vectors = features.column("embedding").flatten().to_numpy().reshape(-1, encoder.dim)
        assert (vectors == vectors[0]).all()
        done += due.rows.num_rows
    assert done == count
    assert time.perf_counter() - started < 20


texts = st.text(st.sampled_from("ab .!é日😀\n"), max_size=120)


@settings(max_examples=60, deadline=None)
@given(st.lists(texts, max_size=4), st.lists(texts, max_size=5), texts)
def test_a_user_s_text_keeps_to_its_tokens(encoder, tokens_of, titles, words, bio):
    ids = [f"i{number}" for number in range(len(titles))]
    world = World(
        items=[(item, hours(0), title) for item, title in zip(ids, titles, strict=True)],
        events=[("u1", item, hours(number + 1), True, None) for number, item in enumerate(ids)],
        words=[("u1", hours(number + 1), text) for number, text in enumerate(words)],
        profiles=[("u1", hours(1), None, bio)],
        granularity="event",
        days=0,
    )
    config = world.config()
    settings_ = config.text_encoders["m"].model_copy(update={"max_tokens": MAX_TOKENS})
    with in_memory(world.tables()):
        found = [
            due.rows.to_pylist() for due in UserTextEmbedding(config, settings_, encoder).inputs(LONG_AGO, FOREVER)
        ]
    for row in (row for rows in found for row in rows):
        assert tokens_of(row[TEXT]) <= sum(settings_.user_tokens) + 2 == MAX_TOKENS
