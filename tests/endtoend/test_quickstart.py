"""The main job: `recsys-llm quickstart`, and what a user does with its repository afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_llm import FeatureClient, schema
from recsys_llm.commands.feast_cli import run_feast
from recsys_llm.sources.simulated import write_simulated
from recsys_llm.timestamps import now
from tests.command_line import run_main
from tests.workspace import VIEWS, feast, offline

LEARNED_VECTORS = (schema.ITEM_TEXT_EMBEDDING, schema.USER_TEXT_EMBEDDING)


def quickstart(data: Path, workdir: Path) -> tuple[dict, str]:
    file = workdir.with_suffix(".json")
    command = [str(Path(sys.executable).with_name("recsys-llm")), "quickstart", "--data", str(data)]
    command += ["--workdir", str(workdir), "--json", str(file)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == "", "libraries must not make noise"
    return json.loads(file.read_text()), done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[dict, str, Path, Path]:
    root = tmp_path_factory.mktemp("quickstart")
    data = write_simulated(root / "data", users=150, items=200, days=200, seed=11)
    report, printed = quickstart(data, root / "work")
    return report, printed, root / "work" / "feature_repo", data


def test_report_holds_every_step_and_figure(finished):
    report, printed, _, _ = finished
    names = [step["name"] for step in report["steps"]]
    assert names == [
        "data", "feast apply", "item texts", "SeqGAN", "materialize", "training set", "rankers", "evaluate",
        "next items", "lookup",
    ]  # fmt: skip
    assert all(set(step) == {"name", "seconds", "rows"} and step["seconds"] > 0 for step in report["steps"])
    for metric in ("ndcg_at_10", "hr_at_10", "mrr"):
        lift = report["lift"][metric]
        assert lift["difference"] == pytest.approx(lift["with_features"] - lift["baseline"])
        assert lift["ci95"][0] <= lift["difference"] <= lift["ci95"][1]
    for contestant in ("popularity", "mle", "adversarial", "chosen"):
        assert set(report["next_items"][contestant]) == {"ndcg_at_10", "hr_at_10"}
    assert report["data"]["simulated"] is False
    assert "materialize-incremental" in printed
    assert "top 10" in printed


def test_learned_features_lift_the_ranker_on_planted_structure(finished):
    report, _, _, _ = finished
    assert report["lift"]["ndcg_at_10"]["ci95"][0] > 0
    assert report["next_items"]["chosen"]["ndcg_at_10"] > 2 * report["next_items"]["popularity"]["ndcg_at_10"]


def test_incremental_run_computes_nothing_anew_and_says_so(finished):
    _, _, repository, _ = finished
    before = {view: len(offline(repository, view)) for view in LEARNED_VECTORS}
    printed = run_feast(repository, "materialize-incremental", now().strftime("%Y-%m-%dT%H:%M:%S"))
    assert sum(line.endswith(": nothing due") for line in printed) == len(VIEWS), printed
    assert {view: len(offline(repository, view)) for view in LEARNED_VECTORS} == before


def test_a_full_second_run_computes_nothing_anew(finished):
    _, _, repository, _ = finished
    printed = feast(repository, "materialize", "1900-01-01T00:00:00", now().strftime("%Y-%m-%dT%H:%M:%S"))
    assert sum(": nothing new to compute (" in line for line in printed) == len(VIEWS), printed


def test_client_and_stock_feast_read_the_same_online(finished):
    _, _, repository, data = finished
    client = FeatureClient(repository)
    user = pq.read_table(data / "interactions.parquet").column("user_id")[-1].as_py()
    items = pq.read_table(data / "items.parquet").column("item_id").to_pylist()[:50]
    batch = client.lookup(user, items, service=schema.RANKER)
    stock = client.store.get_online_features(
        client.store.get_feature_service(schema.RANKER),
        [{schema.USER_ID: user, schema.ITEM_ID: item} for item in items],
        full_feature_names=True,
    ).to_dict()
    compared = 0
    for block, rows in ((batch.user, batch.user_rows), (batch.item, batch.item_rows)):
        for name, column in block.columns.items():
            for row, expected in zip(rows.tolist(), stock[name], strict=True):
                found = column[row].as_py() if isinstance(column, pa.Array | pa.ChunkedArray) else column[row]
                compared += 1
                if expected is None:
                    assert found is None or np.isnan(found).all()
                elif isinstance(expected, list):
                    np.testing.assert_array_equal(found, expected)
                else:
                    assert found == expected or np.float32(expected) == found
    assert compared > 50 * 10


def test_a_candidates_score_is_its_log_probability(finished):
    _, _, repository, data = finished
    client = FeatureClient(repository)
    user = pq.read_table(data / "interactions.parquet").column("user_id")[-1].as_py()
    items = pq.read_table(data / "items.parquet").column("item_id").to_pylist()
    batch = client.lookup(user, items, service=schema.RANKER)
    found = dict(zip(batch.pairwise_names, batch.pairwise.T, strict=True))
    listed = found["pairwise__next_listed"] == 1
    assert listed.sum() == 20
    np.testing.assert_allclose(
        found["pairwise__next_score"][listed], found["pairwise__next_log_prob"][listed], atol=1e-4
    )
    assert np.nansum(np.exp(found["pairwise__next_score"].astype(float))) == pytest.approx(1, abs=1e-3)


def test_client_and_stock_feast_read_the_same_history(finished):
    _, _, repository, data = finished
    client = FeatureClient(repository)
    events = pq.read_table(data / "interactions.parquet").to_pandas().sort_values("event_timestamp")
    events = events.iloc[:: len(events) // 60]
    examples = events[["user_id", "item_id", "event_timestamp"]].reset_index(drop=True)
    examples["event_timestamp"] = examples["event_timestamp"].astype("datetime64[us, UTC]")
    ours = client.training_set(examples, service=schema.RANKER).to_pandas()
    stock = client.store.get_historical_features(
        examples.assign(row=range(len(examples))),
        client.store.get_feature_service(schema.RANKER),
        full_feature_names=True,
    ).to_df()
    stock = stock.sort_values("row").reset_index(drop=True)
    # Users without a text of their own are given everyone's; Feast doesn't know of that.
    cold = ours[schema.feature_column(schema.USER_TEXT_EMBEDDING, schema.PROVENANCE)] == schema.GLOBAL
    assert 0 < cold.sum() < len(cold)
    for name in set(stock) & set(ours) - set(examples):
        stood_in = cold if name.startswith(f"{schema.USER_TEXT_EMBEDDING}__") else cold & False
        assert stock.loc[stood_in, name].isna().all() and ours.loc[stood_in, name].notna().all()
        for expected, found in zip(stock.loc[~stood_in, name], ours.loc[~stood_in, name], strict=True):
            if isinstance(expected, np.ndarray | list):
                np.testing.assert_array_equal(np.asarray(found), np.asarray(expected), err_msg=name)
            else:
                same = expected == found or isinstance(expected, float) and np.float32(expected) == np.float32(found)
                assert same or (pd.isna(expected) and pd.isna(found)), name


def test_the_readme_lines_run_on_what_the_demo_leaves(finished, pytestconfig):
    readme = (pytestconfig.rootpath / "README.md").read_text(encoding="utf-8")
    block = readme.split("```python\n")[1].split("```")[0]
    code = block.replace("recsys_llm_demo/feature_repo", str(finished[2]))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "(3, 384)" in done.stdout
    assert "pairwise__text_cosine" in done.stdout


def test_k_changed_texts_are_k_encodes(finished, tmp_path):
    _, _, repository, data = finished
    table = pq.read_table(data / "items.parquet")
    shutil.copy(data / "items.parquet", tmp_path / "before.parquet")
    titles = table.column("title").to_pylist()
    titles[3], titles[17], titles[40] = "Quite another title", "And one more", "A third"
    changed = table.set_column(table.column_names.index("title"), "title", pa.array(titles))
    try:
        pq.write_table(changed, data / "items.parquet")
        end = now().strftime("%Y-%m-%dT%H:%M:%S")
        printed = feast(repository, "materialize", "1900-01-01T00:00:00", end, "-v", schema.ITEM_TEXT_EMBEDDING)
    finally:
        shutil.copy(tmp_path / "before.parquet", data / "items.parquet")
    assert any(line.startswith("item_text_embedding_v1: computed 3 rows") for line in printed), printed


def test_data_inside_the_workdir_is_refused_before_anything_is_deleted(finished):
    workdir = finished[2].parent
    done = run_main("quickstart", "--data", str(workdir / "feature_repo"), "--workdir", str(workdir))
    assert done.returncode == 2
    assert "lies inside the --workdir" in done.stderr
    assert (workdir / "feature_repo" / "recsys_llm.yaml").is_file()


def test_a_directory_with_other_files_is_refused(tmp_path, finished):
    (tmp_path / "thesis.tex").write_text("years of work")
    done = run_main("quickstart", "--data", str(finished[3]), "--workdir", str(tmp_path))
    assert done.returncode == 2
    assert "no quickstart made" in done.stderr
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
