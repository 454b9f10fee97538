"""`recsys-llm repair`, `compact` and `forget`: what they change, and what they must not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import redis
import yaml
from feast import FeatureView, FileSource

from recsys_llm import schema
from recsys_llm.commands.operations.forgetting import forget_user
from recsys_llm.commands.operations.opening import stored_view
from recsys_llm.commands.operations.repairing import compact_view, repair_view
from recsys_llm.errors import ConfigError, DataError, LedgerError
from recsys_llm.producers import Parts, maintenance
from recsys_llm.producers.parts import read_manifest
from recsys_llm.producers.user_statistics import UserStatistics
from recsys_llm.retrieval import open_store
from recsys_llm.timestamps import now
from tests.operations.conftest import FORGOTTEN
from tests.workspace import CHEAP_VIEWS, materialize, offline, online

USERS = schema.USER_STATS


def parts(repository: Path, view: str = USERS) -> list[Path]:
    return sorted((repository / "data" / "features" / view).glob("*.parquet"))


def stored(repository: Path, view: str = USERS) -> list[list[str]]:
    """Return all stored rows with all their columns, sorted."""
    frame = pd.concat([pq.read_table(file).to_pandas() for file in parts(repository, view)])
    return sorted(frame.map(repr).values.tolist())


def served(repository: Path, view: str = USERS) -> dict[str, int]:
    rows = offline(repository, view)
    keys = rows[rows.columns[0]].unique().tolist()
    return dict(zip(keys, online(repository, view, keys)[schema.N_EVENTS], strict=True))


def empty_online(repository: Path, server) -> None:
    if (repository / "data" / "online.db").is_file():
        import sqlite3

        connection = sqlite3.connect(repository / "data" / "online.db")
        with connection:
            connection.execute(f"delete from recsys_{USERS}")
        connection.close()
    with redis.Redis.from_url(server.url) as admin:
        admin.flushall()


@pytest.mark.faults
def test_repair_fills_an_emptied_store_without_computing(repository, server, monkeypatch):
    expected, rows = served(repository), stored(repository)
    empty_online(repository, server)
    assert set(served(repository).values()) == {None}
    monkeypatch.setattr(UserStatistics, "compute", None)  # none is computed again
    monkeypatch.setattr("recsys_llm.engine.engine.open_producer", None)  # nor is a model loaded
    assert repair_view(repository, USERS) == len(rows)
    assert served(repository) == expected
    assert stored(repository) == rows


def test_repair_needs_rows_and_a_view(repository):
    with pytest.raises(LedgerError, match="holds no rows to publish"):
        repair_view(repository, schema.ITEM_TEXT_EMBEDDING)
    with pytest.raises(ConfigError, match="unknown feature view 'user_stat'; did you mean 'user_stats'"):
        repair_view(repository, "user_stat")


def test_compact_keeps_every_row_and_what_is_served(repository, capsys):
    before, history, serving = len(parts(repository)), stored(repository), served(repository)
    done = compact_view(repository, USERS, rows_per_part=1_000)
    assert before > 5
    assert (done.parts_before, done.parts_after) == (before, len(parts(repository)))
    assert 1 < done.parts_after < before
    assert stored(repository) == history
    materialize(repository, USERS, end=now())
    assert "nothing new" in capsys.readouterr().out
    assert served(repository) == serving
    again = compact_view(repository, USERS, rows_per_part=1_000)
    assert (again.parts_before, again.parts_after) == (done.parts_after, done.parts_after)


def test_parts_that_say_something_else_of_themselves_are_not_merged(repository):
    """The same model may have written parts in two versions of this package: each keeps what it says."""
    with stored_view(repository, USERS) as view:
        some = sorted(parts(repository))[:2]
        for file in some:
            told = view.parts.manifest_of(file.name) | {"note": "newer"}
            written = Parts(file.parent, USERS, told).write(view.parts.read(file.name))
            view.ledger.replace(USERS, [file.name], {written: pq.read_metadata(file).num_rows})
            file.unlink()
        view.ledger.drop_retired(USERS)
    history = stored(repository)
    compact_view(repository, USERS, rows_per_part=10**6)
    forget_user(repository, FORGOTTEN)
    assert stored(repository) == [row for row in history if repr(FORGOTTEN) not in row]
    told = [read_manifest(file).get("note") for file in parts(repository)]
    assert set(told) == {None, "newer"} and 2 <= len(told) <= 5


def test_a_repaired_store_serves_the_newest_rows_of_compacted_parts(repository, server):
    expected = served(repository)
    compact_view(repository, USERS, rows_per_part=10**6)
    assert len(parts(repository)) == 1
    empty_online(repository, server)
    repair_view(repository, USERS)
    assert served(repository) == expected


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@pytest.mark.faults
@pytest.mark.parametrize("stop_at", ["write", "replace", "remove", "drop_retired"])
def test_a_compaction_that_is_killed_loses_and_doubles_nothing(repository, monkeypatch, stop_at, capsys):
    rows, serving = stored(repository), served(repository)
    with stored_view(repository, USERS) as view, monkeypatch.context() as patch:
        owner = maintenance.Parts if stop_at in ("write", "remove") else maintenance.Ledger
        original = getattr(owner, stop_at)

        def once_and_never_again(*arguments, **options):
            original(*arguments, **options)
            raise Killed

        patch.setattr(owner, stop_at, once_and_never_again)
        with pytest.raises(Killed):
            maintenance.compact(USERS, view.ledger, view.parts, rows_per_part=500)
    capsys.readouterr()
    materialize(repository, USERS, end=now())
    assert "computed" not in capsys.readouterr().out
    compact_view(repository, USERS, rows_per_part=10**6)
    found = stored(repository)
    assert {tuple(row) for row in found} == {tuple(row) for row in rows}
    assert stop_at == "write" or len(found) == len(rows)  # written and not exchanged: rows are there twice, as one
    assert served(repository) == serving


def remove_from_tables(repository: Path, user: str) -> None:
    sources = yaml.safe_load((repository / "recsys_llm.yaml").read_text())["sources"]
    for source in sources.values():
        table = pq.read_table(source["parquet"])
        if schema.USER_ID in table.column_names:
            pq.write_table(table.filter(pc.not_equal(table.column(schema.USER_ID), user)), source["parquet"])


@pytest.mark.security
def test_a_forgotten_user_is_nowhere(repository, server, capsys):
    others = {key: value for key, value in served(repository).items() if key != FORGOTTEN}
    rows = [row for row in stored(repository) if repr(FORGOTTEN) not in row]
    assert len(rows) < len(stored(repository))
    done = forget_user(repository, FORGOTTEN)
    assert done.removed_rows[USERS] == len(stored(repository)) - len(rows) or done.removed_rows[USERS] > 0
    assert set(done.left) == {"source interactions"}
    assert "still found in source interactions" in str(done)
    remove_from_tables(repository, FORGOTTEN)
    again = forget_user(repository, FORGOTTEN)
    assert (again.left, str(again).endswith("looked again: nothing is left")) == ({}, True)
    assert stored(repository) == rows
    assert served(repository) == others
    for file in (repository / "data").rglob("*"):
        if file.is_file():
            assert FORGOTTEN.encode() not in file.read_bytes(), file
    with redis.Redis.from_url(server.url) as admin:
        assert not [key for key in admin.scan_iter() if FORGOTTEN.encode() in key]
    capsys.readouterr()
    materialize(repository, *CHEAP_VIEWS, end=now())
    assert "computed" not in capsys.readouterr().out.split(f"{USERS}:")[-1]
    assert stored(repository) == rows


@pytest.mark.security
def test_views_that_are_registered_no_more_are_searched_too(repository):
    copied = repository / "data" / "features" / "copied_by_hand"
    shutil.copytree(repository / "data" / "features" / USERS, copied)
    remove_from_tables(repository, FORGOTTEN)
    store = open_store(repository)
    store.registry.delete_feature_view(USERS, store.project)
    done = forget_user(repository, FORGOTTEN)
    assert done.removed_rows[USERS] > 0
    assert list(done.left) == ["copied_by_hand parts"]
    assert not [row for row in stored(repository) if repr(FORGOTTEN) in row]
    online_file = repository / "data" / "online.db"
    assert not online_file.is_file() or FORGOTTEN.encode() not in online_file.read_bytes()
    shutil.rmtree(copied)
    assert forget_user(repository, FORGOTTEN).left == {}


def test_what_was_not_searched_is_said(repository):
    store = open_store(repository)
    view, user = store.get_feature_view(USERS), store.get_entity(schema.USER)
    source = FileSource(path=str(repository / "own.parquet"), timestamp_field=schema.EVENT_TIMESTAMP)
    own = FeatureView(name="own_view", entities=[user], schema=view.schema, source=source)
    store.registry.apply_feature_view(own, store.project)
    store.provider.online_store.update(store.config, [], [own], [], [user], partial=True)
    done = forget_user(repository, FORGOTTEN)
    assert done.not_searched == ["the source of view own_view, which recsys_llm doesn't compute"]
    assert "not searched: the source of view own_view" in str(done)


def test_rows_of_nobody_are_not_a_person_s(repository):
    for user in (schema.GLOBAL_USER, "segment:DE"):
        with pytest.raises(DataError, match="stands for a segment or for everyone"):
            forget_user(repository, user)


def test_a_view_with_an_unfinished_run_is_left_alone(repository):
    parts(repository)[0].rename(repository / "aside")
    for work in (lambda: compact_view(repository, USERS, rows_per_part=10), lambda: repair_view(repository, USERS)):
        with pytest.raises(LedgerError, match="materialise the view once, which finishes a killed run"):
            work()
