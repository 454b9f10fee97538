"""RecTools' SASRec (Kang and McAuley 2018; softmax or gBCE loss, Petrov and Macdonald 2023) on exchanged parquet files.

Run by the Python of ``.venv-peers``, which has no recsys_llm: this file imports nothing of it. Configurations are tried
in the order of :data:`GRID`; each is trained for a few epochs at a time, until its NDCG@10 on the validation slice has
not risen for :data:`PATIENCE` checks. The best, with its number of epochs, is trained on everything before T.

SASRec reads the last ``session_max_len`` items of a user and no more, so that long histories are cut into runs of that
length, each a user of its own in training: else most events of the films would never be learned from.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

GRID: tuple[dict[str, Any], ...] = (
    {"n_factors": 64, "session_max_len": 50, "loss": "softmax", "dropout_rate": 0.2, "batch_size": 32},
    {"n_factors": 64, "session_max_len": 50, "loss": "gBCE", "n_negatives": 256, "dropout_rate": 0.2, "batch_size": 32},
    {"n_factors": 128, "session_max_len": 50, "loss": "softmax", "dropout_rate": 0.3, "batch_size": 32},
)
"""Beside RecTools' own defaults: two blocks, four heads, Adam at 1e-3."""
CHECKS, EPOCHS_PER_CHECK, PATIENCE = 40, 2, 3
K = 10


def main(folder: Path) -> None:
    """Tune, train once for each seed, and write the answers."""
    settings = json.loads((folder / "settings.json").read_text())
    configuration, epochs, score, tuning = tune(folder, settings)
    answers, facts = [], []
    data = training_data(folder / "all.parquet", configuration)
    for seed in range(settings["seeds"]):
        started = time.perf_counter()
        model = build(configuration, seed)
        model.fit_partial(data, min_epochs=epochs, max_epochs=epochs)
        seconds = time.perf_counter() - started
        found = recommend(model, folder / "test.parquet", settings["depth"], settings["filter_seen"])
        answers.append(found.assign(seed=seed))
        chosen = {**configuration, "epochs": epochs}
        facts.append({"seconds": seconds, "validation": score, "chosen_settings": chosen, "tuning_seconds": tuning})
    import pandas as pd

    pd.concat(answers).to_parquet(folder / "answers.parquet", index=False)
    (folder / "answers.json").write_text(json.dumps(facts))


def tune(folder: Path, settings: dict[str, Any]) -> tuple[dict[str, Any], int, float, float]:
    """Return the best configuration, its epochs, its validation NDCG@10, and the CPU seconds spent."""
    started = time.process_time()
    wanted = pq.read_table(folder / "wanted.parquet").to_pandas()
    best: tuple[dict[str, Any], int, float] = (GRID[0], EPOCHS_PER_CHECK, -1.0)
    for configuration in GRID:
        if best[2] >= 0 and time.process_time() - started > settings["budget"]:
            print(f"SASRec {configuration}: not tried, the tuning budget of {settings['budget']:g} CPU s is spent")
            continue
        model, scores = build(configuration, 0), []
        data = training_data(folder / "fit.parquet", configuration)
        for _ in range(CHECKS):
            model.fit_partial(data, min_epochs=EPOCHS_PER_CHECK, max_epochs=EPOCHS_PER_CHECK)
            found = recommend(model, folder / "validation.parquet", K, settings["filter_seen"])
            scores.append(ndcg(found, wanted))
            if scores[-1] > best[2]:
                best = configuration, EPOCHS_PER_CHECK * len(scores), scores[-1]
            stale = len(scores) - 1 - int(np.argmax(scores)) >= PATIENCE
            if stale or time.process_time() - started > settings["budget"]:
                break
        print(f"SASRec {configuration}: validation NDCG@10 {max(scores):.4f} after {len(scores)} checks")
    return *best, time.process_time() - started


def build(configuration: dict[str, Any], seed: int) -> Any:
    """Return an untrained model."""
    from pytorch_lightning import Trainer, seed_everything
    from rectools.models import SASRecModel

    seed_everything(seed, verbose=False)
    silent = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}

    def trainer() -> Any:
        return Trainer(accelerator="cpu", devices=1, enable_checkpointing=False, **silent)

    return SASRecModel(**configuration, get_trainer_func=trainer, recommend_torch_device="cpu")


def training_data(file: Path, configuration: dict[str, Any]) -> Any:
    """Return a data set whose users are runs of ``session_max_len`` items of a user."""
    rows = pq.read_table(file).to_pandas().sort_values(["user", "time"], kind="stable")
    run = rows.groupby("user").cumcount() // configuration["session_max_len"]
    return dataset(rows.assign(run=rows.groupby([rows["user"], run]).ngroup()), "run")


def dataset(rows: Any, user: str) -> Any:
    """Return a RecTools data set of rows; the order of ``time`` is kept, a second apart."""
    import pandas as pd
    from rectools.dataset import Dataset

    frame = pd.DataFrame(
        {
            "user_id": rows[user],
            "item_id": rows["item"],
            "weight": 1.0,
            "datetime": pd.Timestamp("2000-01-01") + pd.to_timedelta(rows["time"], unit="s"),
        }
    )
    return Dataset.construct(frame)


def recommend(model: Any, file: Path, depth: int, filter_seen: bool) -> Any:
    """Return query, item and rank (from 1); a query with no known item gets none."""
    data = dataset(pq.read_table(file).to_pandas(), "query")
    queries = data.user_id_map.external_ids
    found = model.recommend(queries, data, k=depth, filter_viewed=filter_seen, on_unsupported_targets="ignore")
    return found.rename(columns={"user_id": "query", "item_id": "item"})[["query", "item", "rank"]].astype(np.int64)


def ndcg(found: Any, wanted: Any) -> float:
    """Return the mean NDCG@10 over all queries that want something; those without an answer count 0."""
    wanted = wanted.assign(relevant=True)
    sizes = wanted.groupby("query").size()
    merged = found[found["rank"] <= K].merge(wanted.drop_duplicates(), on=["query", "item"])
    gains = (1.0 / np.log2(merged["rank"] + 1.0)).groupby(merged["query"]).sum()
    ideal = np.cumsum(1.0 / np.log2(np.arange(K) + 2.0))[np.minimum(sizes, K) - 1]
    return float((gains.reindex(sizes.index).fillna(0.0) / ideal).mean())


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    import logging

    import torch

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
