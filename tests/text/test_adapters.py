"""What is trained, what is remembered, and that both give the vectors of the whole encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys_llm.errors import TrainingError
from recsys_llm.text import TextEncoder, tunable
from recsys_llm.text.adapters import blend
from recsys_llm.text.manifest import EncoderManifest
from recsys_llm.text.model_files import resolve_model
from recsys_llm.text.saving import save_encoder
from recsys_llm.text.tunable import RememberedStates, TunableEncoder
from tests.builders import hours
from tests.models import CORPUS

TEXTS = [*CORPUS, "a fox", "", "boxes"]
KINDS = ["bert", "distilbert", "roberta", "mpnet"]
CPU = torch.device("cpu")


def load(directory, *, train_layers=1, rank=None, pooling="mean", normalize=True, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    found = TunableEncoder.load(
        resolve_model(directory),
        train_layers=train_layers,
        rank=rank,
        alpha=8.0,
        dropout=dropout,
        max_tokens=24,
        pooling=pooling,
        normalize=normalize,
        device=CPU,
    )
    found.remember(TEXTS)
    return found


def disturb(encoder, seed=0):
    """Change what is trained, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in encoder.top.parameters():
            if value.requires_grad:
                value += 0.1 * torch.randn(value.shape, generator=generator)


def saved(encoder, directory, target):
    files = resolve_model(directory)
    save_encoder(target, encoder.model, files, EncoderManifest("finetuned", files.name, hours(0), {}, {}))
    return target


@pytest.mark.parametrize("train_layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_remembered_layers_give_the_vectors_of_the_whole_encoder(make_model, kind, train_layers):
    directory = make_model(kind)
    for pooling, normalize in (("mean", True), ("cls", False)):
        expected = TextEncoder.load(
            directory, device="cpu", max_tokens=24, pooling=pooling, normalize=normalize
        ).encode(TEXTS)
        found = load(directory, train_layers=train_layers, pooling=pooling, normalize=normalize)
        assert np.abs(found.vectors() - expected).max() <= 1e-5
        rows = np.array([3, 0, 3, 6])
        assert np.abs(found.encode(rows).detach().numpy() - expected[rows]).max() <= 1e-5


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_the_saved_encoder_gives_the_trained_vectors(make_model, tmp_path, kind, rank):
    directory = make_model(kind)
    encoder = load(directory, train_layers=2, rank=rank)
    start = encoder.vectors()
    disturb(encoder)
    unmerged = encoder.vectors()
    assert np.abs(unmerged - start).max() > 0.01
    encoder.merge()
    assert np.abs(encoder.vectors() - unmerged).max() <= 1e-6
    plain = TextEncoder.load(saved(encoder, directory, tmp_path / "out"), device="cpu", max_tokens=24)
    assert np.abs(plain.encode(TEXTS) - unmerged).max() <= 1e-5
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= names


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_transformers(make_model, kind):
    """The loss is a fixed product with the vectors; its gradient is compared weight by weight."""
    encoder = load(make_model(kind), normalize=False)
    weight = torch.randn(len(TEXTS), encoder.dim, generator=torch.Generator().manual_seed(0))
    (encoder.encode(np.arange(len(TEXTS))) * weight).sum().backward()
    parameters = [value for value in encoder.model.parameters() if value.requires_grad]
    found = [value.grad.clone() for value in parameters]
    encoder.model.zero_grad()
    for place, row in enumerate(encoder._tokenize(TEXTS)):
        hidden = encoder.model(input_ids=torch.from_numpy(row.astype(np.int64))[None])[0][0]
        (hidden.mean(dim=0) * weight[place]).sum().backward()
    for one, value in zip(found, parameters, strict=True):
        assert torch.allclose(one, value.grad, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(("rank", "trained"), [(None, 16), (3, 6)])
def test_only_the_top_layer_or_its_additions_are_trained(tiny_bert, rank, trained):
    encoder = load(tiny_bert, rank=rank)
    names = list(encoder.top.trained_state())
    assert len(names) == trained
    in_model = [name for name, value in encoder.model.named_parameters() if value.requires_grad]
    assert all(".layer.1." in name for name in in_model)
    assert bool(in_model) == (rank is None)
    if rank is not None:
        assert {name.split(".")[-2] for name in names} == {"query", "value", "attended"}
        assert all(min(value.shape) == rank for value in encoder.top.trained_state().values())


def test_a_low_rank_addition_starts_at_zero_and_is_merged_once(tiny_bert):
    plain, encoder = load(tiny_bert), load(tiny_bert, rank=2)
    assert np.array_equal(plain.vectors(), encoder.vectors())
    disturb(encoder)
    trained = encoder.vectors()
    encoder.merge()
    encoder.merge()
    assert np.abs(encoder.vectors() - trained).max() <= 1e-6


def test_blending_low_rank_additions_is_blending_weights(tiny_bert):
    encoder = load(tiny_bert, rank=2)
    start = encoder.top.trained_state()
    disturb(encoder)
    trained = encoder.top.trained_state()
    layer = encoder.top.layers[0]
    weight = layer.weights["query"].weight
    added = layer.additions["query"](weight) - weight
    encoder.top.restore(blend(start, trained, 0.25))
    assert torch.allclose(layer.additions["query"](weight) - weight, 0.25 * added, atol=1e-6)
    encoder.top.restore(blend(start, trained, 1.0))
    assert torch.allclose(layer.additions["query"](weight) - weight, added, atol=1e-6)


def test_dropout_is_applied_in_training_only(tiny_bert):
    encoder = load(tiny_bert, dropout=0.5)
    rows = np.arange(len(TEXTS))
    encoder.top.train()
    assert not torch.equal(encoder.encode(rows), encoder.encode(rows))
    assert np.array_equal(encoder.vectors(), encoder.vectors())
    assert encoder.top.training
    encoder.top.eval()
    assert torch.equal(encoder.encode(rows), encoder.encode(rows))


def test_states_lie_in_a_file_where_memory_is_short(monkeypatch, tiny_bert):
    expected = load(tiny_bert).vectors()
    monkeypatch.setattr(tunable, "IN_MEMORY", 0)
    found = load(tiny_bert)
    assert isinstance(found._states._values, np.memmap)
    assert np.array_equal(found.vectors(), expected)
    states = RememberedStates(np.array([2, 0, 3]), 4)
    states.put(np.array([2, 0]), np.arange(20, dtype=np.float32).reshape(5, 4))
    assert states.take(np.array([0]))[:, 0].tolist() == [12, 16]
    assert states.take(np.array([1])).shape == (0, 4)


@pytest.mark.parametrize("count", [0, 3])
def test_more_layers_than_there_are_is_refused(tiny_bert, count):
    with pytest.raises(TrainingError, match=rf"expected 1 to 2, the layers of this encoder, found {count}"):
        load(tiny_bert, train_layers=count)


def test_other_architectures_are_refused(make_model):
    with pytest.raises(TrainingError, match="expected BERT, DistilBERT.*found ElectraModel"):
        load(make_model("electra"))
    with pytest.raises(TrainingError, match="activation gelu or relu"):
        load(make_model("bert", hidden_act="gelu_new"))
