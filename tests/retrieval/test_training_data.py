"""Training sets as a model reads them: batches from memory and from files, slices of time, Feast's saved datasets."""

from __future__ import annotations

import pickle
import tempfile
import warnings
from datetime import UTC
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from torch.utils.data import DataLoader

from recsys_llm import schema
from recsys_llm.errors import RetrievalError, RowError, SchemaError, ServiceError
from recsys_llm.retrieval import torch_dataset
from recsys_llm.retrieval.torch_dataset import ExampleDataset, _whole
from tests.retrieval.feast_repository import EVERYTHING, MOOD, PLAIN, T0, examples, hours
from tests.retrieval.history_rows import ITEMS, USERS, fill

pytestmark = pytest.mark.usefixtures("nothing_stored")

VECTOR = "item_text_embedding_v1__embedding"


@pytest.fixture
def asked():
    """Examples in no order of time, some of them twice."""
    rng = np.random.default_rng(0)
    rows = [(USERS[rng.integers(3)], ITEMS[rng.integers(3)], hours(int(rng.integers(-1, 8)))) for _ in range(40)]
    rows += rows[:3]
    index = [f"e{number}" for number in rng.permutation(len(rows))]
    return examples(*rows, index=index, label=rng.integers(0, 2, len(rows)).astype(np.float32))


@pytest.fixture
def training(repository, client, asked):
    fill(repository)
    return client.training_set(asked, service=EVERYTHING)


def batches_of(loader):
    return [{name: tensor.numpy().copy() for name, tensor in batch.items()} for batch in loader]


def check_same(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name], other[name])


def test_worker_processes_give_the_same_batches(training):
    expected = batches_of(training.loader(8, shuffle=True, seed=3))
    loader = training.loader(8, shuffle=True, seed=3, workers=2)
    check_same(batches_of(loader), expected)
    assert loader.persistent_workers
    assert batches_of(loader)[0]["rows"].tolist() != expected[0]["rows"].tolist()  # another order in the next epoch


def test_spawned_processes_are_sent_paths_only(training, tmp_path):
    dataset = training.dataset(directory=tmp_path / "arrays")
    assert len(pickle.dumps(dataset)) < 10_000
    files = sorted((tmp_path / "arrays").glob("*.npy"))
    stored = training.item.stored(VECTOR).values
    assert sum(np.array_equal(np.load(file), stored, equal_nan=True) for file in files) == 1  # each array once
    loader = DataLoader(dataset, batch_size=16, num_workers=1, collate_fn=_whole, multiprocessing_context="spawn")
    check_same(batches_of(loader), batches_of(training.loader(16)))
    assert files == sorted((tmp_path / "arrays").glob("*.npy"))
    with pytest.raises(RetrievalError, match="expected a folder without arrays, found some in"):
        training.dataset(directory=tmp_path / "arrays")


def test_the_temporary_files_go_with_the_loader(training, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    loader = training.loader(8, workers=1)
    assert len(list(tmp_path.glob("recsys_llm_examples_*/*.npy"))) > 3
    assert len(batches_of(loader)) == 6
    assert len(list(tmp_path.glob("recsys_llm_examples_*"))) == 1  # workers that ended left it alone
    del loader
    assert list(tmp_path.glob("recsys_llm_examples_*")) == []


def test_a_large_dataset_in_memory_is_not_sent_to_processes(training, monkeypatch):
    whole = pickle.loads(pickle.dumps(training.dataset()))
    np.testing.assert_array_equal(whole[5][VECTOR].numpy(), training.vector(VECTOR)[5])
    monkeypatch.setattr(torch_dataset, "PICKLED_BYTES", 1000)
    with pytest.raises(RetrievalError, match=r"MiB would be copied .* use loader\(workers=...\)"):
        pickle.dumps(training.dataset())


def test_batches_are_pinned_where_there_is_a_gpu(training):
    assert training.loader(8).pin_memory == torch.cuda.is_available()
    assert not training.loader(8, pin_memory=False).pin_memory
    if torch.cuda.is_available():
        assert next(iter(training.loader(8)))[VECTOR].is_pinned()


def test_mapping_nothing(tmp_path):
    empty = ExampleDataset(0, {"a": (np.empty((0, 3), np.float32), None)}).mapped(tmp_path / "new")
    assert len(pickle.loads(pickle.dumps(empty))) == 0
    assert empty.__getitems__([])["a"].shape == (0, 3)


def test_memory_of_a_batch_is_filled_again_once_nobody_holds_it():
    values = np.arange(60, dtype=np.float32).reshape(20, 3)
    dataset = ExampleDataset(20, {"a": (values, np.arange(20)[::-1].copy()), "b": (values, None)})
    held = dataset.__getitems__(range(10))
    rows, part = held["a"], held["b"][2:4].numpy()[1:]
    del held
    for start in range(5):
        again = dataset.__getitems__(range(start, start + 12))
        assert again["a"].numpy().tolist() == values[::-1][start : start + 12].tolist()
        assert again["b"].numpy().tolist() == values[start : start + 12].tolist()
    assert rows.numpy().tolist() == values[::-1][:10].tolist()
    assert part.tolist() == values[3:4].tolist()
    del rows, part
    del again
    place = dataset.__getitems__(range(12))["a"].data_ptr()
    assert dataset.__getitems__(range(12))["a"].data_ptr() == place
    assert dataset.__getitems__([19, -1])["a"].tolist() == [values[0].tolist()] * 2
    assert dataset.__getitems__([19, -1])["b"].tolist() == [values[19].tolist()] * 2
    with pytest.raises(IndexError):
        dataset.__getitems__([20])


@pytest.mark.parametrize("rows", [1, 7, 43, 1000])
def test_slices_together_are_one_call(repository, client, training, asked, rows):
    slices = list(client.training_slices(asked, service=EVERYTHING, rows=rows))
    assert [len(some) for some in slices] == [rows] * (43 // rows) + ([43 % rows] if 43 % rows else [])
    ends = [some.examples["event_timestamp"].max() for some in slices]
    assert ends == sorted(ends)
    frames = pd.concat([some.to_pandas() for some in slices])
    expected = training.to_pandas()
    pd.testing.assert_frame_equal(frames.loc[expected.index], expected)
    for some in slices:
        assert some.fingerprints == training.fingerprints


def test_slices_of_files(repository, client, training, asked, tmp_path):
    table = pa.Table.from_pandas(asked, preserve_index=False)
    pq.write_table(table.slice(0, 20), tmp_path / "a.parquet", row_group_size=6)
    pq.write_table(table.slice(20, 0), tmp_path / "b.parquet")
    pq.write_table(table.slice(20), tmp_path / "c.parquet", row_group_size=50)
    expected = training.to_pandas().reset_index(drop=True)
    frames = pd.concat([s.to_pandas() for s in client.training_slices(tmp_path, service=EVERYTHING, rows=9)])
    pd.testing.assert_frame_equal(frames.sort_index(), expected, check_index_type=False)
    frames = pd.concat(
        [s.to_pandas() for s in client.training_slices(tmp_path / "a.parquet", service=EVERYTHING, rows=9)]
    )
    pd.testing.assert_frame_equal(frames.sort_index(), expected.iloc[:20], check_index_type=False)


def test_no_slices_of_nothing(client, tmp_path):
    assert list(client.training_slices(examples(), service=PLAIN)) == []
    pq.write_table(pa.Table.from_pandas(examples(), preserve_index=False), tmp_path / "e.parquet")
    assert list(client.training_slices(tmp_path, service=PLAIN)) == []


def test_slices_of_what_is_no_examples(client, tmp_path, asked):
    with pytest.raises(SchemaError, match="expected a pandas DataFrame or the path of parquet files, found int"):
        client.training_slices(5, service=PLAIN)
    with pytest.raises(SchemaError, match="expected a parquet file or a folder of them, found none at"):
        client.training_slices(tmp_path / "nothing.parquet", service=PLAIN)
    with pytest.raises(SchemaError, match="expected a parquet file or a folder of them, found none at"):
        client.training_slices(tmp_path, service=PLAIN)
    with pytest.raises(SchemaError, match="expected rows of 1 or more, found 0"):
        client.training_slices(asked, service=PLAIN, rows=0)
    pq.write_table(pa.table({"event_time": [1]}), tmp_path / "x.parquet")
    with pytest.raises(SchemaError, match="x.parquet: column 'event_timestamp' is missing; did you mean 'event_time'"):
        client.training_slices(tmp_path, service=PLAIN)
    with pytest.raises(SchemaError, match="column 'event_timestamp' is missing"):
        client.training_slices(asked.drop(columns="event_timestamp"), service=PLAIN)
    with pytest.raises(ServiceError, match="'plane' is not in project"):
        next(client.training_slices(asked, service="plane"))
    null = asked.assign(event_timestamp=asked["event_timestamp"].where(asked.index != "e5"))
    pq.write_table(pa.Table.from_pandas(null, preserve_index=False), tmp_path / "x.parquet")
    with pytest.raises(RowError, match="x.parquet, row group 0, column 'event_timestamp': row .* is null"):
        next(client.training_slices(tmp_path, service=PLAIN))


@pytest.fixture
def quiet_feast():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*dataset is an experimental", category=RuntimeWarning)
        warnings.filterwarnings("ignore", message=".*Retrieving datasets is", category=RuntimeWarning)
        yield


@pytest.mark.usefixtures("quiet_feast")
def test_feasts_saved_datasets(repository, client, training, asked, tmp_path):
    store = repository.store
    service = store.get_feature_service(EVERYTHING)
    storage = SavedDatasetFileStorage(path=str(tmp_path / "ours" / "set.parquet"))
    store.create_saved_dataset(from_=training.retrieval_job(), name="ours", storage=storage, feature_service=service)
    found = store.get_saved_dataset("ours")
    assert found.feature_service_name == EVERYTHING
    expected = training.to_arrow()
    by = ["user_id", "item_id", "event_timestamp"]
    read = found.to_arrow()
    assert read.num_rows == len(asked)
    for name in training.columns:
        left = read.select([*by, name]).to_pylist()
        right = expected.select([*by, name]).to_pylist()
        key = lambda row: (row["user_id"], row["item_id"], row["event_timestamp"].astimezone(UTC))  # noqa: E731
        assert [row[name] for row in sorted(left, key=key)] == [row[name] for row in sorted(right, key=key)], name
    assert pq.read_table(tmp_path / "ours" / "set.parquet").column("label").to_pylist() == asked["label"].tolist()
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        store.create_saved_dataset(from_=training.retrieval_job(), name="again", storage=storage)
    store.create_saved_dataset(from_=training.retrieval_job(), name="ours", storage=storage, allow_overwrite=True)


@pytest.mark.usefixtures("quiet_feast")
def test_feasts_own_way_to_save_works_on_the_same_repository(repository, training, asked, tmp_path):
    store = repository.store
    job = store.get_historical_features(
        entity_df=asked[["user_id", "item_id", "event_timestamp"]].drop_duplicates().copy(),
        features=store.get_feature_service(EVERYTHING),
        full_feature_names=True,
    )
    storage = SavedDatasetFileStorage(path=str(tmp_path / "feasts.parquet"))
    store.create_saved_dataset(from_=job, name="feasts", storage=storage)
    frame = store.get_saved_dataset("feasts").to_df()
    ours = training.to_pandas().drop_duplicates(["user_id", "item_id", "event_timestamp"])
    merged = ours.merge(frame, on=["user_id", "item_id", "event_timestamp"], suffixes=("", "_feast"))
    assert len(merged) == len(ours)
    level = schema.feature_column(MOOD, "level")
    np.testing.assert_array_equal(merged[level], merged[f"{level}_feast"].astype(np.float32))


@pytest.mark.usefixtures("quiet_feast")
def test_where_a_saved_dataset_cannot_go(repository, client, training):
    store = repository.store
    for path, message in (("s3://bucket/x", "with a local path"), ("x.parquet", "expected an absolute path")):
        with pytest.raises(RetrievalError, match=message):
            training.retrieval_job().persist(SavedDatasetFileStorage(path=path))
    nothing = client.training_set(examples(), service=PLAIN).retrieval_job()
    storage = SavedDatasetFileStorage(path=str(Path("/nowhere/x.parquet")))
    with pytest.raises(RetrievalError, match="expected at least one example"):
        store.create_saved_dataset(from_=nothing, name="n", storage=storage)


def test_the_manifest_says_what_feast_had_materialised(repository, client, asked):
    fill(repository)
    assert client.training_set(asked, service=EVERYTHING).manifest["intervals"][MOOD] == []
    repository.store.materialize(T0, hours(2), feature_views=[MOOD])
    client.refresh()
    manifest = client.training_set(asked, service=EVERYTHING).manifest
    assert manifest["intervals"][MOOD] == [[T0.isoformat(), hours(2).isoformat()]]
    assert manifest["intervals"][schema.ITEM_STATS] == []
    pairs = asked.groupby(["user_id", "event_timestamp"]).ngroups, asked.groupby(["item_id", "event_timestamp"]).ngroups
    assert (manifest["users"], manifest["items"]) == pairs
    assert manifest["rows"] == 43
