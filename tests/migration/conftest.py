"""A materialised repository with two versions of its text views; each test starts from the same state of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from recsys_llm import schema
from recsys_llm.commands.migration import migrate
from recsys_llm.commands.migration.declared import read_declared, reads_of
from recsys_llm.commands.migration.migrate import backfill
from recsys_llm.commands.repository import init_repository
from recsys_llm.commands.train import train_sequence_model
from recsys_llm.retrieval import open_store
from recsys_llm.seqgan import SeqGANConfig
from recsys_llm.timestamps import now
from tests.workspace import CHEAP_VIEWS, apply, materialize, own_modules

ITEMS, ITEMS_2 = schema.ITEM_TEXT_EMBEDDING, "item_text_embedding_v2"
USERS, USERS_2 = schema.USER_TEXT_EMBEDDING, "user_text_embedding_v2"
ITEMS_3 = "item_text_embedding_v3"
BRIDGE = f"{ITEMS}_bridge"
PAIRS = {ITEMS: ITEMS_2, USERS: USERS_2}
SWITCHED = ("ranker_v1", "similar_items")

VIEW = """
{name} = FeatureView(
    name="{name}",
    entities=[{entity}],
    ttl=NEVER_EXPIRES,
    schema=[
        Field(name="{entity}_id", dtype=String),
        Field(name=schema.EMBEDDING, dtype=Array(Float32)),{provenance}
        Field(name=schema.ROW_ID, dtype=Int64),
    ],
    source=parts("{name}"),
    tags=schema.producer_tag(schema.TEXT_EMBEDDING, source="{source}", model="{model}"),
)
"""

PROVENANCE = """
        Field(name=schema.PROVENANCE, dtype=String),"""

SERVICES = """
similar_items = FeatureService(
    name="similar_items",
    features=schema.current_views(
        [item_text_embedding[["embedding"]]], among=vars(feature_views), beside=__file__
    ),
)

# A trial of the new version, which names it itself.
trial = FeatureService(
    name="trial",
    features=schema.current_views([feature_views.item_text_embedding_v2], among=vars(feature_views), beside=__file__),
)
"""


def declare(repository: Path, *views: tuple[str, str, str]) -> None:
    """Add views of (name, source, model) to feature_views.py."""
    file = repository / "feature_views.py"
    added = ""
    for name, source, model in views:
        entity, provenance = ("item", "") if source == "items" else ("user", PROVENANCE)
        added += VIEW.format(name=name, source=source, model=model, entity=entity, provenance=provenance)
    head = "" if "import parts" in file.read_text() else "\nfrom data_sources import parts\n"
    file.write_text(file.read_text() + head + added)


@pytest.fixture(scope="session")
def end_of_first_half(simulated_data: Path) -> datetime:
    """A time in the middle of the events."""
    times = pq.read_table(simulated_data / "interactions.parquet").column(schema.EVENT_TIMESTAMP).to_pandas()
    return times.sort_values().iloc[len(times) // 2].to_pydatetime()


@pytest.fixture(scope="session")
def snapshot(
    tmp_path_factory: pytest.TempPathFactory,
    simulated_data: Path,
    make_model: Callable[..., Path],
    end_of_first_half: datetime,
) -> Path:
    """The repository with its first versions materialised, and the second ones declared."""
    target = init_repository(tmp_path_factory.mktemp("migration") / "feature_repo", data=simulated_data)
    file = target / "recsys_llm.yaml"
    settings = yaml.safe_load(file.read_text())
    encoder = {"max_tokens": 64, "template": "{title}. {text}"}
    settings["text_encoders"] = {
        "minilm_v1": {"model": str(make_model("bert")), **encoder},
        "minilm_v2": {"model": str(make_model("bert", seed=1)), **encoder},
    }
    settings["sequence_models"]["seqgan_v1"]["item_vectors"] = None
    file.write_text(yaml.safe_dump(settings, sort_keys=False) + "chunk_rows: 16\n")
    # Redis keys end with the project: tests of other folders share the server.
    store = target / "feature_store.yaml"
    store.write_text(store.read_text().replace("project: recsys", "project: migration"))
    declare(
        target, (ITEMS_2, "items", "minilm_v2"), (USERS_2, "interactions", "minilm_v2"), (ITEMS_3, "items", "minilm_v1")
    )
    services = target / "feature_services.py"
    services.write_text(services.read_text() + SERVICES)
    apply(target)
    quick = SeqGANConfig(mle_epochs=1, adversarial_epochs=0, embedding_dim=8, hidden_dim=8)
    train_sequence_model(target, "seqgan_v1", until=end_of_first_half, settings=quick)
    materialize(target, *CHEAP_VIEWS, ITEMS, USERS, schema.USER_NEXT_ITEMS, schema.ITEM_NEXT_VECTORS, end=now())
    return Path(shutil.copytree(target, target.with_name("snapshot")))


@pytest.fixture(scope="session")
def backfilled_snapshot(snapshot: Path) -> Path:
    """The repository with both versions materialised."""
    target = restore(snapshot)
    backfill(target, PAIRS)
    return Path(shutil.copytree(target, target.with_name("backfilled")))


@pytest.fixture
def repository(snapshot: Path) -> Path:
    """The repository at the path that its registry knows, with the first versions."""
    return restore(snapshot)


@pytest.fixture
def backfilled(backfilled_snapshot: Path) -> Path:
    """The repository at the path that its registry knows, with both versions."""
    return restore(backfilled_snapshot)


def restore(snapshot: Path) -> Path:
    target = snapshot.with_name("feature_repo")
    shutil.rmtree(target)
    return Path(shutil.copytree(snapshot, target))


@pytest.fixture(autouse=True)
def declared_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the Python files in this process: the real one takes seconds, and test_migration.py compares the two."""

    def read(repository: Path, versions: dict[str, str]) -> object:
        with own_modules(repository), monkeypatch.context() as patched:
            patched.setattr(schema, "read_versions", schema.read_versions)  # put back what it changes
            return read_declared(repository.resolve(), versions)

    monkeypatch.setattr(migrate, "declared_services", read)


def state(repository: Path, config_file: str | None = None) -> dict[str, object]:
    """What every service reads, in the registry."""
    store = open_store(repository, config_file=config_file)
    return {service.name: reads_of(service) for service in store.list_feature_services()}


def follow_versions(repository: Path, pairs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the Python files declare what the registry holds, with ``pairs`` followed: no process is asked."""
    services = open_store(repository).list_feature_services()
    declared = {
        service.name: [
            (view if service.name == "trial" else pairs.get(view, view), features)
            for view, features in reads_of(service)
        ]
        for service in services
    }
    monkeypatch.setattr(migrate, "declared_services", lambda *_: declared)
