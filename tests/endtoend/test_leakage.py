"""Nothing at or after an example's time changes any of its features, through the whole path."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_llm import schema
from recsys_llm.commands.train import train_sequence_model
from recsys_llm.retrieval import FeatureClient
from recsys_llm.seqgan import SeqGANConfig
from recsys_llm.timestamps import now
from tests.workspace import VIEWS, make_repository, materialize

QUICK = SeqGANConfig(mle_epochs=2, adversarial_epochs=1, embedding_dim=8, hidden_dim=8, seed=3)


def build(folder, items: pa.Table, interactions: pa.Table, until):
    """Run the whole write path over these tables."""
    data = folder / "data"
    data.mkdir(parents=True)
    pq.write_table(items, data / "items.parquet")
    pq.write_table(interactions, data / "interactions.parquet")
    repository = make_repository(folder / "feature_repo", data)
    materialize(repository, schema.ITEM_TEXT_EMBEDDING, end=now())
    train_sequence_model(repository, "seqgan_v1", until=until, settings=QUICK)
    materialize(repository, *VIEWS, end=now())
    return FeatureClient(repository)


def changed_after(interactions: pa.Table, moment, how: str) -> pa.Table:
    """Delete, or shuffle among users and items, every event at or after ``moment``."""
    frame = interactions.to_pandas()
    later = frame["event_timestamp"] >= moment
    if how == "deleted":
        frame = frame[~later]
    else:
        shuffled = frame[later].sample(frac=1, random_state=5)
        for column in ("user_id", "item_id"):
            frame.loc[later, column] = shuffled[column].to_numpy()
            shuffled = shuffled.sample(frac=1, random_state=6)
    return pa.Table.from_pandas(frame, schema=interactions.schema, preserve_index=False)


def test_the_future_changes_no_feature(tmp_path, simulated_data):
    items = pq.read_table(simulated_data / "items.parquet")
    interactions = pq.read_table(simulated_data / "interactions.parquet")
    events = interactions.to_pandas().sort_values("event_timestamp", ignore_index=True)
    until = events["event_timestamp"].iloc[int(len(events) * 0.5)].to_pydatetime()
    # Examples at the very moment of an event: the one that they are about, and all ties with it.
    moment = events["event_timestamp"].iloc[int(len(events) * 0.7)]
    chance = np.random.default_rng(1)
    users = events.loc[events["event_timestamp"] <= moment, "user_id"].unique()
    examples = pd.DataFrame(
        {
            "user_id": [*chance.choice(users, 99), events.loc[events["event_timestamp"] == moment, "user_id"].iloc[0]],
            "item_id": chance.choice(items.column("item_id").to_pylist(), 100),
            "event_timestamp": pd.DatetimeIndex([moment] * 100).astype("datetime64[us, UTC]"),
        }
    )

    def features(name: str, table: pa.Table) -> pd.DataFrame:
        return build(tmp_path / name, items, table, until).training_set(examples, service=schema.RANKER).to_pandas()

    expected = features("whole", interactions)
    known = expected[schema.feature_column(schema.USER_NEXT_ITEMS, schema.ENTROPY)].notna()
    assert known.any(), "no example has a prediction: the test would show nothing"
    ids = [name for name in expected.columns if name.endswith(schema.ROW_ID)]
    for how in ("deleted", "shuffled"):
        found = features(how, changed_after(interactions, moment, how))
        for name in expected.columns.difference(ids):
            for before, after in zip(expected[name], found[name], strict=True):
                if isinstance(before, np.ndarray) and before.dtype.kind == "f":
                    np.testing.assert_allclose(before, after, atol=1e-5, err_msg=name)
                elif isinstance(before, np.ndarray):
                    assert before.tolist() == after.tolist(), name
                elif isinstance(before, float):
                    assert before == pytest.approx(after, abs=1e-5, nan_ok=True), name
                else:
                    assert before == after, name
