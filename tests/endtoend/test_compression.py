"""From an encoder to a smaller one in the store: measure, choose, follow the printed snippet, materialise, look up."""

from __future__ import annotations

import json
import re
import shutil
from io import StringIO

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console
from typer.testing import CliRunner

from recsys_llm import FeatureClient, schema
from recsys_llm.cli import app
from recsys_llm.commands import text_compression
from recsys_llm.commands.migration.migrate import backfill
from recsys_llm.commands.repository import init_repository
from recsys_llm.commands.text_compression import compress_encoder
from recsys_llm.commands.text_compression_report import compression_report, show_compression, snippet
from recsys_llm.config import load_config
from recsys_llm.errors import CheckpointError, ConfigError, DataError, FingerprintError, LeakageError
from recsys_llm.producers import load_encoder
from recsys_llm.producers.vectors import item_vectors
from recsys_llm.retrieval import open_store
from recsys_llm.storage import VectorStorage
from recsys_llm.text.compression import FULL
from recsys_llm.text.manifest import EncoderManifest
from recsys_llm.text.transform import VectorTransform
from recsys_llm.timestamps import as_utc, now
from tests.retrieval.feast_repository import examples
from tests.workspace import apply, materialize

ITEMS, USERS = schema.ITEM_TEXT_EMBEDDING, schema.USER_TEXT_EMBEDDING
ITEMS_2, USERS_2 = "item_text_embedding_v2", "user_text_embedding_v2"
CHOICE = "pca64_int8"
SERVICE = f"""
from feature_views import {ITEMS_2}, {USERS_2}

small = FeatureService(name="small", features=[{ITEMS_2}, {USERS_2}])
"""


@pytest.fixture(scope="module")
def repository(tmp_path_factory, simulated_data, make_model):
    """Applied, the item view materialised, with an encoder of 96 dimensions."""
    target = init_repository(tmp_path_factory.mktemp("compression") / "feature_repo", data=simulated_data)
    file = target / "recsys_llm.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["text_encoders"]["minilm_v1"] |= {"model": str(make_model("bert", hidden_size=96)), "max_tokens": 64}
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    apply(target)
    materialize(target, ITEMS, end=now())
    return target


@pytest.fixture(scope="module")
def until(simulated_data):
    times = pq.read_table(simulated_data / "interactions.parquet").column(schema.EVENT_TIMESTAMP).to_pandas()
    return times.sort_values().iloc[len(times) // 2].to_pydatetime()


@pytest.fixture(scope="module")
def compressed(repository, until):
    out = repository / "data" / "models" / "small"
    return compress_encoder(repository, "minilm_v1", until=until, out=out, choose=CHOICE, runs=3)


@pytest.fixture(scope="module")
def followed(repository, compressed):
    """The repository after its owner has done what the snippet says, up to `feast materialize`."""
    text = snippet(compressed, repository)
    encoder = text[: text.index("# feature_views.py")]
    views = re.findall(r"^\w+ = FeatureView\(.*?^\)$", text, re.DOTALL | re.MULTILINE)
    assert len(views) == 2
    file = repository / "recsys_llm.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["text_encoders"] |= yaml.safe_load(encoder)["text_encoders"]
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    declared = repository / "feature_views.py"
    head = "\nfrom data_sources import parts\nfrom feast.types import Bytes\n\n"
    declared.write_text(declared.read_text() + head + "\n\n".join(views) + "\n")
    services = repository / "feature_services.py"
    services.write_text(services.read_text() + SERVICE)
    apply(repository)
    return repository


@pytest.fixture
def no_lookups(monkeypatch):
    """Take stored bytes alone for the cost of a lookup."""
    monkeypatch.setattr(
        text_compression,
        "lookup_costs",
        lambda storages, **_: {stored: text_compression.LookupCost(stored.width, [1.0]) for stored in storages},
    )


def test_candidates_are_measured_and_the_choice_is_saved(repository, compressed, until):
    by_name = {each.name: each for each in compressed.candidates}
    lengths = {"full": 96, "pca96": 96, "truncate64": 64, "pca64": 64}
    assert set(by_name) == {f"{name}_{storage}" for name in lengths for storage in ("float32", "int8", "binary")}
    assert compressed.sources["vectors"] == ITEMS
    assert compressed.chosen is by_name[CHOICE]
    full, binary = by_name[FULL], by_name["pca64_binary"]
    assert 0 < full.quality.recall <= 1
    # Feast's own bytes around the codes: field, length.
    assert (full.cost.bytes_per_item, binary.cost.bytes_per_item) == (4 * 96 + 7, 10)
    assert all(each.lookup_ms > 0 for each in compressed.candidates)
    assert any(each.on_front for each in compressed.candidates)
    saved = VectorTransform.load(compressed.directory)
    assert saved.fingerprint == compressed.chosen.transform.fingerprint
    assert saved.trained_until == until
    assert saved.notes["candidate"] == CHOICE
    assert saved.notes["measured"]["recall_kept"] == compressed.chosen.quality.recall_kept
    assert set(saved.notes["calibration"]) == {"quantile", "mean_squared_error", "share_cut"}


def test_the_report_has_a_line_for_each_candidate(repository, compressed):
    content = json.loads(json.dumps(compression_report(compressed), allow_nan=False))
    assert (content["command"], content["chosen"], len(content["results"])) == ("text compress", CHOICE, 12)
    full = next(result for result in content["results"] if result["name"] == FULL)
    assert (full["recall_kept"], full["recall_difference_ci95"], full["dim"]) == (1.0, [0.0, 0.0], 96)
    assert [target["name"] for target in content["targets"]] == ["recall_kept", "ndcg_kept"]
    console = Console(record=True, width=80, file=StringIO())
    show_compression(compressed, repository, console)
    shown = console.export_text()
    assert all(each.name in shown for each in compressed.candidates)
    assert f"migrate cutover {ITEMS} {ITEMS_2} --with {USERS}={USERS_2}" in shown
    assert "…" not in shown


def test_the_new_view_serves_what_the_encoder_makes(followed, until, simulated_data):
    materialize(followed, USERS, end=now())
    backfill(followed, {ITEMS: ITEMS_2, USERS: USERS_2})
    end = now()
    config = load_config(followed)
    encoder = load_encoder(config.text_encoders[f"minilm_v1_{CHOICE}"], config, device="cpu")
    stored = VectorStorage.of(ITEMS_2, open_store(followed).get_feature_view(ITEMS_2).tags)
    assert (stored.storage, stored.dim) == ("int8", 64)
    items = pq.read_table(simulated_data / "items.parquet").to_pandas().sort_values("event_timestamp")
    items = items.drop_duplicates("item_id", keep="last").head(20)
    vectors = encoder.encode([f"{row.title}. {row.text}" for row in items.itertuples()])
    expected = stored.encode(vectors).astype(np.int64)
    with FeatureClient(followed) as client:
        column = schema.feature_column(ITEMS_2, schema.EMBEDDING)
        users = pq.read_table(simulated_data / "interactions.parquet").column("user_id").to_pylist()
        batch = client.lookup(users[0], items["item_id"].tolist(), service="small")
        found = batch.vector(column)
        train = client.training_set(examples(*((users[0], item, end) for item in items["item_id"])), service="small")
        early = client.training_set(examples((users[0], items["item_id"].iloc[0], until)), service="small")
        before = client.training_set(
            examples((users[0], items["item_id"].iloc[0], until.replace(year=until.year - 1))), service="small"
        )
    assert np.abs(stored.encode(found).astype(np.int64) - expected).max() <= 1
    assert train.vector(column).tobytes() == found.tobytes()
    assert train.pairwise.tobytes() == batch.pairwise.tobytes()
    assert not np.isnan(batch.pairwise[:, 0]).any()
    # The map was fitted until then, so no vector is older.
    assert not np.isnan(early.vector(column)).any() and np.isnan(before.vector(column)).all()
    answer = open_store(followed).get_online_features(
        [f"{ITEMS_2}:embedding"], [{"item_id": item} for item in items["item_id"]]
    )
    assert b"".join(answer.to_dict()["embedding"]) == stored.encode(found).tobytes()
    read = item_vectors(followed / "data" / "features" / ITEMS_2, ITEMS_2, before=end)
    assert read.vectors[[read.item_ids.index(item) for item in items["item_id"]]].tobytes() == found.tobytes()


def test_a_tag_that_is_not_the_transforms_is_refused(followed, no_lookups, until, tmp_path):
    other = compress_encoder(followed, "minilm_v1", until=until, out=tmp_path / "other", choose="pca64_binary")
    file = followed / "recsys_llm.yaml"
    before = file.read_text()
    settings = yaml.safe_load(before)
    settings["text_encoders"][f"minilm_v1_{CHOICE}"]["transform"] = str(other.directory)
    try:
        file.write_text(yaml.safe_dump(settings, sort_keys=False))
        with pytest.raises(ConfigError, match=r"makes binary of length 64, .* found a tag for int8 of length 64"):
            materialize(followed, ITEMS_2, end=now())
    finally:
        file.write_text(before)


def test_without_a_view_texts_are_encoded_and_give_the_same(
    no_lookups, repository, compressed, until, simulated_data, tmp_path
):
    fresh = tmp_path / "feature_repo"
    init_repository(fresh, data=simulated_data)
    settings = yaml.safe_load((repository / "recsys_llm.yaml").read_text())
    settings["text_encoders"] = {"minilm_v1": settings["text_encoders"]["minilm_v1"]}
    (fresh / "recsys_llm.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    steps = []
    found = compress_encoder(
        fresh,
        "minilm_v1",
        until=until,
        out=tmp_path / "out",
        end=compressed.end,
        keep=0.9,
        progress=lambda what, done, total: steps.append((what, done <= total)),
    )
    assert found.sources == compressed.sources | {"vectors": "encoded"}
    assert set(steps) == {("encoding", True), ("measuring", True)}
    for one, other in zip(found.candidates, compressed.candidates, strict=True):
        assert one.quality.recall == pytest.approx(other.quality.recall, abs=0.02)
    assert min(found.chosen.choosing.recall_kept, found.chosen.choosing.ndcg_kept) >= 0.9
    assert "no view names minilm_v1 yet" in snippet(found, fresh)


def test_a_view_that_lacks_items_is_not_measured_on(no_lookups, repository, compressed, until, tmp_path, caplog):
    partial = tmp_path / "feature_repo"
    shutil.copytree(repository, partial, ignore=shutil.ignore_patterns("features"))
    settings = yaml.safe_load((partial / "feature_store.yaml").read_text())
    settings["registry"]["path"] = f"sqlite:///{partial / 'data/registry.db'}"
    (partial / "feature_store.yaml").write_text(yaml.safe_dump(settings))
    apply(partial)
    part = next((repository / "data" / "features" / ITEMS).glob("*.parquet"))
    target = partial / "data" / "features" / ITEMS
    target.mkdir(parents=True)
    pq.write_table(pq.read_table(part).slice(3), target / "part-some.parquet")
    found = compress_encoder(partial, "minilm_v1", until=until, out=tmp_path / "out", end=compressed.end, choose=FULL)
    assert found.sources == compressed.sources | {"vectors": "encoded"}
    assert f"view {ITEMS} holds 117 of 120 items; all are encoded instead" in caplog.text


def test_the_full_vectors_need_no_transform(no_lookups, repository, until, tmp_path):
    found = compress_encoder(repository, "minilm_v1", until=until, out=tmp_path / "out", choose=FULL)
    assert found.directory is None
    assert not (tmp_path / "out").exists()


def test_mistakes_are_named(no_lookups, repository, compressed, until, tmp_path):
    def run(name="minilm_v1", **settings):
        return compress_encoder(repository, name, **({"until": until, "out": tmp_path / "out"} | settings))

    with pytest.raises(ConfigError, match="--choose: unknown candidate 'pca64_int4'; did you mean 'pca64_int8'"):
        run(choose="pca64_int4")
    with pytest.raises(ConfigError, match="unknown text encoder 'minilm'; did you mean 'minilm_v1'"):
        run("minilm")
    with pytest.raises(ConfigError, match="until: expected a time before"):
        run(until=now(), end=until)
    with pytest.raises(DataError, match="no user liked two items"):
        run(until=now().replace(microsecond=0), end=now())
    (tmp_path / "mine").mkdir()
    with pytest.raises(CheckpointError, match="holds no transform.json"):
        run(out=tmp_path / "mine")
    file = repository / "recsys_llm.yaml"
    before = file.read_text()
    try:
        file.write_text(before.replace("'{title}. {text}'", "'{title}'"))
        with pytest.raises(FingerprintError, match=f"view {ITEMS} holds vectors of fingerprint"):
            run()
        settings = yaml.safe_load(before)
        settings["text_encoders"]["minilm_v1"]["transform"] = "data/models/small"
        file.write_text(yaml.safe_dump(settings, sort_keys=False))
        with pytest.raises(ConfigError, match="has the transform data/models/small already"):
            run()
    finally:
        file.write_text(before)
    assert not (tmp_path / "out").exists()


def test_an_encoder_that_has_seen_the_events_is_refused(no_lookups, repository, until, tmp_path, make_model):
    model = make_model("bert")
    EncoderManifest("finetuned", "bert", as_utc(now()), {}, {}).write(model)
    file = repository / "recsys_llm.yaml"
    before = file.read_text()
    settings = yaml.safe_load(before)
    settings["text_encoders"]["seen"] = {"model": str(model), "max_tokens": 64}
    try:
        file.write_text(yaml.safe_dump(settings, sort_keys=False))
        with pytest.raises(LeakageError, match="'seen' was trained on data up to"):
            compress_encoder(repository, "seen", until=until, out=tmp_path / "out")
    finally:
        file.write_text(before)


def test_the_command(no_lookups, repository, until, tmp_path):
    arguments = ["text", "compress", "minilm_v1", "--until", until.isoformat(), "--out", str(tmp_path / "out")]
    arguments += ["-C", str(repository), "--choose", "truncate64_binary", "--json", str(tmp_path / "out.json")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "chosen: truncate64_binary" in done.stdout
    assert 'schema.vector_tag("binary", dim=64)' in done.stdout
    assert json.loads((tmp_path / "out.json").read_text())["chosen"] == "truncate64_binary"
    assert VectorTransform.load(tmp_path / "out").trained_until is None
