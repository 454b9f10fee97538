"""``recsys-llm bench text``: the encoder against what a user would write, in one run on one thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys_llm.bench.encoders import (
    BATCH_SIZES,
    Encode,
    Vectors,
    one_at_a_time,
    sentence_transformers_model,
    with_onnx_runtime,
    with_pipeline,
    with_sentence_transformers,
)
from recsys_llm.bench.report import report
from recsys_llm.bench.text_mix import item_texts
from recsys_llm.bench.text_pipeline import peak_memory, warm_speedup
from recsys_llm.bench.timing import interleaved
from recsys_llm.errors import DataError, ModelError
from recsys_llm.text import ModelFiles, TextEncoder, resolve_model

DUPLICATES = 0.1
OURS, DEFAULT, BEST = "ours", "sentence_transformers", "sentence_transformers_best"
OURS_DUPLICATES, DEFAULT_DUPLICATES = "ours_duplicates", "sentence_transformers_duplicates"
TOKENISE = "tokenise"
GEMM = "gemm"
_GEMM_SIDE = 1536
_SAMPLE = 64
_MEMORY_ROWS = (10_000, 200_000)


def bench_text(
    model: str, *, texts: Sequence[str] | None, count: int, runs: int, max_tokens: int, memory: bool
) -> dict[str, Any]:
    """Time every way to encode the same texts, interleaved, in CPU seconds; equality is asserted before.

    Parameters
    ----------
    texts
        Distinct ones are taken; None: made-up item texts of a realistic mix of lengths.
    count
        Texts to encode. A tenth are copies of others where duplicates are measured.
    memory
        Also measure the peak memory of materialising 10,000 and 200,000 rows.

    Raises
    ------
    ConfigError
        sentence-transformers is not installed.
    DataError
        There are too few texts.
    ModelError
        A side's vectors differ from ours.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _bench(resolve_model(model), _unique(texts, count), runs, max_tokens, memory)
    finally:
        torch.set_num_threads(threads)


def read_texts(file: Path) -> list[str]:
    """Return the lines of a text file."""
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: expected a UTF-8 text file with one text a line: {error}") from None


def _bench(files: ModelFiles, texts: list[str], runs: int, max_tokens: int, memory: bool) -> dict[str, Any]:
    encoder = TextEncoder.load(str(files.directory), device="cpu", max_tokens=max_tokens)
    theirs = sentence_transformers_model(files, max_tokens=max_tokens)
    with ExitStack() as stack:
        ways: dict[str, Encode] = {
            OURS: encoder.encode,
            DEFAULT: with_sentence_transformers(theirs),
            BEST: with_sentence_transformers(theirs, batch_size=_best_batch_size(theirs, texts)),
            "one_at_a_time": one_at_a_time(theirs),
            "transformers_pipeline": with_pipeline(files, max_tokens=max_tokens),
        }
        if find_spec("onnxruntime") is not None:
            ways["onnx_runtime"] = stack.enter_context(with_onnx_runtime(files, max_tokens=max_tokens))
        cosine = _check_equal(ways, texts[:_SAMPLE])
        copies = with_duplicates(texts)
        sides: dict[str, Callable[[], Any]] = {name: partial(way, texts) for name, way in ways.items()}
        sides[OURS_DUPLICATES] = lambda: ways[OURS](copies)
        sides[DEFAULT_DUPLICATES] = lambda: ways[DEFAULT](copies)
        sides[TOKENISE] = lambda: encoder.count_tokens(texts)
        sides[GEMM] = _gemm()
        times = interleaved(sides, runs, clock=time.process_time)
    seconds = {name: float(np.median(values)) for name, values in times.items()}
    tokens = encoder.count_tokens(texts)
    figures = {
        "ratio_to_default": seconds[DEFAULT] / seconds[OURS],
        "ratio_to_best_batch_size": seconds[BEST] / seconds[OURS],
        "ratio_with_duplicates": seconds[DEFAULT_DUPLICATES] / seconds[OURS_DUPLICATES],
        "share_of_gemm_peak": _flops(files, encoder, texts) / seconds[OURS] * seconds[GEMM] / (2 * _GEMM_SIDE**3),
        "cosine_to_reference": cosine,
        "alone_against_batch": _alone_against_batch(encoder, texts),
        "tokenisation_share": seconds[TOKENISE] / seconds[OURS],
        "warm_speedup": warm_speedup(encoder, texts),
    }
    results = [
        {"name": f"{name}_cpu_s", "median": seconds[name], "runs": runs}
        | ({} if name in (GEMM, TOKENISE) else {"tokens_per_s": tokens / seconds[name]})
        for name in sides
    ]
    if memory:
        peaks = {rows: peak_memory(files, rows, max_tokens=max_tokens) for rows in _MEMORY_ROWS}
        results += [{"name": f"peak_mib_{rows}_rows", "median": peak, "runs": 1} for rows, peak in peaks.items()]
        figures["memory_growth"] = peaks[_MEMORY_ROWS[1]] / peaks[_MEMORY_ROWS[0]]
    settings = {"model": files.name, "texts": len(texts), "tokens": tokens, "max_tokens": max_tokens, "threads": 1}
    return report("bench text", settings=settings, results=results, targets=_targets(figures))


_BOUNDS: dict[str, tuple[str, float]] = {
    "ratio_to_default": (">=", 1.5),
    "ratio_to_best_batch_size": (">=", 1.2),
    "ratio_with_duplicates": (">=", 1.7),
    "share_of_gemm_peak": (">=", 0.85),
    "cosine_to_reference": (">=", 0.99999),
    "alone_against_batch": ("<=", 1e-6),
    "tokenisation_share": ("<=", 0.02),
    "warm_speedup": (">=", 50),
    "memory_growth": ("<=", 1.1),
}


def _targets(figures: dict[str, float]) -> list[dict[str, Any]]:
    found = []
    for name, value in figures.items():
        sign, bound = _BOUNDS[name]
        met = value >= bound if sign == ">=" else value <= bound
        found.append({"name": name, "target": f"{sign} {bound:g}", "value": value, "met": bool(met)})
    return found


def _unique(texts: Sequence[str] | None, count: int) -> list[str]:
    found = list(dict.fromkeys(item_texts(count) if texts is None else texts))[:count]
    if len(found) < _SAMPLE:
        raise DataError(f"texts: expected at least {_SAMPLE} distinct ones, found {len(found)}")
    return found


def with_duplicates(texts: Sequence[str]) -> list[str]:
    """Return as many texts, a tenth of them copies of others, in random order.

    Examples
    --------
    >>> len(set(with_duplicates([str(number) for number in range(100)])))
    90
    """
    kept = list(texts)[: len(texts) - round(DUPLICATES * len(texts))]
    generator = np.random.default_rng(0)
    copies = [kept[row] for row in generator.choice(len(kept), len(texts) - len(kept), replace=False)]
    mixed = [*kept, *copies]
    return [mixed[row] for row in generator.permutation(len(mixed))]


def _best_batch_size(model: Any, texts: Sequence[str]) -> int:
    some = list(texts)[: max(_SAMPLE, len(texts) // 2)]
    ways = {size: with_sentence_transformers(model, batch_size=size) for size in BATCH_SIZES}
    times = interleaved({str(size): partial(way, some) for size, way in ways.items()}, 2, clock=time.process_time)
    fastest = min(times, key=lambda size: min(times[size]))
    return int(fastest)


def _check_equal(ways: dict[str, Encode], texts: Sequence[str]) -> float:
    """Return the smallest cosine of ours to the fp32 vectors of one text at a time.

    Raises
    ------
    ModelError
        Some way gives other vectors: its time would say nothing.
    """
    reference = ways["one_at_a_time"](texts)
    cosines = {name: _smallest_cosine(way(texts), reference) for name, way in ways.items()}
    for name, cosine in cosines.items():
        if cosine < 0.9999:
            raise ModelError(f"bench text: {name} gives other vectors (cosine {cosine:.5f}); nothing was timed")
    return cosines[OURS]


def _smallest_cosine(a: Vectors, b: Vectors) -> float:
    wide, other = a.astype(np.float64), b.astype(np.float64)
    products = (wide * other).sum(axis=1)
    return float((products / np.linalg.norm(wide, axis=1) / np.linalg.norm(other, axis=1)).min())


def _alone_against_batch(encoder: TextEncoder, texts: Sequence[str]) -> float:
    alone = np.concatenate([encoder.encode([text]) for text in texts[:_SAMPLE]])
    return float(np.abs(alone - encoder.encode(texts)[:_SAMPLE]).max())


def _gemm() -> Callable[[], Any]:
    """Return a large square product, in which this machine reaches its peak."""
    a, b = torch.randn(2, _GEMM_SIDE, _GEMM_SIDE)
    return lambda: torch.mm(a, b)


def _flops(files: ModelFiles, encoder: TextEncoder, texts: Sequence[str]) -> float:
    """Return the multiplications and additions of the products in an encoder's layers, without norms and the like."""
    config = files.config
    hidden = files.dim
    layers = config.get("num_hidden_layers") or config["n_layers"]
    inner = config.get("intermediate_size") or config["hidden_dim"]
    lengths = np.array([encoder.count_tokens([text]) for text in texts])
    per_layer = lengths.sum() * 2 * (4 * hidden**2 + 2 * hidden * inner) + (4 * lengths**2 * hidden).sum()
    return float(layers * per_layer)
