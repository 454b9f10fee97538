"""Feast's seam: what `feast materialize` computes, and what happens when it can't."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import yaml

from recsys_llm import schema
from recsys_llm.commands.feast_cli import FeastCommandError, run_feast
from recsys_llm.errors import ConfigError, LeakageError
from recsys_llm.producers.base import ProducerTag
from recsys_llm.retrieval import open_store
from recsys_llm.timestamps import now
from tests.workspace import CHEAP_VIEWS, apply, feast, make_repository, materialize, offline, online


@pytest.fixture(scope="module")
def repository(tmp_path_factory, simulated_data) -> Path:
    target = make_repository(tmp_path_factory.mktemp("engine") / "feature_repo", simulated_data)
    materialize(target, *CHEAP_VIEWS, schema.ITEM_TEXT_EMBEDDING, end=now())
    return target


@pytest.fixture
def own_repository(tmp_path, repository) -> Path:
    """A repository of this test's own, applied but not materialised."""
    data = yaml.safe_load((repository / "recsys_llm.yaml").read_text())["sources"]["items"]["parquet"]
    return make_repository(tmp_path / "feature_repo", Path(data).parent)


def test_every_item_has_a_vector_of_unit_length(repository, simulated_data):
    rows = offline(repository, schema.ITEM_TEXT_EMBEDDING)
    items = pq.read_table(simulated_data / "items.parquet").column("item_id").to_pylist()
    assert sorted(rows[schema.ITEM_ID]) == sorted(items)
    lengths = np.linalg.norm(np.stack(rows[schema.EMBEDDING]), axis=1)
    assert lengths == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("view", [*CHEAP_VIEWS, schema.ITEM_TEXT_EMBEDDING])
def test_online_holds_the_newest_offline_row_of_each_key(repository, view):
    rows = offline(repository, view)
    key = rows.columns[0]
    newest = rows.groupby(key).tail(1)
    found = online(repository, view, newest[key].tolist())
    for name in set(found) - {key}:
        for expected, value in zip(newest[name], found[name], strict=True):
            if isinstance(expected, np.ndarray):
                assert list(expected) == value
            else:
                assert (pd.isna(expected) and value is None) or expected == value


def test_stock_history_reads_the_parts(repository):
    rows = offline(repository, schema.USER_STATS)
    middle = rows.iloc[len(rows) // 2]
    store = open_store(repository)
    entity = pd.DataFrame(
        {
            schema.USER_ID: [middle[schema.USER_ID]] * 2,
            schema.EVENT_TIMESTAMP: pd.to_datetime(
                [middle[schema.EVENT_TIMESTAMP], middle[schema.EVENT_TIMESTAMP] - timedelta(microseconds=1)]
            ),
        }
    )
    found = store.get_historical_features(entity, [f"{schema.USER_STATS}:{schema.N_EVENTS}"]).to_df()
    found = found.sort_values(schema.EVENT_TIMESTAMP)[schema.N_EVENTS].tolist()
    assert found[1] == middle[schema.N_EVENTS]
    # A microsecond earlier the newest event is not known yet.
    assert pd.isna(found[0]) or found[0] < middle[schema.N_EVENTS]


def test_incremental_computes_nothing_anew_and_says_so(repository):
    printed = feast(repository, "materialize-incremental", now().strftime("%Y-%m-%dT%H:%M:%S"), "-v", schema.ITEM_STATS)
    assert any(line.startswith("item_stats: nothing") for line in printed)


def test_a_failure_reaches_feast_and_leaves_its_watermark_alone(own_repository):
    file = own_repository / "recsys_llm.yaml"
    file.write_text(file.read_text().replace("{title}. {text}", "{titel}. {text}"))
    with pytest.raises(FeastCommandError, match="titel") as failure:
        run_feast(
            own_repository,
            "materialize",
            "1960-01-01T00:00:00",
            now().strftime("%Y-%m-%dT%H:%M:%S"),
            "-v",
            schema.ITEM_TEXT_EMBEDDING,
        )
    assert "title" in str(failure.value)
    view = open_store(own_repository).get_feature_view(schema.ITEM_TEXT_EMBEDDING)
    assert view.materialization_intervals == []
    assert not (own_repository / "data" / "features" / schema.ITEM_TEXT_EMBEDDING).exists()


def test_an_untagged_view_is_left_to_feast(own_repository, simulated_data):
    shutil.copy(simulated_data / "items.parquet", own_repository / "data" / "source" / "plain.parquet")
    (own_repository / "plain_view.py").write_text(
        "from datetime import timedelta\n"
        "from pathlib import Path\n"
        "from entities import item\n"
        "from feast import FeatureView, Field, FileSource\n"
        "from feast.types import String\n"
        "source = FileSource(name='plain', path=str(Path(__file__).parent / 'data/source/plain.parquet'),\n"
        "                    timestamp_field='event_timestamp')\n"
        "fields = [Field(name='item_id', dtype=String), Field(name='title', dtype=String)]\n"
        "plain = FeatureView(name='plain_items', entities=[item], ttl=timedelta(0), schema=fields, source=source)\n"
    )
    apply(own_repository)
    materialize(own_repository, "plain_items", end=now())
    items = pq.read_table(simulated_data / "items.parquet").to_pandas().sort_values("event_timestamp")
    some = items.drop_duplicates("item_id", keep="last").head(5)
    assert online(own_repository, "plain_items", some["item_id"].tolist())["title"] == some["title"].tolist()


def test_redis_holds_the_same_as_sqlite(own_repository, redis_url):
    materialize(own_repository, *CHEAP_VIEWS, end=now())
    file = own_repository / "feature_store.yaml"
    settings = yaml.safe_load(file.read_text())
    address = redis_url.removeprefix("redis://").split("/")[0]
    settings["project"] = "engine_parity"
    settings["online_store"] = {"type": "redis", "connection_string": address, "skip_dedup": True}
    settings["registry"]["path"] = f"sqlite:///{own_repository}/data/registry_redis.db"
    keys = {view: offline(own_repository, view).iloc[:, 0].unique().tolist() for view in CHEAP_VIEWS}
    before = {view: online(own_repository, view, keys[view]) for view in CHEAP_VIEWS}
    file.write_text(yaml.safe_dump(settings))
    apply(own_repository)
    # A store that has never held the view is given all of it, though nothing is left to compute.
    materialize(own_repository, *CHEAP_VIEWS, end=now())
    assert {view: online(own_repository, view, keys[view]) for view in CHEAP_VIEWS} == before
    feast(own_repository, "teardown")


def test_an_end_in_the_future_is_refused(own_repository):
    with pytest.raises(ConfigError, match="lies in the future"):
        materialize(own_repository, schema.USER_STATS, end=now() + timedelta(days=1))


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("[]", "must be a JSON object"),
        ('{"producer": "text_embeding", "source": "items"}', "unknown producer 'text_embeding'; did you mean"),
        ('{"producer": "os.system", "source": "items"}', "unknown producer 'os.system'"),
        ('{"producer": "text_embedding", "source": "item"}', "unknown source 'item'; did you mean 'items'"),
        ('{"producer": "text_embedding", "sauce": "items"}', "unknown key 'sauce' .*did you mean 'source'"),
        ('{"producer": "text_embedding"}', "lacks the key 'source'"),
    ],
)
def test_a_bad_tag_is_refused(tag, message):
    with pytest.raises(ConfigError, match=message):
        ProducerTag.of("a_view", {schema.TAG: tag})


def test_a_model_refuses_to_produce_its_own_past(own_repository, simulated_data):
    from recsys_llm.commands.train import train_sequence_model
    from recsys_llm.seqgan import SeqGANConfig

    materialize(own_repository, schema.ITEM_TEXT_EMBEDDING, end=now())
    times = pq.read_table(simulated_data / "interactions.parquet").column("event_timestamp").to_pandas().sort_values()
    until = times.iloc[len(times) // 2].to_pydatetime()
    quick = SeqGANConfig(mle_epochs=1, adversarial_epochs=0, embedding_dim=8, hidden_dim=8)
    train_sequence_model(own_repository, "seqgan_v1", until=until, settings=quick)
    with pytest.raises(LeakageError, match="trained on data up to"):
        materialize(own_repository, schema.USER_NEXT_ITEMS, end=until - timedelta(days=1))
    materialize(own_repository, schema.USER_NEXT_ITEMS, end=now())
    rows = offline(own_repository, schema.USER_NEXT_ITEMS)
    assert rows[schema.EVENT_TIMESTAMP].min() == pd.Timestamp(until)
    assert rows[schema.ITEM_IDS].map(len).eq(20).all()
