"""``bench text`` compares equal things, and its figures are what they say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from recsys_llm.bench import text as bench_text_module
from recsys_llm.bench.text import _flops, _unique, bench_text, with_duplicates
from recsys_llm.bench.text_mix import item_texts
from recsys_llm.bench.text_pipeline import peak_memory
from recsys_llm.cli import app
from recsys_llm.errors import DataError, ModelError
from recsys_llm.text import TextEncoder, resolve_model
from recsys_llm.text.loading import load_backbone


@pytest.fixture(scope="module")
def tiny(make_model):
    return make_model("bert")


def test_the_report_holds_every_side_and_every_target(tiny, tmp_path):
    arguments = ["bench", "text", "--model", str(tiny), "--count", "64", "--max-tokens", "64", "--no-memory"]
    done = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "text.json")], catch_exceptions=False)
    assert done.exit_code == 0 and "ratio_to_best_batch_size" in done.output
    content = json.loads((tmp_path / "text.json").read_text())
    assert content["settings"]["texts"] == 64 and content["settings"]["threads"] == 1
    names = {result["name"].removesuffix("_cpu_s") for result in content["results"]}
    assert names >= {"ours", "sentence_transformers", "one_at_a_time", "transformers_pipeline", "onnx_runtime", "gemm"}
    medians = {result["name"]: result["median"] for result in content["results"]}
    targets = {target["name"]: target for target in content["targets"]}
    ratio = medians["sentence_transformers_cpu_s"] / medians["ours_cpu_s"]
    assert targets["ratio_to_default"]["value"] == pytest.approx(ratio)
    assert targets["ratio_to_default"]["met"] == (ratio >= 1.5)
    assert targets["cosine_to_reference"]["met"] and targets["alone_against_batch"]["met"]


def test_flops_are_those_that_torch_counts(tiny):
    texts = item_texts(8)
    files = resolve_model(tiny)
    encoder = TextEncoder.load(tiny, device="cpu", max_tokens=64)
    model = load_backbone(files, device=torch.device("cpu"))
    model.set_attn_implementation("eager")  # torch counts nothing for its fused attention on a CPU
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        for ids in encoder._tokenize(texts):
            model(input_ids=torch.from_numpy(ids.astype(np.int64))[None], attention_mask=None)
    # The pooler's product is counted by torch, and not used by us.
    pooler = len(texts) * 2 * files.dim**2
    assert _flops(files, encoder, texts) == counter.get_total_flops() - pooler


def test_a_tenth_of_the_texts_are_copies():
    mixed = with_duplicates([str(number) for number in range(200)])
    assert len(mixed) == 200 and len(set(mixed)) == 180


def test_other_vectors_stop_the_bench(tiny, monkeypatch):
    monkeypatch.setattr(bench_text_module, "one_at_a_time", lambda model: lambda texts: np.ones((len(texts), 32)))
    with pytest.raises(ModelError, match="gives other vectors"):
        bench_text(str(tiny), texts=None, count=64, runs=3, max_tokens=64, memory=False)


def test_too_few_texts_are_refused():
    with pytest.raises(DataError, match="at least 64 distinct ones, found 2"):
        _unique(["a", "b", "a"], 100)


def test_memory_does_not_grow_with_rows(tiny):
    ballast = np.ones(100_000_000)  # what this process holds has no part in it
    few, many = (peak_memory(resolve_model(tiny), rows, max_tokens=16) for rows in (2_000, 30_000))
    assert many < 1.1 * few and few < 1024 + ballast.nbytes / 2**21
