"""The encoder inside a materialisation: what a second run costs, and whether memory grows with rows."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_llm.bench.memory import in_own_process
from recsys_llm.config import Config, InteractionsConfig, ItemsConfig, SourcesConfig, TextEncoderConfig
from recsys_llm.producers import Parts, open_ledger, produce
from recsys_llm.producers.text_embedding import ItemTextEmbedding
from recsys_llm.text import ModelFiles, TextEncoder
from recsys_llm.text.loading import quiet_transformers
from recsys_llm.timestamps import TIMESTAMP, from_micros, now

_ITEMS = "items.parquet"
_VIEW = "item_text_embedding"
_ROW_GROUP = 10_000


def warm_speedup(encoder: TextEncoder, texts: Sequence[str]) -> float:
    """Return how much faster a materialisation is when nothing has changed since the one before."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_items(root, list(texts))
        seconds = []
        for _ in range(2):
            started = time.perf_counter()
            _materialise(root, encoder)
            seconds.append(time.perf_counter() - started)
    return seconds[0] / seconds[1]


def peak_memory(files: ModelFiles, rows: int, *, max_tokens: int) -> float:
    """Return the peak memory of a process that materialises so many short texts, in MiB.

    With the model's first layer alone, since rows are what it is about and not layers.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_items(root, (f"item {row}" for row in range(rows)))
        _first_layer(files, root / "model")
        return in_own_process(_load_and_materialise, root, max_tokens)[1]


def _load_and_materialise(root: Path, max_tokens: int) -> None:
    _materialise(root, TextEncoder.load(root / "model", device="cpu", max_tokens=max_tokens))


def _materialise(root: Path, encoder: TextEncoder) -> None:
    settings = TextEncoderConfig(model="model", template="{title}")
    sources = SourcesConfig(
        items=ItemsConfig(parquet=_ITEMS, category=None), interactions=InteractionsConfig(parquet=_ITEMS)
    )
    config = Config(sources=sources, root=root, ledger=f"sqlite:///{root / 'ledger.db'}")
    producer = ItemTextEmbedding(config, settings, encoder)
    produce(
        _VIEW,
        producer,
        open_ledger(config),
        Parts(root / "parts", _VIEW, producer.manifest),
        lambda table: None,
        store="none",
        start=from_micros(0),
        end=now(),
    )


def _write_items(root: Path, titles: Iterable[str]) -> None:
    schema = pa.schema([("item_id", pa.string()), ("title", pa.string()), ("event_timestamp", TIMESTAMP)])
    numbered = enumerate(titles)
    with pq.ParquetWriter(root / _ITEMS, schema) as writer:
        while group := list(islice(numbered, _ROW_GROUP)):
            columns = [
                pa.array([f"i{row:09d}" for row, _ in group]),
                pa.array([title for _, title in group]),
                pa.array([1_000_000] * len(group), pa.int64()).cast(TIMESTAMP),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


def _first_layer(files: ModelFiles, target: Path) -> None:
    from transformers import AutoModel

    with quiet_transformers():
        model = AutoModel.from_pretrained(str(files.directory), num_hidden_layers=1, local_files_only=True)
        model.save_pretrained(target)
    for file in files.tokenizer:
        shutil.copy(file, target / file.name)
