"""From one version of a view to the next: nothing is switched by half, and versions never mix."""

from __future__ import annotations

import json
import secrets
import sqlite3
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import sqlalchemy as sa
import yaml
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.registry import sql as feast_sql_registry
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value as ValueProto
from feast.types import Bytes, Float32

from recsys_llm import FeatureClient, cli, schema
from recsys_llm.commands.migration import journal, migrate
from recsys_llm.commands.migration.journal import history, read_versions
from recsys_llm.commands.migration.migrate import cutover, plan_migration, rollback
from recsys_llm.commands.migration.moves import open_moves, view_snippet
from recsys_llm.commands.migration.services import Changes, apply_changes, find_changes
from recsys_llm.errors import ConfigError, MigrationError
from recsys_llm.producers.parts import part_files
from recsys_llm.retrieval import open_store
from tests.migration.conftest import ITEMS, ITEMS_2, ITEMS_3, PAIRS, SWITCHED, USERS, USERS_2, follow_versions, state
from tests.workspace import apply, offline


def new_database(url: str) -> str:
    """Create a database on a server that tests share, and return its name."""
    name = f"migration_{secrets.token_hex(4)}"
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    engine.dispose()
    return name


def views_of(services):
    return {service: [view for view, _ in reads] for service, reads in services.items()}


def drop_rows(part: Path, count: int) -> list[str]:
    """Take rows out of a part, and return their keys."""
    table = pq.read_table(part)
    pq.write_table(table.slice(count), part)
    return table.column(schema.ITEM_ID).to_pylist()[:count]


def forget_online(repository: Path, view: str, count: int) -> set[str]:
    """Delete rows of a view from the online store, and return their keys."""
    keys = offline(repository, view)[schema.ITEM_ID].tolist()[:count]
    store = open_store(repository)
    key = [serialize_entity_key(entity_key(item), entity_key_serialization_version=3) for item in keys]
    table = f"{store.project}_{view}"
    with sqlite3.connect(repository / "data" / "online.db") as connection:
        deleted = connection.executemany(f"DELETE FROM {table} WHERE entity_key = ?", [(each,) for each in key])
        assert deleted.rowcount > 0
    return set(keys)


def entity_key(item: str) -> EntityKey:
    return EntityKey(join_keys=[schema.ITEM_ID], entity_values=[ValueProto(string_val=item)])


def test_plan_counts_and_warns_and_changes_nothing(repository):
    before = state(repository)
    (plan,) = plan_migration(repository, {ITEMS: ITEMS_2})
    assert (plan.rows_due, plan.rows_to_compute, plan.unit) == (120, 120, "tokens")
    assert plan.cost > 120
    assert plan.services == SWITCHED
    assert plan.old_fingerprint != plan.new_fingerprint
    text = str(plan)
    assert f"--with {USERS}=NEW_VERSION" in text and "--bridge" in text and plan.old_fingerprint in text
    both = plan_migration(repository, PAIRS)
    assert not any("--with" in sentence for each in both for sentence in each.consequences)
    assert state(repository) == before
    assert not (repository / schema.VERSIONS_FILE).exists()


def test_a_view_that_is_not_declared_comes_with_what_to_add(repository):
    name = "item_text_embedding_v4"
    with pytest.raises(ConfigError, match="is not in the registry") as missing:
        plan_migration(repository, {ITEMS: name})
    message = str(missing.value)
    assert 'minilm_v4: {model: DIRECTORY_OR_ID, template: "{title}. {text}"}' in message
    code = message[message.index("# feature_views.py") : message.index("then run `feast apply`")]
    namespace = {"item": Entity(name=schema.ITEM, join_keys=[schema.ITEM_ID], value_type=ValueType.STRING)}
    namespace["parts"] = lambda view: FileSource(path=f"/{view}", timestamp_field=schema.EVENT_TIMESTAMP)
    exec("from datetime import timedelta\nfrom feast import FeatureView, Field\nfrom feast.types import *\n", namespace)
    exec(f"from recsys_llm import schema\n{code}", namespace)
    old, new = open_store(repository).get_feature_view(ITEMS), namespace[name]
    assert [(field.name, field.dtype) for field in new.features] == [(each.name, each.dtype) for each in old.features]
    assert (new.name, new.ttl, new.entities) == (name, old.ttl, old.entities)
    assert json.loads(new.tags[schema.TAG]) == {**json.loads(old.tags[schema.TAG]), "model": "minilm_v4"}


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (ITEMS, ITEMS, "found .* twice"),
        ("item_text_embeding_v1", ITEMS_2, "did you mean 'item_text_embedding_v1'"),
        (ITEMS, USERS, "expected the entity of"),
        (schema.ITEM_STATS, ITEMS_2, "expected the producer of"),
    ],
)
def test_views_that_cannot_take_each_others_place_are_refused(repository, old, new, message):
    with pytest.raises(ConfigError, match=message):
        plan_migration(repository, {old: new})


def test_a_version_may_store_its_vectors_in_another_form(repository):
    store = open_store(repository)
    views = {view.name: view for view in store.list_feature_views()}
    compressed = store.get_feature_view(ITEMS_2)
    (vector,) = [field for field in compressed.features if field.name == schema.EMBEDDING]
    vector.dtype = Bytes
    views[ITEMS_2] = compressed
    registry = SimpleNamespace(list_feature_views=lambda: list(views.values()))
    with pytest.raises(ConfigError, match=r"expected the feature embedding of type Array\(Float32\).* found Bytes"):
        open_moves(registry, {ITEMS: ITEMS_2})
    compressed.tags |= schema.vector_tag("int8", dim=32, scale=0.5)
    (move,) = open_moves(registry, {ITEMS: ITEMS_2})
    assert move.new is compressed
    assert 'Field(name="embedding", dtype=Array(Float32))' in view_snippet(compressed, "next", "model")


def test_cutover_switches_all_services_feast_apply_keeps_it_and_rollback_restores(backfilled):
    before = state(backfilled)
    client = FeatureClient(backfilled)
    users, items = ["u00001"], ["i00001", "i00002"]
    first = client.lookup(users[0], items, service="ranker_v1")
    done = cutover(backfilled, PAIRS)
    assert done.services == SWITCHED
    assert {view: found.share for view, found in done.coverage.items()} == {ITEMS_2: 1.0, USERS_2: 1.0}
    after = state(backfilled)
    expected = {
        name: [(PAIRS.get(view, view) if name != "trial" else view, features) for view, features in reads]
        for name, reads in before.items()
    }
    assert after == expected
    assert after["similar_items"] == [(ITEMS_2, ["embedding"])]
    assert read_versions(backfilled) == PAIRS
    apply(backfilled)
    assert state(backfilled) == after
    # A client goes on with what it resolved, until it is refreshed.
    same = client.lookup(users[0], items, service="ranker_v1")
    assert (same.fingerprints, same.columns) == (first.fingerprints, first.columns)
    client.refresh()
    second = client.lookup(users[0], items, service="ranker_v1")
    assert second.fingerprints[ITEMS_2] not in first.fingerprints.values()
    assert cutover(backfilled, PAIRS).services == ()

    # One pair names them all.
    back = rollback(backfilled, {ITEMS: ITEMS_2})
    assert back.services == SWITCHED and back.views == {new: old for old, new in PAIRS.items()}
    assert state(backfilled) == before
    # What the next `feast apply` writes.
    assert read_versions(backfilled) == {}
    declared = migrate.declared_services(backfilled, {})
    assert {service: [view for view, _ in reads] for service, reads in declared.items()} == views_of(before)
    client.refresh()
    third = client.lookup(users[0], items, service="ranker_v1")
    assert third.fingerprints == first.fingerprints
    assert (third.vector(f"{ITEMS}__embedding") == first.vector(f"{ITEMS}__embedding")).all()
    with pytest.raises(MigrationError, match="nothing to roll back"):
        rollback(backfilled, {ITEMS: ITEMS_2})
    records = [(record["action"], record["state"]) for record in history(backfilled)]
    assert records == [(action, step) for action in ("cutover", "rollback") for step in ("begun", "done")]


def test_the_gate_refuses_and_nothing_changes(backfilled):
    # 2 of 120 keys, offline and online.
    lost = part_files(backfilled / "data" / "features" / ITEMS_2)[0]
    keys = drop_rows(lost, 2)
    before = state(backfilled)
    with pytest.raises(MigrationError, match=r"98\.333% of 120 live keys; missing in the parts 2,") as refused:
        cutover(backfilled, PAIRS)
    assert all(key in str(refused.value) for key in keys) and "Nothing was switched" in str(refused.value)
    assert state(backfilled) == before
    assert not (backfilled / schema.VERSIONS_FILE).exists() and not history(backfilled)
    assert cutover(backfilled, PAIRS, min_coverage=0.98).services == SWITCHED


def test_the_gate_sees_what_the_online_store_lacks(backfilled):
    keys = forget_online(backfilled, ITEMS_2, 3)
    with pytest.raises(MigrationError, match="missing online 3") as refused:
        cutover(backfilled, PAIRS)
    assert keys & set(str(refused.value).replace(",", " ").replace(".", " ").split())


def test_an_item_view_alone_is_refused_where_cosines_would_mix_two_encoders(backfilled, monkeypatch):
    follow_versions(backfilled, {ITEMS: ITEMS_2}, monkeypatch)
    before = state(backfilled)
    with pytest.raises(MigrationError, match=r"(?s)service ranker_v1 could not be read.*--with"):
        cutover(backfilled, {ITEMS: ITEMS_2})
    assert state(backfilled) == before and not (backfilled / schema.VERSIONS_FILE).exists()


def test_versions_follow_each_other_and_go_back_last_first(backfilled):
    cutover(backfilled, PAIRS)
    with pytest.raises(MigrationError, match=f"services read {ITEMS_2} in place of {ITEMS}; name {ITEMS_2}"):
        cutover(backfilled, {ITEMS: ITEMS_3})
    with pytest.raises(MigrationError, match="take that back first: `recsys-llm migrate rollback"):
        cutover(backfilled, {ITEMS_2: ITEMS})
    journal.write_versions(backfilled, {**PAIRS, ITEMS_2: ITEMS_3})
    with pytest.raises(MigrationError, match=f"services read {ITEMS_3} in place of {ITEMS_2}; roll that back first"):
        rollback(backfilled, {ITEMS: ITEMS_2})
    (backfilled / schema.VERSIONS_FILE).write_text("a_v1: b_v1\nb_v1: a_v1\n")
    with pytest.raises(ConfigError, match="goes round in a circle"):
        rollback(backfilled, {ITEMS: ITEMS_2})


def test_commands_exit_codes_and_reports(repository, tmp_path, monkeypatch, capsys):
    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["recsys-llm", "migrate", *arguments, "-C", str(repository)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return ended.value.code, printed.out + printed.err

    report = tmp_path / "report.json"
    code, shown = run("plan", ITEMS, ITEMS_2, "--json", str(report))
    assert code == 0 and "to compute  120 of 120 rows" in shown
    assert json.loads(report.read_text())["views"][0]["rows_to_compute"] == 120
    code, shown = run("cutover", ITEMS, ITEMS_2, "--with", f"{USERS}={USERS_2}")
    assert code == 1 and "MigrationError" in shown and "0.000% of 120" in shown
    code, shown = run("plan", ITEMS, "item_text_embedding_v9")
    assert code == 2 and "is not in the registry" in shown
    code, shown = run("cutover", ITEMS, ITEMS_2, "--with", ITEMS)
    assert code == 2 and "expected VIEW=NEW_VERSION" in shown
    code, shown = run("status")
    assert code == 0 and "every service reads the views" in shown


@pytest.fixture
def closed_registries(monkeypatch):
    """Close what Feast leaves open: the connections of each SQL registry."""
    engines = []

    def remembered(*arguments, **settings):
        engines.append(sa.create_engine(*arguments, **settings))
        return engines[-1]

    monkeypatch.setattr(feast_sql_registry, "create_engine", remembered)
    yield
    for engine in engines:
        engine.dispose()


@pytest.mark.usefixtures("closed_registries")
def test_services_in_a_postgres_registry_switch_together_and_back(backfilled, postgres_url):
    """The ledger and the rows are those of the embedded registry: only the services live elsewhere."""
    database = postgres_url.rsplit("/", 1)[0] + "/" + new_database(postgres_url)
    settings = yaml.safe_load((backfilled / "feature_store.yaml").read_text())
    settings["registry"]["path"] = database
    other = "feature_store.postgres.yaml"
    (backfilled / other).write_text(yaml.safe_dump(settings))
    apply(backfilled, config_file=backfilled / other)
    before, embedded = state(backfilled, other), state(backfilled)
    done = cutover(backfilled, PAIRS, config_file=other)
    assert done.services == SWITCHED
    switched = state(backfilled, other)
    assert switched["similar_items"] == [(ITEMS_2, ["embedding"])]
    assert switched != before
    assert state(backfilled) == embedded
    store = open_store(backfilled, config_file=other)
    changes = find_changes(store, dict(before), {new: old for old, new in PAIRS.items()})
    assert [change.name for change in changes.switched] == list(SWITCHED)
    stale = replace(changes.switched[1], before=before[SWITCHED[1]])
    with pytest.raises(MigrationError, match=f"service {SWITCHED[1]} was changed"):
        apply_changes(store, Changes([changes.switched[0], stale]))
    assert state(backfilled, other) == switched  # not the first of them either
    assert rollback(backfilled, PAIRS, config_file=other).services == SWITCHED
    assert state(backfilled, other) == before


def test_a_registry_that_follows_versions_without_rows_is_found_out(backfilled):
    cutover(backfilled, PAIRS)
    other = "feature_store.other.yaml"
    settings = yaml.safe_load((backfilled / "feature_store.yaml").read_text())
    settings["registry"]["path"] = settings["registry"]["path"].replace("registry.db", "other_registry.db")
    settings["online_store"]["path"] = settings["online_store"]["path"].replace("online.db", "other_online.db")
    (backfilled / other).write_text(yaml.safe_dump(settings))
    apply(backfilled, config_file=backfilled / other)
    assert state(backfilled, other) == state(backfilled)  # switched, and nothing in its online store
    with pytest.raises(MigrationError, match="Services of this registry read it already; run .*backfill"):
        cutover(backfilled, PAIRS, config_file=other)
    again = cutover(backfilled, PAIRS)
    assert again.services == () and {found.share for found in again.coverage.values()} == {1.0}


def test_a_switch_keeps_the_alias_and_the_join_keys_of_a_view():
    old, new = (
        FeatureView(name=name, source=FileSource(path=f"/{name}"), schema=[Field(name="x", dtype=Float32)])
        for name in ("a_v1", "a_v2")
    )
    read = old[["x"]].with_name("before").with_join_key_map({"item_id": "shown_id"})
    switched = schema._current(read, "a_v2", {"a_v2": new}, Path("versions.yaml")).projection
    assert (switched.name, switched.name_alias) == ("a_v2", "before")
    assert switched.join_key_map == {"item_id": "shown_id"}


def test_a_line_that_was_cut_short_swallows_no_other(tmp_path):
    journal.note(tmp_path, action="cutover")
    file = tmp_path / journal.JOURNAL
    file.write_bytes(file.read_bytes()[:-5])
    journal.note(tmp_path, action="rollback")
    assert history(tmp_path) == [{"action": "rollback"}]
