"""Killed and disturbed migrations: what is done stays done, and nothing is switched by half."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from recsys_llm import schema
from recsys_llm.commands.migration import journal, migrate, services
from recsys_llm.commands.migration.journal import read_versions
from recsys_llm.commands.migration.migrate import backfill, cutover, rollback
from recsys_llm.engine.engine import parts_directory
from recsys_llm.errors import MigrationError
from recsys_llm.producers.parts import part_files
from recsys_llm.retrieval import open_store
from tests.migration.conftest import ITEMS, ITEMS_2, PAIRS, SWITCHED, state
from tests.workspace import offline

BACKFILL = """
import sys
from pathlib import Path
from recsys_llm.commands.migration.migrate import backfill
backfill(Path(sys.argv[1]), {sys.argv[2]: sys.argv[3]})
"""


def test_a_killed_backfill_is_resumed_and_a_second_computes_nothing(repository, capsys):
    directory = parts_directory(open_store(repository).get_feature_view(ITEMS_2), repository)
    command = [sys.executable, "-c", BACKFILL, str(repository), ITEMS, ITEMS_2]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and len(part_files(directory)) < 2:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    done = len(part_files(directory))
    assert 2 <= done < 8
    coverage, bridge = backfill(repository, {ITEMS: ITEMS_2})
    assert "computed" in capsys.readouterr().out and bridge is None
    assert (coverage[ITEMS_2].share, coverage[ITEMS_2].live, coverage[ITEMS_2].checked) == (1.0, 120, 120)
    old, new = offline(repository, ITEMS), offline(repository, ITEMS_2)
    keys = [schema.ITEM_ID, schema.EVENT_TIMESTAMP]
    assert new[keys].equals(old[keys])
    backfill(repository, {ITEMS: ITEMS_2})
    assert "nothing new to compute" in capsys.readouterr().out
    # Both versions go on from the same time.
    store = open_store(repository)
    ends = {name: store.get_feature_view(name).most_recent_end_time for name in (ITEMS, ITEMS_2)}
    assert ends[ITEMS] == ends[ITEMS_2]


KILLED = """
import json, os, signal, sys
from pathlib import Path
from recsys_llm.commands.migration import migrate, services
services.apply_changes = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
pairs, declared = json.loads(sys.argv[2]), json.loads(sys.argv[3])
migrate.declared_services = lambda *_: declared  # known already, and another process to ask takes seconds
migrate.cutover(Path(sys.argv[1]), pairs)
"""


class Killed(BaseException):
    """Stands in for a SIGKILL at a step: nothing of ours catches it."""


def die(*_):
    raise Killed


def test_a_switch_killed_between_its_steps_is_completed_by_running_it_again(backfilled, monkeypatch):
    before = state(backfilled)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(journal, "write_versions", die)
        cutover(backfilled, PAIRS)
    assert state(backfilled) == before and read_versions(backfilled) == {}
    declared = json.dumps(migrate.declared_services(backfilled, PAIRS))
    command = [sys.executable, "-c", KILLED, str(backfilled), json.dumps(PAIRS), declared]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    # Nothing is switched by half: every service reads the old version.
    assert state(backfilled) == before and read_versions(backfilled) == PAIRS
    assert cutover(backfilled, PAIRS).services == SWITCHED
    after = state(backfilled)
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(services, "apply_changes", die)
        rollback(backfilled, {ITEMS: ITEMS_2})
    assert state(backfilled) == after and read_versions(backfilled) == {}
    assert rollback(backfilled, {ITEMS: ITEMS_2}).services == SWITCHED
    assert state(backfilled) == before


def test_a_service_that_was_changed_meanwhile_takes_the_others_back(backfilled, monkeypatch):
    before = state(backfilled)
    write = journal.write_versions

    def somebody_else_applies(where, versions):
        store = open_store(backfilled)
        changed = store.get_feature_service("similar_items")
        changed.feature_view_projections = [store.get_feature_view(schema.ITEM_STATS).projection]
        store.registry.apply_feature_service(changed, store.project)
        write(where, versions)

    monkeypatch.setattr(journal, "write_versions", somebody_else_applies)
    with pytest.raises(MigrationError, match="similar_items was changed while"):
        cutover(backfilled, PAIRS)
    assert state(backfilled)["ranker_v1"] == before["ranker_v1"]


def test_one_switch_at_a_time(repository):
    with (
        journal.one_at_a_time(repository),
        pytest.raises(MigrationError, match="another cutover or rollback is under way"),
    ):
        rollback(repository, {ITEMS: ITEMS_2})
