"""An old ranker on a new encoder: refused on its vectors, accepted on the bridge, and on nothing else."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from recsys_llm import FeatureClient, schema
from recsys_llm.commands.migration.migrate import backfill, cutover, plan_migration
from recsys_llm.config import load_config
from recsys_llm.errors import ConfigError, FingerprintError, MigrationError
from recsys_llm.producers.parts import part_files, read_manifest
from recsys_llm.ranking.cooccurrence import CooccurrenceModel
from recsys_llm.ranking.examples import sample_examples
from recsys_llm.ranking.model import DCNConfig
from recsys_llm.ranking.ranker import Ranker
from recsys_llm.ranking.training import RankerConfig
from recsys_llm.text.transform import VectorTransform
from recsys_llm.timestamps import now
from tests.migration.conftest import BRIDGE, ITEMS, ITEMS_2, PAIRS, USERS, USERS_2, follow_versions, restore
from tests.workspace import apply, offline

CANDIDATES = [f"i{number:05d}" for number in range(1, 41)]


@pytest.fixture(scope="module")
def bridged_snapshot(backfilled_snapshot):
    """A repository with a bridge from the second version to the first, materialised."""
    target = restore(backfilled_snapshot)
    _, built = backfill(target, {ITEMS: ITEMS_2}, bridge=True)
    assert (built.view, built.encoder) == (BRIDGE, "minilm_v1_bridge")
    assert f'model="{built.encoder}"' in built.todo and "recsys_llm.yaml" not in built.todo
    file = target / "feature_views.py"
    file.write_text(f"{file.read_text()}\n{built.todo}")
    apply(target)
    backfill(target, {ITEMS: BRIDGE})
    return shutil.copytree(target, target.with_name("bridged"))


@pytest.fixture
def bridged(bridged_snapshot):
    return restore(bridged_snapshot)


@pytest.fixture(scope="module")
def ranker(backfilled_snapshot, simulated_data, end_of_first_half):
    """A ranker trained on the first version."""
    target = restore(backfilled_snapshot)
    events, items = (pq.read_table(simulated_data / f"{name}.parquet") for name in ("interactions", "items"))
    examples = sample_examples(events, items, start=end_of_first_half, end=now(), negatives=4, max_positives=200)
    training = FeatureClient(target).training_set(examples, service="ranker_v1")
    frame = events.to_pandas()
    counts = CooccurrenceModel.fit(frame[frame[schema.EVENT_TIMESTAMP] < end_of_first_half], end_of_first_half)
    return Ranker.fit(training, counts, RankerConfig(epochs=1, network=DCNConfig(deep=(8,))))


def lookup(repository):
    return FeatureClient(repository).lookup("u00001", CANDIDATES, service="ranker_v1")


def test_an_old_ranker_is_refused_on_the_new_version_and_accepted_on_the_bridge(
    bridged, bridged_snapshot, ranker, monkeypatch
):
    before = lookup(bridged)
    old_scores = ranker.score(before)
    assert not before.bridges
    with monkeypatch.context() as patched:
        follow_versions(bridged, PAIRS, patched)
        cutover(bridged, PAIRS)
    with pytest.raises(FingerprintError, match=f"{ITEMS} of fingerprint .* holds {ITEMS_2} of") as refused:
        ranker.score(lookup(bridged))
    made = {view: read_manifest(part_files(bridged / "data/features" / view)[0]) for view in (ITEMS, ITEMS_2)}
    old, new = (made[view]["fingerprint"] for view in (ITEMS, ITEMS_2))
    assert all(text in str(refused.value) for text in (old, new, "--bridge", "rollback"))
    restore(bridged_snapshot)

    # The item view alone: the bridge lives beside the old users' vectors.
    assert cutover(bridged, {ITEMS: BRIDGE}).services == ("ranker_v1", "similar_items")
    batch = lookup(bridged)
    assert batch.bridges == {BRIDGE: old}
    assert batch.fingerprints[BRIDGE] not in (old, new)
    scores = ranker.score(batch)
    assert scores.shape == old_scores.shape and np.isfinite(scores).all()
    # A ranker that is trained now says what it was trained on, and is no ranker of the old version.
    examples = before.to_pandas()[[schema.USER_ID, schema.ITEM_ID]].assign(event_timestamp=now())
    examples[schema.EVENT_TIMESTAMP] = examples[schema.EVENT_TIMESTAMP].dt.as_unit("us")
    manifest = FeatureClient(bridged).training_set(examples, service="ranker_v1").manifest
    assert manifest["bridges"] == {BRIDGE: old} and BRIDGE in manifest["fingerprints"]


def test_readers_without_parts_know_a_bridge_by_its_tag(bridged, ranker):
    cutover(bridged, {ITEMS: BRIDGE})
    with_parts = lookup(bridged)
    expected = ranker.score(with_parts)
    shutil.rmtree(bridged / "data" / "features")
    batch = lookup(bridged)
    assert batch.bridges == with_parts.bridges
    np.testing.assert_array_equal(ranker.score(batch), expected)


def test_a_bridge_stands_in_for_one_fingerprint_only(bridged, ranker):
    cutover(bridged, {ITEMS: BRIDGE})
    batch = lookup(bridged)
    for bridges in ({}, {BRIDGE: "another"}, {schema.ITEM_STATS: "another"}):
        with pytest.raises(FingerprintError, match=f"holds {BRIDGE}"):
            ranker.score(replace(batch, bridges=bridges))
    other = replace(ranker, fingerprints={**ranker.fingerprints, ITEMS: "of another template"})
    with pytest.raises(FingerprintError, match="of another template"):
        other.score(batch)
    unknown = replace(ranker, fingerprints={**ranker.fingerprints, ITEMS: None})
    with pytest.raises(FingerprintError, match="fingerprint None"):
        unknown.score(batch)


def test_a_bridge_does_not_mix_with_the_new_encoder(bridged, monkeypatch):
    pairs = {ITEMS: BRIDGE, USERS: USERS_2}
    follow_versions(bridged, pairs, monkeypatch)
    with pytest.raises(MigrationError, match="could not be read"):
        cutover(bridged, pairs)


def test_the_map_and_its_rows_say_where_they_come_from(bridged):
    config = load_config(bridged)
    entry = config.text_encoders["minilm_v1_bridge"]
    old, new = (config.text_encoders[name] for name in ("minilm_v1", "minilm_v2"))
    assert (entry.model, entry.template, entry.transform) == (new.model, new.template, "data/models/minilm_v1_bridge")
    assert list(config.text_encoders) == ["minilm_v1_bridge", "minilm_v1", "minilm_v2"]
    made = {view: read_manifest(part_files(bridged / "data/features" / view)[0]) for view in (ITEMS, ITEMS_2, BRIDGE)}
    assert made[BRIDGE]["bridges"] == made[ITEMS]["fingerprint"]
    assert made[BRIDGE]["bridged_encoder"] == made[ITEMS]["encoder_fingerprint"]
    assert "bridges" not in made[ITEMS_2]
    transform = VectorTransform.load(bridged / entry.transform)
    assert transform.input_fingerprint == made[ITEMS_2]["encoder_fingerprint"]
    assert transform.notes["templates"]["items"] == old.template
    rows = {view: offline(bridged, view) for view in (ITEMS, ITEMS_2, BRIDGE)}
    # The map knows all texts up to the newest, so no example from before may see a row of it.
    assert transform.trained_until == rows[ITEMS][schema.EVENT_TIMESTAMP].max()
    assert set(rows[BRIDGE][schema.EVENT_TIMESTAMP]) == {transform.trained_until}
    vectors = {view: np.stack(frame[schema.EMBEDDING]) for view, frame in rows.items()}
    np.testing.assert_allclose(transform.apply(vectors[ITEMS_2]), vectors[BRIDGE], atol=1e-5)
    # Two random models share nothing but the texts: a map brings them nearer than they were.
    nearness = {view: float((vectors[view] * vectors[ITEMS]).sum(axis=1).mean()) for view in (ITEMS_2, BRIDGE)}
    assert nearness[BRIDGE] > nearness[ITEMS_2] + 0.1


def test_plan_of_a_bridge_says_that_rankers_go_on(bridged):
    (plan,) = plan_migration(bridged, {ITEMS: BRIDGE})
    assert plan.rows_to_compute == 0
    assert any("rankers that were trained on it go on" in sentence for sentence in plan.consequences)
    assert not any("--with" in sentence for sentence in plan.consequences)


def test_bridges_that_are_refused(bridged):
    with pytest.raises(MigrationError, match="exists; rows that were mapped with it"):
        backfill(bridged, {ITEMS: ITEMS_2}, bridge=True)
    with pytest.raises(ConfigError, match="has a transform already"):
        backfill(bridged, {ITEMS_2: BRIDGE}, bridge=True)
    with pytest.raises(ConfigError, match="expected views of item texts"):
        backfill(bridged, {USERS: USERS_2}, bridge=True)


def test_a_configuration_that_cannot_be_added_to_is_left_alone(backfilled):
    file = backfilled / "recsys_llm.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()), default_flow_style=True, width=10**6))
    text = file.read_text()
    _, built = backfill(backfilled, {ITEMS: ITEMS_2}, bridge=True)
    assert file.read_text() == text
    added = yaml.safe_load(built.todo[: built.todo.index("# feature_views.py")])["text_encoders"]["minilm_v1_bridge"]
    assert added == {**yaml.safe_load(text)["text_encoders"]["minilm_v2"], "transform": "data/models/minilm_v1_bridge"}


def test_an_old_view_of_another_template_is_not_bridged(backfilled):
    file = backfilled / "recsys_llm.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["text_encoders"]["minilm_v1"]["template"] = "{title}"
    file.write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match="is not the one that item_text_embedding_v1 was computed with"):
        backfill(backfilled, {ITEMS: ITEMS_2}, bridge=True)
    assert not (backfilled / "data/models/minilm_v1_bridge").exists()
