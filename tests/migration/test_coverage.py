"""What the new version holds, on a real Redis too; and one row explained."""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import redis
import yaml

from recsys_llm import cli, schema
from recsys_llm.commands.explain import explain_row
from recsys_llm.commands.migration import coverage as coverage_module
from recsys_llm.commands.migration import moves
from recsys_llm.commands.migration.coverage import measure_coverage
from recsys_llm.commands.migration.migrate import backfill, cutover
from recsys_llm.commands.migration.moves import Move, open_moves
from recsys_llm.errors import ConfigError, DataError, MigrationError
from recsys_llm.producers import ProducerTag
from recsys_llm.producers.parts import part_files
from recsys_llm.retrieval import open_store
from tests.migration.conftest import ITEMS, ITEMS_2, PAIRS, USERS
from tests.workspace import offline

REDIS = "feature_store.redis.yaml"


def coverage_of(repository, old=ITEMS, new=ITEMS_2):
    store = open_store(repository)
    (move,) = open_moves(store, {old: new})
    return measure_coverage(store, move)


def rewrite(part, change):
    table = pq.read_table(part)
    pq.write_table(change(table), part)


def shifted(table, delta):
    stamps = table.column(schema.EVENT_TIMESTAMP)
    moved = pc.add(stamps, pa.scalar(delta, pa.duration("us"))).cast(stamps.type)
    return table.set_column(table.column_names.index(schema.EVENT_TIMESTAMP), schema.EVENT_TIMESTAMP, moved)


def test_an_older_row_does_not_cover_a_newer_one(backfilled):
    assert coverage_of(backfilled).share == 1.0
    first = part_files(backfilled / "data/features" / ITEMS)[0]
    rewrite(first, lambda table: shifted(table, timedelta(seconds=1)))
    rows = pq.read_metadata(first).num_rows
    found = coverage_of(backfilled)
    assert (found.offline_missing, found.behind, found.online_missing) == (0, rows, 0)
    assert found.share == pytest.approx(1 - rows / 120)
    assert set(found.examples) <= set(pq.read_table(first).column(schema.ITEM_ID).to_pylist())


def test_a_shorter_ttl_is_refused():
    def move(old, new):
        views = (
            SimpleNamespace(name=name, ttl=timedelta(days=days), entities=["item"], features=[], tags={})
            for name, days in (("a_v1", old), ("a_v2", new))
        )
        return Move(*views, ProducerTag("text_embedding", "items"), ProducerTag("text_embedding", "items"))

    for old, new, message in ((0, 2, "a_v1's, none, found 2 days"), (2, 1, "a_v1's, 2 days, 0:00:00, found 1 day")):
        with pytest.raises(ConfigError, match=f"ttl of at least {message}"):
            moves._check(move(old, new))
    for old, new in ((0, 0), (1, 2), (1, 0)):
        moves._check(move(old, new))


def test_a_part_ahead_of_the_online_store_is_not_online(backfilled):
    first = part_files(backfilled / "data/features" / ITEMS_2)[0]
    rewrite(first, lambda table: shifted(table, timedelta(seconds=5)))
    found = coverage_of(backfilled)
    assert (found.offline_missing, found.behind, found.online_missing) == (0, 0, pq.read_metadata(first).num_rows)


def test_an_empty_new_version_and_an_empty_old_one(repository):
    found = coverage_of(repository)
    assert (found.share, found.offline_missing, found.live) == (0.0, 120, 120)
    with pytest.raises(ConfigError, match="holds no live row"):
        coverage_of(repository, ITEMS_2, ITEMS)


def test_a_large_view_is_sampled_online_and_counted_whole_offline(backfilled, monkeypatch):
    monkeypatch.setattr(coverage_module, "COMPLETE", 50)
    found = coverage_of(backfilled)
    assert (found.checked, found.live, found.share) == (50, 120, 1.0)
    part = part_files(backfilled / "data/features" / ITEMS_2)[0]
    rewrite(part, lambda table: table.slice(6))
    found = coverage_of(backfilled)
    assert found.offline_missing == 6 and found.share <= 114 / 120
    assert "of 50 looked up" in str(found)


def test_on_redis_the_gate_reads_what_redis_holds(backfilled, redis_url):
    settings = yaml.safe_load((backfilled / "feature_store.yaml").read_text())
    address = redis_url.removeprefix("redis://").split("/")[0]
    settings["online_store"] = {"type": "redis", "connection_string": address, "skip_dedup": True}
    (backfilled / REDIS).write_text(yaml.safe_dump(settings))
    with pytest.raises(MigrationError, match="missing online 120"):
        cutover(backfilled, PAIRS, config_file=REDIS)
    backfill(backfilled, PAIRS, config_file=REDIS)
    client = redis.Redis.from_url(redis_url)
    keys = [key for key in client.scan_iter("*") if key.endswith(b"migration") and b"item_id" in key]
    assert len(keys) == 120
    client.delete(*keys[:2])
    with pytest.raises(MigrationError, match=r"98\.333% of 120 live keys; .* missing online 2;"):
        cutover(backfilled, PAIRS, config_file=REDIS)
    assert cutover(backfilled, PAIRS, config_file=REDIS, min_coverage=0.98).services == ("ranker_v1", "similar_items")
    client.delete(*(key for key in client.scan_iter("*") if key.endswith(b"migration")))


def test_explain_a_row(backfilled, simulated_data, monkeypatch, capsys, tmp_path):
    rows = offline(backfilled, ITEMS)
    key = rows[schema.ITEM_ID][7]
    found = explain_row(backfilled, ITEMS, key)
    source = pq.read_table(simulated_data / "items.parquet").to_pandas().set_index(schema.ITEM_ID).loc[key]
    assert found.text == f"{source['title']}. {source['text']}"
    assert (found.source, found.online, found.model, found.bridges) == ("unchanged", "this row", "minilm_v1", None)
    assert pd.Timestamp(found.valid_from) == rows[schema.EVENT_TIMESTAMP][7]
    assert found.content_hash == rows[schema.CONTENT_HASH][7].hex()
    assert found.part in {str(file) for file in part_files(backfilled / "data/features" / ITEMS)}
    with pytest.raises(DataError, match="has no row at"):
        explain_row(backfilled, ITEMS, key, at=found.valid_from - timedelta(seconds=1))
    with pytest.raises(ConfigError, match="did you mean"):
        explain_row(backfilled, "item_text_embeding_v1", key)
    report = tmp_path / "row.json"
    arguments = ["recsys-llm", "explain", ITEMS, key, "-C", str(backfilled), "--json", str(report)]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert "this row" in capsys.readouterr().out
    assert json.loads(report.read_text())["fingerprint"] == found.fingerprint


def test_explain_a_users_row_at_a_time(backfilled):
    rows = offline(backfilled, USERS)
    user = rows[schema.USER_ID].value_counts().index[0]
    times = rows[rows[schema.USER_ID] == user][schema.EVENT_TIMESTAMP].tolist()
    found = explain_row(backfilled, USERS, user, at=times[-2].to_pydatetime())
    assert pd.Timestamp(found.valid_from) == times[-2] and found.source == "unchanged" and found.text
    assert found.online.startswith("another row, of ")


def test_explain_says_what_has_changed(backfilled):
    key = offline(backfilled, ITEMS)[schema.ITEM_ID][0]
    file = backfilled / "recsys_llm.yaml"
    settings = yaml.safe_load(file.read_text())
    source = settings["sources"]["items"]["parquet"]
    altered = backfilled / "items.parquet"
    table = pq.read_table(source)
    titles = pa.array([f"New {title}" for title in table.column("title").to_pylist()])
    pq.write_table(table.set_column(table.column_names.index("title"), "title", titles), altered)
    settings["sources"]["items"]["parquet"] = str(altered)
    file.write_text(yaml.safe_dump(settings))
    found = explain_row(backfilled, ITEMS, key)
    assert found.source.startswith("changed since") and found.text.startswith("New ")
    pq.write_table(table.slice(table.num_rows), altered)
    assert explain_row(backfilled, ITEMS, key).source == "the source has no such row any more"
    settings["text_encoders"]["minilm_v1"]["template"] = "{title}"
    file.write_text(yaml.safe_dump(settings))
    assert explain_row(backfilled, ITEMS, key).source.startswith("the model or settings have changed since")
