"""`recsys-llm quickstart` on slices of real data, in the tests' process: test_quickstart.py runs it in its own."""

from __future__ import annotations

import json

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from recsys_llm.commands import quickstart
from tests.command_line import run_main
from tests.workspace import feast


@pytest.mark.parametrize("data_set", ["movielens_small", "online_retail"])
def test_a_slice_of_real_data_goes_the_whole_way(data_set, request, tmp_path, monkeypatch):
    """The real tables with all their hazards, cut to the busiest items and some of the users to fit into CI."""
    source = request.getfixturevalue(data_set)
    events = pq.read_table(source / "interactions.parquet")
    items = pq.read_table(source / "items.parquet")
    counts = pd.Series(events.column("item_id").to_pylist()).value_counts()
    keep_items = pa.array(counts.index[:400].tolist())
    users = pd.Series(events.column("user_id").to_pylist()).drop_duplicates().sort_values()
    keep_users = pa.array(users.sample(min(len(users), 180), random_state=1).tolist())
    data = tmp_path / data_set
    data.mkdir()
    pq.write_table(items.filter(pc.is_in(items.column("item_id"), keep_items)), data / "items.parquet")
    both = pc.and_(pc.is_in(events.column("item_id"), keep_items), pc.is_in(events.column("user_id"), keep_users))
    pq.write_table(events.filter(both), data / "interactions.parquet")
    monkeypatch.setattr(quickstart, "run_feast", feast)
    file = tmp_path / "report.json"
    done = run_main("quickstart", "--data", str(data), "--workdir", str(tmp_path / "work"), "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    said = [json.loads(line)["logger"] for line in done.stderr.splitlines()]  # as Feast's command runs here
    assert set(said) == {"recsys_llm.engine.reporting"}, "libraries must not make noise"
    report = json.loads(file.read_text())
    assert report["data"]["interactions"] > 1000
    assert report["next_items"]["chosen"]["hr_at_10"] > report["next_items"]["popularity"]["hr_at_10"]
    assert all(step["rows"] > 0 for step in report["steps"] if step["name"] != "feast apply")
