"""Directories of text models that hold code, pickles or names of code elsewhere: none of it runs."""

from __future__ import annotations

import importlib
import json
import pickle
import shutil
import sys
from pathlib import Path

import pytest

from recsys_llm.errors import CheckpointError, ModelError
from recsys_llm.files import signed_json
from recsys_llm.text import TextEncoder
from recsys_llm.text.manifest import EncoderManifest
from tests.security.hostile_rows import Payload
from tests.security.test_hostile_files import ELSEWHERE, SAFETENSORS, safetensors_files

pytestmark = pytest.mark.security

CODE = "recsys_llm_test_evil_code"
OTHER_KEYS = {
    "attention from a hub": {"attn_implementation": "evil/kernel"},
    "attention from a hub, saved": {"_attn_implementation": "evil/kernel@main:run"},
    "attention that is fetched where there is none": {"attn_implementation": "flash_attention_2"},
    "attention in parts": {"text_config": {"attn_implementation": "evil/kernel"}},
    "attention as a mapping": {"attn_implementation": {"": "evil/kernel"}},
    "other weights": {"transformers_weights": "adapter_model.bin"},
    "weights elsewhere": {"transformers_weights": "../evil.safetensors"},
    "quantized": {"quantization_config": {"quant_method": "mxfp4"}},
}


@pytest.fixture
def canary(tmp_path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def model(tiny_bert, tmp_path, canary) -> Path:
    """A model with pickles and code beside its weights."""
    copy = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin"):
        (copy / name).write_bytes(pickle.dumps(Payload(canary)))
    (copy / f"{CODE}.py").write_text(f"import os\nos.mkdir({str(canary)!r})\nclass Evil: pass\n")
    return copy


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(model: Path) -> TextEncoder:
    return TextEncoder.load(model, device="cpu", max_tokens=64)


def test_the_payloads_are_live(model, canary, monkeypatch):
    pickle.loads((model / "pytorch_model.bin").read_bytes())
    assert canary.exists()
    canary.rmdir()
    monkeypatch.syspath_prepend(str(model))
    monkeypatch.delitem(sys.modules, CODE, raising=False)
    importlib.import_module(CODE)
    assert canary.exists()
    sys.modules.pop(CODE)


def test_pickles_beside_the_weights_are_left_alone(model, canary):
    assert load(model).encode(["a text"]).shape == (1, 32)
    assert not canary.exists()


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_hostile_weights(model, canary, kind):
    (model / "model.safetensors").write_bytes(safetensors_files(canary)[kind])
    with pytest.raises(ModelError):
        load(model)
    (model / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="never loaded"):
        load(model)
    assert not canary.exists()


@pytest.mark.parametrize("shard", ["../evil.safetensors", "/evil.safetensors", "..", "pytorch_model.bin", 5, None])
def test_shards_are_safetensors_beside_their_index(model, canary, shard):
    (model / "model.safetensors").unlink()
    for weights in ({"x": shard}, [shard], shard):
        (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
        with pytest.raises(ModelError):
            load(model)
    assert not canary.exists()


@pytest.mark.parametrize("kind", ["evil", "bert"])
def test_code_in_a_model_is_not_run(model, canary, kind):
    classes = {name: f"{CODE}.Evil" for name in ("AutoConfig", "AutoModel", "AutoTokenizer")}
    edit(model / "config.json", model_type=kind, auto_map=classes, architectures=["Evil"])
    edit(model / "tokenizer_config.json", auto_map={"AutoTokenizer": [f"{CODE}.Evil", f"{CODE}.Evil"]})
    try:
        load(model)
    except ModelError as error:
        assert str(model) in str(error)
    else:
        assert kind == "bert"  # transformers knows it, and takes its own code
    assert not canary.exists()
    assert CODE not in sys.modules


@pytest.mark.parametrize("kind", OTHER_KEYS)
def test_code_and_weights_from_elsewhere_are_refused(model, canary, monkeypatch, kind):
    edit(model / "config.json", **OTHER_KEYS[kind])
    monkeypatch.setattr("transformers.AutoModel.from_pretrained", pytest.fail)  # it is refused before
    with pytest.raises(ModelError, match=r"config\.json has '.*(Remove the key|Choose another model)"):
        load(model)
    assert not canary.exists()


def test_an_adapter_to_another_model_is_refused(model, canary):
    (model / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "evil/base"}))
    with pytest.raises(ModelError, match="adapter"):
        load(model)
    assert not canary.exists()


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "tokenizer_config.json", "modules.json"])
@pytest.mark.parametrize("raw", [b"", b"[]", b"[5]", b"[" * 100_000, b"\xff\xfe", b"null", b'"x"'])
def test_hostile_json(model, canary, name, raw):
    (model / name).write_bytes(raw)
    try:
        load(model)
    except ModelError as error:
        assert str(model) in str(error)
    else:
        assert name in ("modules.json", "tokenizer_config.json")  # what they don't say is left at its default
    assert not canary.exists()


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_manifest_names_files_beside_it(model, name):
    facts = {"format": 1, "kind": "finetuned", "base": "x", "settings": {}, "scores": {}}
    content = facts | {"trained_until": "2026-01-01T00:00:00+00:00"}
    for files in ({name: "0"}, [name], name, 5):
        (model / "recsys_llm.json").write_bytes(signed_json(content | {"files": files}))
        with pytest.raises(CheckpointError):
            EncoderManifest.read(model)
    (model / "recsys_llm.json").write_bytes(signed_json(content | {"files": {}}))
    assert EncoderManifest.read(model) is not None
