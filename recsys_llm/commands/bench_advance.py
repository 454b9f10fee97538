"""The feature repository of ``recsys-llm bench advance``."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from recsys_llm.bench.advance import TEXT_DIM, bench_advance
from recsys_llm.bench.backfill import USERS, made_up_events
from recsys_llm.commands.feast_cli import run_feast
from recsys_llm.commands.repository import init_repository
from recsys_llm.config import FILE_NAME, load_config
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM_ID, USER_NEXT_ITEMS, USER_STATES
from recsys_llm.seqgan import ItemVectors, SeqGANConfig, train
from recsys_llm.timestamps import TIMESTAMP, as_utc, now


def run_advance(folder: Path, *, runs: int) -> dict[str, Any]:
    """Make a repository of made-up events in ``folder``, and return the report on it."""
    events = made_up_events(max(USERS))
    data = folder / "data"
    data.mkdir()
    items = pc.unique(events[ITEM_ID])
    catalogue = {ITEM_ID: items, EVENT_TIMESTAMP: pa.nulls(len(items), TIMESTAMP), "title": items, "text": items}
    pq.write_table(pa.table(catalogue), data / "items.parquet")
    pq.write_table(events, data / "interactions.parquet")
    repository = init_repository(folder / "repository", data=data)
    file = repository / FILE_NAME
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    settings["sequence_models"]["seqgan_v1"]["item_vectors"] = None  # they are made up below: no encoder is measured
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    run_feast(repository, "apply")
    until = as_utc(max(events[EVENT_TIMESTAMP].to_pylist())) + timedelta(minutes=1)
    vectors = np.random.default_rng(0).standard_normal((len(items), TEXT_DIM), dtype=np.float32)
    content = ItemVectors(tuple(items.to_pylist()), vectors, "made up")
    quick = SeqGANConfig(mle_epochs=1, adversarial_epochs=0)
    checkpoint = train(events, quick, until=until, item_vectors=content, device="cpu")
    config = load_config(repository)
    checkpoint.save(config.path(config.sequence_models["seqgan_v1"].checkpoint))
    end = f"{now():%Y-%m-%dT%H:%M:%S}"
    run_feast(repository, "materialize", "2000-01-01T00:00:00", end, "-v", USER_NEXT_ITEMS, "-v", USER_STATES)
    return bench_advance(repository, runs=runs)
