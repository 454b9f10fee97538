"""Opening repositories, resolving services, fingerprints."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.data_format import ParquetFormat
from feast.types import Array, Float32, Int64, String, UnixTimestamp

import recsys_llm
from recsys_llm import schema
from recsys_llm.errors import ConfigError, FingerprintError, LayoutError, SchemaError, ServiceError
from recsys_llm.retrieval import FeatureClient, Status, open_store
from recsys_llm.retrieval.columns import Kind
from tests.retrieval.feast_repository import DIMENSION, EVERYTHING, PLAIN, Repository, hours, online_config
from tests.workspace import apply

YAML = """
project: shop
provider: local
registry: {registry_type: sql, path: "sqlite:///registry.db"}
offline_store: {type: duckdb}
online_store: {type: sqlite, path: data/online.db}
entity_key_serialization_version: 3
"""


@pytest.fixture
def repository(tmp_path):
    repository = Repository(tmp_path, online=online_config("sqlite", tmp_path))
    (tmp_path / "feature_store.yaml").write_text(YAML)
    return repository


@pytest.fixture
def client(repository):
    with FeatureClient(store=repository.store) as client:
        yield client


def test_opens_from_any_working_directory(repository, tmp_path_factory, monkeypatch):
    repository.write_online(schema.ITEM_STATS, [{"item_id": "i", "at": hours(0), "n_events": 5}])
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with FeatureClient(repository.folder, now=lambda: hours(1)) as client:
        assert client.lookup("u", ["i"], service=PLAIN).scalar("item_stats__n_events").tolist() == [5]
    assert not list(Path.cwd().iterdir())


def test_opens_another_configuration_file(repository):
    (repository.folder / "other.yaml").write_text(YAML.replace("project: shop", "project: other"))
    assert open_store(repository.folder, config_file="other.yaml").project == "other"


def test_no_repository(tmp_path):
    with pytest.raises(ConfigError, match=r"feature_store.yaml: not found; run `recsys-llm init"):
        FeatureClient(tmp_path).resolve(PLAIN)
    (tmp_path / "feature_store.yaml").write_text("project: 1-\nprovider: local\n")
    with pytest.raises(ConfigError, match=r"feature_store\.yaml: "):
        open_store(tmp_path)
    with pytest.raises(SchemaError, match="either a repository or store="):
        FeatureClient()


def test_importing_it_loads_neither_feast_nor_torch():
    code = "import sys, recsys_llm.retrieval; print(*sorted({'feast', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_the_packaged_repository_is_understood(tmp_path):
    """The packaged definitions resolve to the kinds that models expect."""
    source = Path(recsys_llm.__file__).parents[1] / "feature_repo"
    folder = tmp_path / "feature_repo"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("data", "__pycache__"))
    (folder / "data").mkdir()
    apply(folder)
    service = FeatureClient(folder).resolve(schema.RANKER)
    kinds = {feature.column: feature.kind for view in service.views for feature in view.features}
    assert kinds["item_text_embedding_v1__embedding"] == kinds["user_next_items_v1__centroid"] == Kind.VECTOR
    assert kinds["user_next_items_v1__log_probs"] == kinds["user_stats__category_shares"] == Kind.FLOATS
    assert kinds["user_stats__recent_items"] == Kind.STRINGS
    assert kinds["item_stats__category"] == Kind.STRING
    assert kinds["item_stats__n_events"] == Kind.SCALAR
    assert not any(column.endswith("__row_id") for column in kinds)
    assert all(view.gathered for view in service.views if view.name != schema.ITEM_STATS)


def make_view(name, fields, entity, tmp_path):
    source = FileSource(
        name=f"{name}_parts",
        path=str(tmp_path / name),
        file_format=ParquetFormat(),
        timestamp_field="event_timestamp",
    )
    return FeatureView(name=name, entities=[entity], ttl=timedelta(0), schema=fields, source=source)


def test_services_that_cannot_be_read(repository, client, tmp_path):
    shop = Entity(name="shop", join_keys=["shop_id"], value_type=ValueType.STRING)
    number = Entity(name="item", join_keys=["item_id"], value_type=ValueType.INT64)
    item = repository.store.get_entity("item")
    key, number_x = Field(name="item_id", dtype=String), Field(name="x", dtype=Float32)
    views = [
        make_view("a", [Field(name="shop_id", dtype=String), number_x], shop, tmp_path),
        make_view("b", [Field(name="item_id", dtype=Int64), number_x], number, tmp_path),
        make_view("c", [key, Field(name="x", dtype=UnixTimestamp)], item, tmp_path),
        make_view("d", [key, Field(name="embedding", dtype=Array(Float32))], item, tmp_path),
    ]
    stats, text = (repository.store.get_feature_view(name) for name in (schema.ITEM_STATS, schema.ITEM_TEXT_EMBEDDING))
    repository.store.registry.apply_entity(shop, "shop")
    for view in views:
        repository.store.registry.apply_feature_view(view, "shop")
    expected = {
        "two_entities": ([views[0]], r"view a: expected join keys \[user_id\] or \[item_id\], found \['shop_id'\]"),
        "numbers": ([views[1]], "view b: expected join key item_id of type String, found Int64; cast ids"),
        "times": ([views[2]], "view c: feature x: expected .*, found UnixTimestamp; leave it out"),
        "versions": ([text, views[3]], "found item_text_embedding_v1__embedding and d__embedding; keep one version"),
        "alias": ([stats.with_name("other")], r"view item_stats: .*found an alias; remove with_name"),
    }
    for name, (parts, _) in expected.items():
        repository.store.registry.apply_feature_service(FeatureService(name=name, features=parts), "shop")
    client.refresh()
    for name, (_, message) in expected.items():
        with pytest.raises(ServiceError, match=message):
            client.resolve(name)
    with pytest.raises(ServiceError, match="expected the name of a feature service"):
        client.resolve(repository.store.get_feature_service(PLAIN))


def row(item, row_id, length=DIMENSION):
    return {"item_id": item, "at": hours(0), "embedding": [1.0] * length, "row_id": row_id}


def next_row(user):
    return {"user_id": user, "at": hours(0), "centroid": [1.0] * DIMENSION, "row_id": 5}


def asked():
    return pd.DataFrame(
        {"user_id": ["u"], "item_id": ["i"], "event_timestamp": pd.DatetimeIndex([hours(1)]).as_unit("us")}
    )


def test_parts_of_two_models_are_refused(repository, client):
    repository.write(schema.ITEM_TEXT_EMBEDDING, [row("i", 1)], fingerprint="one")
    assert client.fingerprints(EVERYTHING)[schema.ITEM_TEXT_EMBEDDING] == "one"
    repository.write(schema.ITEM_TEXT_EMBEDDING, [row("j", 2)], part="part-1", fingerprint="two")
    with pytest.raises(FingerprintError, match=r"two models, one \(.*part-0.*\) and two \(.*part-1.*new version"):
        client.training_set(asked(), service=EVERYTHING)
    assert client.fingerprints(PLAIN) == {schema.ITEM_STATS: None, "user_mood": None}
    client.refresh()
    with pytest.raises(FingerprintError):
        client.lookup("u", ["i"], service=EVERYTHING)


def test_vectors_of_two_encoders_are_refused(repository, client):
    repository.write(schema.ITEM_TEXT_EMBEDDING, [row("i", 1)], fingerprint="a", encoder_fingerprint="bert")
    repository.write(schema.USER_NEXT_ITEMS, [next_row("u")], fingerprint="b", encoder_fingerprint="bert")
    fingerprints = client.training_set(asked(), service=EVERYTHING).fingerprints
    assert fingerprints[schema.ITEM_TEXT_EMBEDDING] == "a"
    assert fingerprints[schema.USER_NEXT_ITEMS] == "b"
    repository.write(schema.USER_NEXT_ITEMS, [next_row("u")], fingerprint="b", encoder_fingerprint="roberta")
    with pytest.raises(
        FingerprintError, match="item_text_embedding_v1 come from text encoder bert.*user_next.* roberta"
    ):
        client.training_set(asked(), service=EVERYTHING)


def test_vectors_of_two_sequence_models_are_refused(repository, client):
    repository.write(schema.ITEM_TEXT_EMBEDDING, [row("i", 1)], fingerprint="a", sequence_fingerprint="one")
    repository.write(schema.USER_NEXT_ITEMS, [next_row("u")], fingerprint="b", sequence_fingerprint="two")
    with pytest.raises(FingerprintError, match=r"come from sequence model one, those of user_next.* from two"):
        client.training_set(asked(), service=EVERYTHING)


def test_the_parts_say_how_long_vectors_are(repository, client):
    """A candidate that is the only one read can't hide that its vector is of another model."""
    repository.write(schema.ITEM_TEXT_EMBEDDING, [row("i", 1)])
    batch = client.lookup("u", ["unknown"], service=EVERYTHING)
    assert batch.vector("item_text_embedding_v1__embedding").shape == (1, DIMENSION)
    repository.write_online(schema.ITEM_TEXT_EMBEDDING, [row("long", 2, DIMENSION + 1)])
    with pytest.raises(recsys_llm.errors.StoreError, match="expected a vector of length 4, found one of length 5"):
        client.lookup("u", ["long"], service=EVERYTHING)


def test_without_parts_the_registry_is_read_once_and_lengths_are_learnt(repository, client, monkeypatch):
    repository.write_online(schema.ITEM_TEXT_EMBEDDING, [row("i", 1)])
    client.lookup("u", ["i"], service=EVERYTHING)

    def refuse(*_):
        raise AssertionError("the registry was read again")

    monkeypatch.setattr("recsys_llm.retrieval.client.resolve", refuse)
    batch = client.lookup("u", ["unknown"], service=EVERYTHING)
    assert batch.vector("item_text_embedding_v1__embedding").shape == (1, DIMENSION)
    repository.write(
        schema.USER_TEXT_EMBEDDING, [{"user_id": "u", "at": hours(0), "embedding": [1.0] * 7, "row_id": 1}]
    )
    training = client.training_set(asked(), service=EVERYTHING)
    assert training.vector("user_text_embedding_v1__embedding").shape == (1, 7)


def other_store(repository):
    """Open the repository as another process would."""
    (repository.folder / "feature_store.yaml").write_text(YAML)
    return open_store(repository.folder)


def test_a_service_that_is_newer_than_the_registrys_cache_is_found(repository, client):
    client.resolve(PLAIN)
    stats = repository.store.get_feature_view(schema.ITEM_STATS)
    other_store(repository).apply([FeatureService(name="later", features=[stats])])
    repository.write_online(schema.ITEM_STATS, [{"item_id": "i", "at": hours(0), "n_events": 5}])
    assert client.lookup("u", ["i"], service="later").scalar("item_stats__n_events").tolist() == [5]


def test_a_view_that_was_applied_anew_is_read_as_it_is_now(repository, client):
    repository.write_online(schema.ITEM_STATS, [{"item_id": "i", "at": hours(0), "n_events": 5, "category": "a"}])
    with FeatureClient(repository.folder) as client:
        assert client.lookup("u", ["i"], service=PLAIN).column("item_stats__category").to_pylist() == ["a"]
        view = other_store(repository).get_feature_view(schema.ITEM_STATS)
        key, number = Field(name="item_id", dtype=String), Field(name="n_events", dtype=String)
        changed = FeatureView(
            name=view.name, entities=[repository.store.get_entity("item")], schema=[key, number], source=view.source
        )
        other_store(repository).apply([changed, FeatureService(name=PLAIN, features=[changed])])
        row = {"item_id": ["i"], "n_events": ["many"], "event_timestamp": [hours(1)], "created_timestamp": [hours(1)]}
        other_store(repository).write_to_online_store(schema.ITEM_STATS, pd.DataFrame(row))
        batch = client.lookup("u", iter(["i"]), service=PLAIN)
        assert batch.columns == ("item_stats__n_events",)
        assert batch.column("item_stats__n_events").to_pylist() == ["many"]


def test_a_row_that_is_wrong_costs_one_look_at_the_registry(repository, client):
    repository.write_online(schema.ITEM_TEXT_EMBEDDING, [row("i", 1), row("long", 2, DIMENSION + 1)])
    registry = client.store
    with mock.patch.object(registry, "refresh_registry", wraps=registry.refresh_registry) as refresh:
        for _ in range(3):
            with pytest.raises(LayoutError, match="item_id='long': .*one of length 5 where others have 4"):
                client.lookup("u", ["i", "long"], service=EVERYTHING)
        assert refresh.call_count == 1
        assert client.lookup("u", ["i"], service=EVERYTHING).status(schema.ITEM_TEXT_EMBEDDING) == [Status.PRESENT]
        client.refresh()
        with pytest.raises(LayoutError):
            client.lookup("u", ["i", "long"], service=EVERYTHING)
        assert refresh.call_count == 3
        view = repository.store.get_feature_view(schema.ITEM_TEXT_EMBEDDING)
        repository.store.registry.apply_feature_service(FeatureService(name="texts", features=[view]), "shop")
        for service in ("texts", EVERYTHING, "texts", EVERYTHING):
            with pytest.raises(LayoutError):
                client.lookup("u", ["i", "long"], service=service)
        known = refresh.call_count
        for service in ("texts", EVERYTHING):
            with pytest.raises(LayoutError):
                client.lookup("u", ["i", "long"], service=service)
        assert refresh.call_count == known


def test_training_and_serving_give_the_same_bits(repository):
    """What is read from the parts and what is read online make one and the same pairwise features."""
    rng = np.random.default_rng(0)

    def vector(n):
        return rng.standard_normal(n).astype(np.float32).tolist()

    items = [f"i{n}" for n in range(500)]
    rows = {
        schema.ITEM_TEXT_EMBEDDING: [
            {"item_id": item, "at": hours(0), "embedding": vector(96), "row_id": n} for n, item in enumerate(items)
        ],
        schema.USER_TEXT_EMBEDDING: [{"user_id": "u", "at": hours(0), "embedding": vector(96), "row_id": 1}],
        schema.USER_NEXT_ITEMS: [
            {
                "user_id": "u",
                "at": hours(0),
                "item_ids": items[5:25],
                "log_probs": vector(20),
                "entropy": 1.0,
                "centroid": vector(96),
                "row_id": 1,
            }
        ],
    }
    for view, some in rows.items():
        repository.write(view, some)
        repository.write_online(view, some)
    frame = pd.DataFrame({"item_id": [*items[::-1], *items], "user_id": ["nobody"] * 500 + ["u"] * 500})
    frame["event_timestamp"] = pd.Timestamp(hours(1)).as_unit("us")
    with FeatureClient(store=repository.store, now=lambda: hours(1)) as client:
        training = client.training_set(frame, service=EVERYTHING)
        serving = client.lookup("u", items, service=EVERYTHING)
    assert training.pairwise_names == serving.pairwise_names
    assert not np.isnan(serving.pairwise[:, :4]).any()
    assert training.pairwise[500:].tobytes() == serving.pairwise.tobytes()
    for column in serving.columns:
        one, other = training.take(np.arange(500, 1000)).column(column), serving.column(column)
        if isinstance(one, np.ndarray):
            # Of a view without parts, the length of its vectors is not known.
            assert one.tobytes() == other.tobytes()
        else:
            assert one.to_pylist() == other.to_pylist()
