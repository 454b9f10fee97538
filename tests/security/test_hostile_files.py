"""Hostile YAML, checkpoints and model directories: an error of ours, and a canary file that never appears."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save as save_tensors

from recsys_llm import schema
from recsys_llm.commands.migration.journal import read_versions
from recsys_llm.config import load_config
from recsys_llm.errors import CheckpointError, ConfigError, RecsysLLMError
from recsys_llm.files import read_signed_json, signed_json
from recsys_llm.ranking.bundle import read_bundle, write_bundle
from recsys_llm.retrieval import open_store
from recsys_llm.seqgan import Checkpoint
from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.rolling import RollingModel
from recsys_llm.seqgan.vocabulary import Vocabulary
from recsys_llm.text.transform import VectorTransform
from recsys_llm.training_state import TrainingState
from tests.security.hostile_rows import Payload

pytestmark = pytest.mark.security

TAGS = (
    "!!python/object/apply:os.mkdir [{canary}]",
    "!!python/object/new:os.mkdir [{canary}]",
    "!!python/object/apply:builtins.eval [\"__import__('os').mkdir('{canary}')\"]",
    "&a !!python/object/apply:os.mkdir [{canary}]",
)
"""YAML that makes a directory when it is loaded by a loader that trusts it."""
BROKEN = {
    "holds itself": b"x: &a [*a]\n",
    "a mapping holds itself": b"&a {sources: *a}\n",
    "deep": b"x: " + b"[" * 20_000,
    "deep and closed": b"x: " + b"[" * 900 + b"]" * 900,
    "no text": b"x: \xff\xfe\xc3\n",
    "NUL": b"x: \0\n",
    "no such date": b"x: 2026-99-99\n",
    "a list as a key": b"? [a, b]\n: 1\n",
    "a list": b"- 1\n- 2\n",
    "a text": b"hello\n",
    "another tag": b"x: !evil 1\n",
    "an alias": b"x: *nothing\n",
}


@pytest.fixture
def canary(tmp_path) -> Path:
    return tmp_path / "canary"


READERS: dict[str, Callable[[Path], object]] = {
    "recsys_llm.yaml": load_config,
    "feature_store.yaml": lambda folder: open_store(folder).registry,
    schema.VERSIONS_FILE: read_versions,
}


@pytest.mark.parametrize("tag", TAGS)
def test_the_yaml_payloads_are_live(canary, tag):
    yaml.unsafe_load(tag.format(canary=canary))
    assert canary.exists()


@pytest.mark.parametrize("file", READERS)
@pytest.mark.parametrize("tag", TAGS)
def test_yaml_makes_no_object(tmp_path, canary, file, tag):
    payload = tag.format(canary=canary)
    for content in (payload, f"x: {payload}", f"{payload}: x", f"- {payload}"):
        (tmp_path / file).write_text(content + "\n")
        with pytest.raises(ConfigError):
            READERS[file](tmp_path)
    assert not canary.exists()


@pytest.mark.parametrize("file", READERS)
@pytest.mark.parametrize("kind", BROKEN)
def test_broken_yaml_is_an_error_of_ours(tmp_path, file, kind):
    (tmp_path / file).write_bytes(BROKEN[kind])
    with pytest.raises(ConfigError, match=file):
        READERS[file](tmp_path)


@pytest.mark.parametrize("kind", ["deep", "no text", "no such date", "another tag", "holds itself"])
def test_the_schema_raises_what_its_docstring_says(tmp_path, kind):
    """Feature repositories import nothing else of the package, and its errors are those of Python."""
    (tmp_path / schema.VERSIONS_FILE).write_bytes(BROKEN[kind])
    with pytest.raises(ValueError, match=schema.VERSIONS_FILE):
        schema.read_versions(tmp_path / schema.VERSIONS_FILE)


def header(content: bytes | dict, data: bytes = b"\0" * 8) -> bytes:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(raw).to_bytes(8, "little") + raw + data


def tensor(first: int, last: int, dtype: str = "F32", shape: tuple[int, ...] = (1,)) -> dict:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


def safetensors_files(canary: Path) -> dict[str, bytes]:
    """Return contents of a safetensors file that are none, or that hold something else than a model."""
    return {
        "empty": b"",
        "short": b"\1\0",
        "a huge header": (2**63 - 1).to_bytes(8, "little") + b"{}",
        "a header of 200 MB": (200_000_000).to_bytes(8, "little") + b"{}",
        "no JSON": header(b"\xff\xfe{"),
        "a list": header(b"[]"),
        "deep": header(b"[" * 100_000),
        "overlapping": header({"counts": tensor(0, 4), "training_counts": tensor(0, 4)}),
        "beyond the end": header({"counts": tensor(0, 4_000_000, shape=(1_000_000,))}),
        "backwards": header({"counts": tensor(8, 0)}),
        "negative": header({"counts": tensor(-8, 0)}),
        "another type": header({"counts": tensor(0, 8, "PYTHON")}),
        "another shape": header({"counts": tensor(0, 8, shape=(2**62, 4))}),
        "metadata of code": header({"__metadata__": {"format": "__import__('os')"}}, b""),
        "metadata of lists": header({"__metadata__": {"x": ["y"]}, "counts": tensor(0, 8, "I64")}),
        "no tensors": save_tensors({}),
        "other tensors": save_tensors({"weights": torch.zeros(2)}),
        "a number": save_tensors({"counts": torch.tensor(1), "training_counts": torch.tensor(1)}),
        "floats": save_tensors({"counts": torch.zeros(3, 7), "training_counts": torch.zeros(3, 7)}),
        "a pickle": pickle.dumps(Payload(canary)),
        "torch's pickle": _torch_file(canary),
    }


def _torch_file(canary: Path) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save(Payload(canary), buffer)
    return buffer.getvalue()


SAFETENSORS = tuple(safetensors_files(Path()))


def test_the_pickles_are_live(canary):
    import io

    for load in (pickle.loads, lambda raw: torch.load(io.BytesIO(raw), weights_only=False)):
        raw = pickle.dumps(Payload(canary)) if load is pickle.loads else _torch_file(canary)
        load(raw)
        assert canary.exists()
        canary.rmdir()


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A small checkpoint that loads."""
    items = ("a", "b", "c")
    generator = Generator(torch.tensor([3, 2, 1]), None, embedding_dim=4, hidden_dim=4)
    facts = {
        "trained_until": "2026-01-01T00:00:00+00:00",
        "chosen": "mle",
        "filter_seen": False,
        "text": None,
        "generator": {"embedding_dim": 4, "hidden_dim": 4},
    }
    made = Checkpoint.build(Vocabulary(items), np.array([3, 2, 1]), None, {"mle": generator}, facts)
    made.save(tmp_path / "model")
    assert Checkpoint.load(tmp_path / "model").fingerprint == made.fingerprint
    return tmp_path / "model"


def sign(directory: Path, **changes: object) -> None:
    """Change the manifest as somebody who knows its form can."""
    file = directory / "manifest.json"
    content = read_signed_json(file.read_bytes(), key="sha256") | changes
    file.write_bytes(signed_json({k: v for k, v in content.items() if v is not ...}, key="sha256"))


def put(directory: Path, name: str, raw: bytes) -> None:
    (directory / name).write_bytes(raw)
    files = read_signed_json((directory / "manifest.json").read_bytes(), key="sha256")["files"]
    sign(directory, files=files | {name: hashlib.sha256(raw).hexdigest()})


@pytest.mark.parametrize("name", ["items.safetensors", "generator_mle.safetensors"])
@pytest.mark.parametrize("kind", SAFETENSORS)
def test_hostile_tensors_with_a_right_signature(checkpoint, canary, kind, name):
    put(checkpoint, name, safetensors_files(canary)[kind])
    for load in (Checkpoint.load, RollingModel.load):
        with pytest.raises(CheckpointError, match=str(checkpoint)):
            load(checkpoint)
    assert not canary.exists()


VOCABULARIES = (b"", b"{}", b"[1, 2, 3]", b"[[]]", b'["a"]', b"[" * 100_000, b"\xff", b'"abc"', b"null", b"NaN")


@pytest.mark.parametrize("raw", VOCABULARIES, ids=lambda raw: repr(raw[:8]))
def test_a_hostile_vocabulary(checkpoint, raw):
    put(checkpoint, "vocabulary.json", raw)
    with pytest.raises(CheckpointError):
        Checkpoint.load(checkpoint)


ELSEWHERE = ("../../../../etc/passwd", "/etc/passwd", "..", "evil.pkl", "a/b", "x\0y")
MANIFESTS: dict[str, dict] = {
    **{f"a file {name!r}": {"files": {name: "0"}} for name in ELSEWHERE},
    "files are a list": {"files": ["manifest.json"]},
    "no files": {"files": {}},
    "no format": {"format": ...},
    "no cut-off": {"trained_until": ...},
    "a number for a time": {"trained_until": 5},
    "a time without a zone": {"trained_until": "2026-01-01T00:00:00"},
    "chosen is a list": {"chosen": ["mle"]},
    "chosen is another": {"chosen": "../../evil"},
    "text is a list": {"text": [1]},
    "no filter": {"filter_seen": ...},
    "settings of something else": {"generator": {"embedding_dim": 4, "hidden_dim": 4, "device": "evil"}},
    "a class for settings": {"generator": "os.system"},
    "words for sizes": {"generator": {"embedding_dim": "4", "hidden_dim": [4]}},
    "negative sizes": {"generator": {"embedding_dim": -4, "hidden_dim": 4}},
    "no fingerprint": {"fingerprint": ...},
}


@pytest.mark.parametrize("kind", MANIFESTS)
def test_a_hostile_manifest_with_a_right_signature(checkpoint, kind):
    sign(checkpoint, **MANIFESTS[kind])
    with pytest.raises(CheckpointError):
        Checkpoint.load(checkpoint)


@pytest.mark.parametrize("raw", [b"", b"[]", b"[" * 100_000, b"null", b'{"sha256": []}', b"\xff\xff"])
def test_a_manifest_that_is_none(checkpoint, tmp_path, raw):
    (checkpoint / "slices.json").write_bytes(raw)
    with pytest.raises(CheckpointError):
        RollingModel.load(checkpoint)
    (checkpoint / "slices.json").unlink()
    (checkpoint / "manifest.json").write_bytes(raw)
    with pytest.raises(CheckpointError):
        Checkpoint.load(checkpoint)


@pytest.mark.parametrize("content", [{}, {"slices": 5}, {"slices": [1]}, {"slices": None}, {"slices": ["../.."]}])
def test_hostile_slices_with_a_right_signature(checkpoint, content):
    (checkpoint / "slices.json").write_bytes(signed_json(content))
    with pytest.raises(CheckpointError):
        RollingModel.load(checkpoint)


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_hostile_tensors_of_other_models(tmp_path, canary, kind):
    raw = safetensors_files(canary)[kind]
    digest = hashlib.sha256(raw).hexdigest()
    VectorTransform("pca", "", np.zeros(2, np.float32), np.eye(2, dtype=np.float32)).save(tmp_path / "map")
    content = read_signed_json((tmp_path / "map" / "transform.json").read_bytes())
    (tmp_path / "map" / "transform.json").write_bytes(signed_json(content | {"tensors_sha256": digest}))
    (tmp_path / "map" / "transform.safetensors").write_bytes(raw)
    with pytest.raises(CheckpointError):
        VectorTransform.load(tmp_path / "map")
    write_bundle(tmp_path / "bundle", "ranker", {"x": np.zeros(2)}, {})
    manifest = json.loads((tmp_path / "bundle" / "manifest.json").read_bytes())
    manifest["sha256"]["tensors.safetensors"] = digest
    (tmp_path / "bundle" / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "bundle" / "tensors.safetensors").write_bytes(raw)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "state-1.safetensors").write_bytes(raw)
    state = {"format": 1, "run": "r", "step": 1, "values": {}, "file": "state-1.safetensors", "sha256": digest}
    (tmp_path / "state" / "state.json").write_bytes(signed_json(state))
    for read in (
        lambda: read_bundle(tmp_path / "bundle", "ranker"),
        lambda: TrainingState.load(tmp_path / "state", run="r"),
    ):
        try:
            read()  # tensors of other names are for their reader to refuse
        except RecsysLLMError as error:
            assert isinstance(error, CheckpointError)
            assert str(tmp_path) in str(error)
        else:
            assert kind in ("no tensors", "other tensors", "a number", "floats", "metadata of code")
    assert not canary.exists()


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_training_state_is_beside_its_manifest(tmp_path, name):
    (tmp_path / "state").mkdir()
    state = {"format": 1, "run": "r", "step": 1, "values": {}, "file": name, "sha256": "0"}
    (tmp_path / "state" / "state.json").write_bytes(signed_json(state))
    with pytest.raises(CheckpointError):
        TrainingState.load(tmp_path / "state", run="r")
    for key in state:
        lacking = {other: value for other, value in state.items() if other != key}
        (tmp_path / "state" / "state.json").write_bytes(signed_json(lacking))
        with pytest.raises(CheckpointError):
            TrainingState.load(tmp_path / "state", run="r")
    shutil.rmtree(tmp_path / "state")
