"""SIGKILL anywhere in a materialisation, and several at once: nothing lost, nothing twice, nothing stale."""

from __future__ import annotations

import resource

import pytest

from recsys_llm import schema
from recsys_llm.retrieval import open_store
from tests.faults.crashes import VIEW, begin_again, kill_and_check, newest, read, times
from tests.faults.processes import join, spawn
from tests.workspace import START, materialize, offline

pytestmark = pytest.mark.faults


@pytest.fixture
def repository(crash_repository, small_chunks):
    return crash_repository


def test_killed_anywhere(repository, capsys, chunks):
    kill_and_check(repository, points=8, seed=20261124, capsys=capsys, chunks=chunks)


@pytest.mark.soak
def test_killed_anywhere_50_times(repository, capsys, chunks, request):
    """With the Ray variants in test_driver_killed.py: 200 points over two stores and two executors."""
    store = request.node.callspec.params["crash_repository"]
    kill_and_check(repository, points=50, seed=7, capsys=capsys, chunks=chunks).write(f"local_{store}")


@pytest.mark.parametrize("limit", [0, 4_096, 20_000])
def test_a_full_disk_loses_nothing(repository, limit):
    """RLIMIT_FSIZE stands for the disk: no file may grow beyond it, not the ledger's either."""
    moments = times(repository)
    begin_again(repository, moments[len(moments) // 2])
    before, serving = offline(repository, VIEW), read(repository, list(newest(offline(repository, VIEW))))

    def run_out_of_space() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        materialize(repository, VIEW, end=moments[-1])

    assert join(spawn(run_out_of_space))[0] == 1
    found = offline(repository, VIEW)
    kept = found.merge(before[[schema.USER_ID, schema.EVENT_TIMESTAMP]], on=[schema.USER_ID, schema.EVENT_TIMESTAMP])
    assert kept.map(repr).values.tolist() == before.map(repr).values.tolist()
    assert all(value >= serving[key] for key, value in read(repository, list(serving)).items())
    materialize(repository, VIEW, end=moments[-1])
    found = offline(repository, VIEW)
    assert len(found) > len(before)
    assert not found.duplicated([schema.USER_ID, schema.EVENT_TIMESTAMP]).any()
    assert read(repository, list(newest(found))) == newest(found)


def test_fifteen_concurrent_materialisations_of_one_view_keep_all_intervals(repository):
    moments = times(repository)
    ends = [moments[len(moments) * share // 16] for share in range(1, 16)]

    def several(number: int) -> None:
        for end in ends[number::3]:
            materialize(repository, VIEW, end=end)

    begin_again(repository, moments[0])
    before = open_store(repository).get_feature_view(VIEW).materialization_intervals
    children = [spawn(lambda number=number: several(number)) for number in range(3)]
    assert [join(child)[0] for child in children] == [0, 0, 0]
    after = open_store(repository).get_feature_view(VIEW).materialization_intervals
    assert sorted(set(after) - set(before)) == sorted((START, end) for end in ends)
    found = offline(repository, VIEW)
    assert not found.duplicated([schema.USER_ID, schema.EVENT_TIMESTAMP]).any()
    assert read(repository, list(newest(found))) == newest(found)


def test_an_interval_that_another_run_wrote_over_comes_back(repository):
    moments = times(repository)
    begin_again(repository, moments[0])
    store = open_store(repository)
    stale = store.get_feature_view(VIEW)
    materialize(repository, VIEW, end=moments[100])
    store.registry.apply_feature_view(stale, store.project)  # as Feast does when a run begins
    assert [end for _, end in open_store(repository).get_feature_view(VIEW).materialization_intervals] == [moments[0]]
    materialize(repository, VIEW, end=moments[200])
    ends = [end for _, end in open_store(repository).get_feature_view(VIEW).materialization_intervals]
    assert sorted(ends) == [moments[0], moments[100], moments[200]]


def test_sixteen_concurrent_applies_lose_nothing(repository):
    from feast import FeatureService

    def several(number: int) -> None:
        for place in range(4):
            store = open_store(repository)
            view = store.get_feature_view(VIEW)
            store.apply([FeatureService(name=f"service_{number}_{place}", features=[view])])

    children = [spawn(lambda number=number: several(number)) for number in range(4)]
    assert [join(child)[0] for child in children] == [0] * 4
    made = {service.name for service in open_store(repository).list_feature_services()}
    assert {f"service_{number}_{place}" for number in range(4) for place in range(4)} <= made
