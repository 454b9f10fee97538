"""Events that come one by one leave the online rows that a materialisation of all of them would write."""

from __future__ import annotations

import shutil
import uuid
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml

from recsys_llm import schema, streaming
from recsys_llm.commands.repository import init_repository
from recsys_llm.commands.train import train_sequence_model
from recsys_llm.errors import ConfigError, EmptiedStoreError, FingerprintError, RowError, SchemaError
from recsys_llm.retrieval import open_store
from recsys_llm.seqgan import SeqGANConfig
from recsys_llm.streaming import NextItemsStream
from recsys_llm.timestamps import from_micros, now
from tests.workspace import START, apply, make_repository, materialize, offline, online, use_redis

QUICK = SeqGANConfig(mle_epochs=1, adversarial_epochs=0, embedding_dim=8, hidden_dim=8)
VIEWS = (schema.USER_NEXT_ITEMS, schema.USER_STATES)


@pytest.fixture(scope="module")
def data(tmp_path_factory, simulated_data) -> Path:
    return Path(shutil.copytree(simulated_data, tmp_path_factory.mktemp("data") / "data"))


@pytest.fixture(scope="module")
def events(data) -> pa.Table:
    table = pq.read_table(data / "interactions.parquet").select(
        [schema.USER_ID, schema.ITEM_ID, schema.EVENT_TIMESTAMP]
    )
    return table.sort_by(schema.EVENT_TIMESTAMP)


@pytest.fixture(scope="module")
def halfway(events) -> datetime:
    return events[schema.EVENT_TIMESTAMP][len(events) // 2].as_py()


@pytest.fixture(scope="module")
def trained(tmp_path_factory, data, halfway) -> Path:
    """A repository with a model until halfway, and rows until an eighth of the events later."""
    repository = make_repository(tmp_path_factory.mktemp("streaming") / "feature_repo", data)
    config = repository / "recsys_llm.yaml"
    config.write_text(config.read_text().replace("    item_vectors: item_text_embedding_v1\n", ""))
    train_sequence_model(repository, "seqgan_v1", until=halfway, settings=QUICK)
    return repository


@pytest.fixture
def repository(tmp_path, trained, events) -> Path:
    """A copy of the trained repository, materialised until five eighths of the events."""
    return _materialised(make_repository(tmp_path / "feature_repo", _data_of(trained)), trained, events)


@pytest.fixture
def redis_repository(tmp_path, trained, events, redis_url) -> Path:
    """The same over Redis, in a project of its own."""
    own = init_repository(tmp_path / "feature_repo", data=_data_of(trained))
    use_redis(own, redis_url)
    file = own / "feature_store.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["project"] = f"p{uuid.uuid4().hex[:8]}"
    file.write_text(yaml.safe_dump(settings))
    apply(own)
    return _materialised(own, trained, events)


def _materialised(own: Path, trained: Path, events: pa.Table) -> Path:
    shutil.copy(trained / "recsys_llm.yaml", own / "recsys_llm.yaml")
    shutil.copytree(trained / "data" / "models", own / "data" / "models", dirs_exist_ok=True)
    materialize(own, *VIEWS, end=_materialised_until(events))
    return own


def _data_of(repository: Path) -> Path:
    return Path(yaml.safe_load((repository / "recsys_llm.yaml").read_text())["sources"]["items"]["parquet"]).parent


def _materialised_until(events: pa.Table) -> datetime:
    return events[schema.EVENT_TIMESTAMP][len(events) * 5 // 8].as_py()


def _later(events: pa.Table, since: datetime) -> pa.Table:
    return events.filter(pc.greater_equal(events[schema.EVENT_TIMESTAMP], pa.scalar(since, pa.timestamp("us", "UTC"))))


def _assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        for ours, theirs in zip(found[name], values, strict=True):
            if isinstance(theirs, list) and theirs and isinstance(theirs[0], float):
                np.testing.assert_allclose(ours, theirs, atol=1e-5, err_msg=name)
            elif isinstance(theirs, float):
                assert ours == pytest.approx(theirs, abs=1e-5), name
            else:
                assert ours == theirs, name


@pytest.mark.parametrize("store", ["sqlite", "redis"])
def test_a_stream_leaves_what_a_materialisation_would(store, events, request):
    repository = request.getfixturevalue("repository" if store == "sqlite" else "redis_repository")
    later = _later(events, _materialised_until(events))
    users = pc.unique(events[schema.USER_ID]).to_pylist()
    stream = NextItemsStream(repository, device="cpu")
    rng = np.random.default_rng(0)
    stamps = later[schema.EVENT_TIMESTAMP].cast(pa.int64()).to_numpy()
    cuts = np.sort(rng.choice(np.unique(stamps)[1:], 12, replace=False))
    bounds = [0, *np.searchsorted(stamps, cuts), len(later)]
    for low, high in zip(bounds, bounds[1:], strict=False):
        done = stream.advance_many(later.slice(low, high - low).take(pa.array(rng.permutation(high - low))))
        assert len(done.late) == 0 and done.events <= high - low
        assert done.users == pc.count_distinct(later[schema.USER_ID].slice(low, high - low)).as_py()
    found = {view: online(repository, view, users) for view in VIEWS}
    stamps = {view: _online_stamps(repository, view, users) for view in VIEWS}
    materialize(repository, *VIEWS, end=now())
    for view in VIEWS:
        newest = offline(repository, view).groupby(schema.USER_ID).tail(1).set_index(schema.USER_ID).loc[users]
        _assert_same(found[view], {name: _values(newest, name) for name in found[view]})
        assert stamps[view] == [
            stamp.timestamp() // 1 for stamp in newest[schema.EVENT_TIMESTAMP]
        ]  # Feast tells seconds


def _values(rows: pd.DataFrame, name: str) -> list:
    column = rows.index if name == schema.USER_ID else rows[name]
    return [value.tolist() if isinstance(value, np.ndarray) else value for value in column]


def _online_stamps(repository: Path, view: str, users: list[str]) -> list[int]:
    """Return the stamps of online rows, in seconds."""
    store = open_store(repository)
    feature = store.get_feature_view(view).features[0].name
    rows = store.get_online_features([f"{view}:{feature}"], [{schema.USER_ID: user} for user in users])
    return list(rows.to_dict(include_event_timestamps=True)[f"{feature}__ts"])


def test_a_newcomer_gets_a_list_of_their_own(repository, events):
    stream = NextItemsStream(repository, device="cpu")
    item = events[schema.ITEM_ID][0].as_py()
    moment = now()
    before = online(repository, schema.USER_NEXT_ITEMS, ["newcomer"])
    assert before[schema.ITEM_IDS] == [None]
    assert stream.advance("newcomer", [item, "never seen"], moment)
    found = online(repository, schema.USER_NEXT_ITEMS, ["newcomer"])
    assert len(found[schema.ITEM_IDS][0]) == 20 and item not in found[schema.ITEM_IDS][0]
    assert found[schema.PROVENANCE] == [schema.HISTORY] and found[schema.IS_FALLBACK] == [False]
    state = online(repository, schema.USER_STATES, ["newcomer"])
    assert from_micros(state[schema.NEWEST_EVENT][0]) == moment and len(state[schema.HAD_ITEMS][0]) == 1


def test_late_events_change_nothing_and_are_handed_back(repository, events, halfway):
    stream = NextItemsStream(repository, device="cpu")
    user, item = events[schema.USER_ID][0].as_py(), events[schema.ITEM_ID][0].as_py()
    moment = now()
    assert stream.advance(user, [item], moment)
    before = {view: online(repository, view, [user]) for view in VIEWS}
    assert not stream.advance(user, [item], moment)  # delivered again
    assert not stream.advance(user, ["another"], moment - timedelta(days=1))
    assert not stream.advance("newcomer", [item], halfway - timedelta(microseconds=1))  # the model may know it
    assert {view: online(repository, view, [user]) for view in VIEWS} == before
    assert online(repository, schema.USER_STATES, ["newcomer"])[schema.STATE] == [None]
    rows = [(user, item, moment + timedelta(seconds=1)), (user, item, moment), ("newcomer", item, moment)]
    columns = [pa.array(column) for column in zip(*rows, strict=True)]
    table = pa.table(columns, names=[schema.USER_ID, schema.ITEM_ID, schema.EVENT_TIMESTAMP])
    done = stream.advance_many(table)
    assert (done.users, done.events) == (2, 2)
    assert done.again_from == moment - timedelta(microseconds=1)
    assert stream.advance_many(table.slice(0, 0)).again_from is None
    assert done.late.to_pylist() == [table.slice(1, 1).to_pylist()[0]]
    assert stream.advance_many(table.slice(0, 0)).users == 0


def test_events_that_cannot_be_used_are_refused_whole(repository, events):
    stream = NextItemsStream(repository, device="cpu")
    user, item = events[schema.USER_ID][0].as_py(), events[schema.ITEM_ID][0].as_py()
    before = online(repository, schema.USER_STATES, [user])
    with pytest.raises(RowError, match="lies in the future"):
        stream.advance(user, [item], now() + timedelta(hours=1))
    with pytest.raises(RowError, match="reserved"):
        stream.advance("segment:DE", [item], now())
    with pytest.raises(SchemaError, match="tz-aware"):
        stream.advance(user, [item], datetime(2030, 1, 1))  # noqa: DTZ001
    nulls = pa.table({schema.USER_ID: [user, None], schema.ITEM_ID: [item] * 2, schema.EVENT_TIMESTAMP: [now()] * 2})
    with pytest.raises(RowError, match="'user_id' is null"):
        stream.advance_many(nulls)
    with pytest.raises(SchemaError, match="column 'item_id' is missing"):
        stream.advance_many(nulls.drop_columns([schema.ITEM_ID]))
    assert online(repository, schema.USER_STATES, [user]) == before


def test_repositories_that_cannot_be_streamed_into_are_refused(trained, repository, halfway):
    with pytest.raises(ConfigError, match="materialised never, so that users with a history would seem to have none"):
        NextItemsStream(trained)
    with pytest.raises(ConfigError, match="did you mean 'user_states_v1'"):
        NextItemsStream(repository, states="user_state_v1")
    with pytest.raises(ConfigError, match="expected next items and states"):
        NextItemsStream(repository, states=schema.USER_NEXT_ITEMS)
    file = repository / "recsys_llm.yaml"
    text = file.read_text()
    file.write_text(text.replace("granularity: event", "granularity: 1d"))
    with pytest.raises(FingerprintError, match="must not be mixed"):
        NextItemsStream(repository)
    file.write_text(text)
    train_sequence_model(repository, "seqgan_v1", until=halfway + timedelta(days=1), settings=QUICK, overwrite=True)
    with pytest.raises(FingerprintError, match="must not be mixed"):
        NextItemsStream(repository)


def test_a_running_stream_notices_another_model(repository, events, monkeypatch):
    monkeypatch.setattr(streaming, "NEWCOMER_SECONDS", 0.0)
    stream = NextItemsStream(repository, device="cpu", check_every=timedelta(hours=1))
    later = _later(events, _materialised_until(events))
    user, item = later[schema.USER_ID][-1].as_py(), events[schema.ITEM_ID][0].as_py()
    streamed = next(other for other in later[schema.USER_ID].to_pylist() if other != user)
    assert stream.advance(streamed, [item], now())
    shutil.rmtree(repository / "data" / "features")
    (repository / "data" / "ledger.db").unlink()
    until = _materialised_until(events)
    train_sequence_model(repository, "seqgan_v1", until=until, settings=QUICK, overwrite=True)
    apply(repository)
    materialize(repository, *VIEWS, start=START, end=now())
    rows = online(repository, schema.USER_STATES, [user]), online(repository, schema.USER_NEXT_ITEMS, [user])
    with pytest.raises(FingerprintError, match=f"user '{user}': .*start the stream again, with the events"):
        stream.advance(user, [item], now())
    with pytest.raises(FingerprintError, match="must not be mixed"):
        stream.advance("newcomer", [item], now())
    assert rows == (online(repository, schema.USER_STATES, [user]), online(repository, schema.USER_NEXT_ITEMS, [user]))
    assert online(repository, schema.USER_STATES, ["newcomer"])[schema.STATE] == [None]
    fresh = NextItemsStream(repository, device="cpu")
    assert fresh.advance(user, [item], now())
    with pytest.raises(FingerprintError, match=f"user '{streamed}'"):  # newer than what was materialised
        fresh.advance(streamed, [item], now())


def test_a_running_stream_notices_that_its_views_were_moved(repository, events):
    user, item = (events[name][0].as_py() for name in (schema.USER_ID, schema.ITEM_ID))
    often, seldom = (NextItemsStream(repository, device="cpu", check_every=timedelta(seconds=s)) for s in (0, 3600))
    assert often.advance(user, [item], now())
    versions = repository / schema.VERSIONS_FILE
    versions.write_text(f"{schema.USER_NEXT_ITEMS}: user_next_items_v2\n")
    with pytest.raises(FingerprintError, match="user_next_items_v2 is read in their place now; start the stream again"):
        often.advance(user, [item], now())
    assert seldom.advance(user, [item], now())
    with pytest.raises(ConfigError, match="unknown feature view 'user_next_items_v2'"):
        NextItemsStream(repository)  # a new stream follows versions.yaml
    versions.write_text("- not a mapping\n")
    with pytest.raises(ConfigError, match=schema.VERSIONS_FILE):
        NextItemsStream(repository)
    versions.unlink()
    file = repository / "feature_views.py"
    file.write_text(file.read_text().replace('model="seqgan_v1"', 'model="seqgan_v2"'))
    apply(repository)
    with pytest.raises(FingerprintError, match="model='seqgan_v1'.* and is .*model='seqgan_v2'"):
        often.advance(user, [item], now())


def test_users_whose_state_was_left_out_are_no_newcomers(tmp_path, trained, halfway):
    own = make_repository(tmp_path / "feature_repo", _data_of(trained))
    shutil.copy(trained / "recsys_llm.yaml", own / "recsys_llm.yaml")
    shutil.copytree(trained / "data" / "models", own / "data" / "models", dirs_exist_ok=True)
    materialize(own, *VIEWS, start=halfway, end=now())  # leaves out what is stamped at the cut-off
    with pytest.raises(ConfigError, match="materialised from .* on only, so that users with a history"):
        NextItemsStream(own)
    materialize(own, *VIEWS, start=START, end=now())
    NextItemsStream(own)


def test_an_emptied_redis_is_no_world_of_newcomers(redis_repository, events):
    stream = NextItemsStream(redis_repository, device="cpu")
    item = events[schema.ITEM_ID][0].as_py()
    assert stream.advance("newcomer", [item], now())
    store = open_store(redis_repository)
    client = store.provider.online_store._get_client(store.config.online_store)
    ours = [key for key in client.scan_iter() if store.project.encode() in key]
    client.delete(*ours)
    with pytest.raises(EmptiedStoreError, match="recsys-llm repair user_states_v1"):
        stream.advance("another", [item], now())


def test_a_nightly_granularity_is_refused(tmp_path, trained):
    own = make_repository(tmp_path / "feature_repo", _data_of(trained))
    file = own / "recsys_llm.yaml"
    file.write_text((trained / "recsys_llm.yaml").read_text().replace("granularity: event", "granularity: 1d"))
    shutil.copytree(trained / "data" / "models", own / "data" / "models", dirs_exist_ok=True)
    materialize(own, *VIEWS, end=now())
    with pytest.raises(ConfigError, match="expected granularity 'event'"):
        NextItemsStream(own)
