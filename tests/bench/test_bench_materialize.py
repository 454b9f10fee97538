"""``bench materialize`` compares equal bytes, refuses others, and leaves nothing behind."""

from __future__ import annotations

import json

import pytest
import redis
from typer.testing import CliRunner

from recsys_llm.bench import materialize
from recsys_llm.bench.materialize_world import stored_rows
from recsys_llm.cli import app
from recsys_llm.errors import StoreError


def test_the_report_holds_every_side_and_redis_is_as_before(redis_url, tmp_path):
    with redis.Redis.from_url(redis_url) as client:
        client.set("of somebody else", "1")
        before = client.dbsize()
        arguments = ["bench", "materialize", "--rows", "700", "--runs", "1", "--redis", redis_url]
        done = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "m.json")], catch_exceptions=False)
        assert done.exit_code == 0 and "ratio_to_feast" in done.output
        assert client.dbsize() == before
        assert client.getdel("of somebody else") == b"1"
    content = json.loads((tmp_path / "m.json").read_text())
    medians = {result["name"]: result["median"] for result in content["results"]}
    assert set(medians) == {"ours_s", "feast_s", "raw_s", "ours_peak_mib", "feast_peak_mib", "share_of_raw"}
    assert all(value > 0 for value in medians.values())
    targets = {target["name"]: target for target in content["targets"]}
    assert targets["ratio_to_feast"]["value"] == pytest.approx(medians["feast_s"] / medians["ours_s"])
    assert content["settings"]["rows"] == 700


def test_other_bytes_are_refused(redis_url):
    with redis.Redis.from_url(redis_url) as client:
        try:
            for key in (b"a", b"b"):
                for project in (b"one", b"two"):
                    client.hset(key + project, mapping={"f": "1"})
            materialize.check_equal(client, "one", "two")
            client.hset(b"btwo", "f", "2")
            with pytest.raises(StoreError, match=r"key b'b' holds other bytes"):
                materialize.check_equal(client, "one", "two")
            client.delete(b"btwo", b"bone")
            client.hset(b"ctwo", "f", "1")
            with pytest.raises(StoreError, match="1 keys are written where Feast writes 2"):
                materialize.check_equal(client, "one", "two")
            assert sorted(key for key, _ in stored_rows(client, "two")) == [b"a", b"c"]
        finally:
            client.delete(b"aone", b"atwo", b"bone", b"btwo", b"ctwo")
