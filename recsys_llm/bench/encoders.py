"""The ways to encode texts that ``bench text`` compares.

All run the same weights with mean pooling, cut at the same number of tokens, in float32 on one CPU thread.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from recsys_llm.errors import ConfigError
from recsys_llm.text.loading import load_backbone, load_tokenizer, quiet_transformers
from recsys_llm.text.model_files import ModelFiles

Vectors = npt.NDArray[np.float32]
Encode = Callable[[Sequence[str]], Vectors]
"""Texts to vectors (n, hidden), not all of length 1."""

BATCH_SIZES = (4, 8, 16, 32, 64, 128)
"""Tried to find sentence-transformers' best; its default is 32."""


def sentence_transformers_model(files: ModelFiles, *, max_tokens: int) -> Any:
    """Return the model as sentence-transformers loads it.

    Raises
    ------
    ConfigError
        sentence-transformers is not installed.
    """
    if find_spec("sentence_transformers") is None:
        raise ConfigError("bench text compares with sentence-transformers; pip install 'recsys-llm[bench]'")
    from sentence_transformers import SentenceTransformer

    with quiet_transformers():
        model = SentenceTransformer(str(files.directory), device="cpu")
    model.max_seq_length = max_tokens
    return model


def with_sentence_transformers(model: Any, *, batch_size: int = 32) -> Encode:
    """Return sentence-transformers' own ``encode``."""
    return lambda texts: model.encode(
        list(texts), batch_size=batch_size, show_progress_bar=False, normalize_embeddings=True
    )


def one_at_a_time(model: Any) -> Encode:
    """Return a loop that calls sentence-transformers for every text."""
    encode = with_sentence_transformers(model)
    return lambda texts: np.concatenate([encode([text]) for text in texts])


def with_pipeline(files: ModelFiles, *, max_tokens: int) -> Encode:
    """Return transformers' feature-extraction pipeline with its default settings, then mean pooling."""
    from transformers import pipeline

    with quiet_transformers():
        model = load_backbone(files, device=torch.device("cpu"))
        extract: Any = pipeline("feature-extraction", model=model, tokenizer=load_tokenizer(files), device=-1)
    settings = {"truncation": True, "max_length": max_tokens}

    def encode(texts: Sequence[str]) -> Vectors:
        hidden = extract(list(texts), tokenize_kwargs=settings, return_tensors=True)
        return np.stack([tokens[0].mean(dim=0).numpy() for tokens in hidden])

    return encode


@contextmanager
def with_onnx_runtime(files: ModelFiles, *, max_tokens: int) -> Iterator[Encode]:
    """Hand out ONNX Runtime with fp32 weights on sorted batches of 32 texts, the model exported to a temporary file."""
    import onnxruntime

    tokenizer = load_tokenizer(files)
    with tempfile.TemporaryDirectory() as folder:
        path = _export(files, Path(folder) / "model.onnx")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        def encode(texts: Sequence[str]) -> Vectors:
            order = np.argsort([-len(text) for text in texts])
            found = np.empty((len(texts), files.dim), np.float32)
            for start in range(0, len(order), 32):
                batch = [texts[row] for row in order[start : start + 32]]
                inputs = tokenizer(batch, truncation=True, max_length=max_tokens, padding=True, return_tensors="np")
                mask = inputs["attention_mask"]
                hidden = session.run(None, {"input_ids": inputs["input_ids"], "attention_mask": mask})[0]
                total = (hidden * mask[:, :, None]).sum(axis=1)
                found[order[start : start + 32]] = total / mask.sum(axis=1, keepdims=True)
            return found

        yield encode


def _export(files: ModelFiles, target: Path) -> Path:
    class Bare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = load_backbone(files, device=torch.device("cpu"))

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask)[0]
            return hidden

    example = torch.ones(2, 8, dtype=torch.int64)
    axes = {name: {0: "texts", 1: "tokens"} for name in ("input_ids", "attention_mask", "hidden")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's notes on branches; the vectors are compared before timing
        torch.onnx.export(
            Bare().eval(),
            (example, example),
            str(target),
            input_names=["input_ids", "attention_mask"],
            output_names=["hidden"],
            dynamic_axes=axes,
            dynamo=False,
        )
    return target
