"""``recsys-llm evaluate next-items`` on a small folder of tables."""

from __future__ import annotations

import json

import numpy as np
from typer.testing import CliRunner

from recsys_llm.cli import app
from tests.builders import hours, write_interactions, write_items


def test_a_folder_of_tables_becomes_a_report(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # no peers' environment here
    rng = np.random.default_rng(0)
    write_items(tmp_path / "data", [(f"i{item}", hours(item), f"film {item}", "x") for item in range(12)])
    rows = [
        (f"u{user}", f"i{(user + step * 5) % 12}", hours(20 + step + 0.01 * user), float(rng.integers(1, 6)), None)
        for user in range(8)
        for step in range(12)
    ]
    write_interactions(tmp_path / "data", rows)
    arguments = ["evaluate", "next-items", "--data", str(tmp_path / "data"), "--seeds", "1", "--max-tokens", "8"]
    more = ["--split", "leave-one-out", "--peer-budget", "1", "--json", str(tmp_path / "out.json"), "--skip", "EASE"]
    done = CliRunner().invoke(app, [*arguments, *more], catch_exceptions=False)
    assert done.exit_code == 0
    assert "make peers" in done.output and "chosen_to_item_knn" in done.output
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["settings"]["split"] == "leave-one-out" and content["settings"]["groups"] == 8
    assert content["settings"]["not_run"]["EASE"] == "skipped"
    assert {target["name"] for target in content["targets"]} >= {"chosen_to_popularity", "adversarial_minus_control"}


def test_help_has_an_example():
    done = CliRunner().invoke(app, ["evaluate", "next-items", "--help"])
    assert "Example: recsys-llm evaluate next-items" in done.output
