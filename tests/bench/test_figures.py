"""The README's tables are what the reports say."""

from __future__ import annotations

import json
import shutil

import pytest

from recsys_llm.bench.figures import REPORTS, TABLES, main, with_figures
from recsys_llm.errors import DataError

TABLE = "<!-- figures: encoder_speed -->\n<!-- /figures -->\n"


def test_the_readme_shows_every_table_as_the_reports_have_it(pytestconfig):
    text = (pytestconfig.rootpath / "README.md").read_text(encoding="utf-8")
    assert all(f"<!-- figures: {name} -->" in text for name in TABLES)
    assert with_figures(text) == text


def test_a_table_follows_its_reports(tmp_path, monkeypatch):
    reports = tmp_path / "reports"
    shutil.copytree(REPORTS, reports)
    before = with_figures(TABLE, reports)
    file = reports / "text_made_up.json"
    report = json.loads(file.read_text())
    for target in report["targets"]:
        target["value"] = 7.0
    file.write_text(json.dumps(report))
    after = with_figures(TABLE, reports)
    assert after != before and "| 7.00x | 7.00x | 7.00x | 700% |" in after
    readme = tmp_path / "README.md"
    readme.write_text(after.replace("7.00x", "9.00x"))
    monkeypatch.setattr("sys.argv", ["figures", str(readme)])
    main()
    assert readme.read_text() == before


def test_next_items_are_shown_for_each_data_set_that_has_a_report(tmp_path):
    mark = "<!-- figures: next_items -->\n<!-- /figures -->"
    shutil.copytree(REPORTS, tmp_path, dirs_exist_ok=True)
    for data in ("movielens_small", "online_retail"):
        (tmp_path / f"next_items_{data}.json").unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"next_items_movielens_small\.json: no such report"):
        with_figures(mark, tmp_path)
    report = (REPORTS / "next_items_online_retail.json").read_text()
    (tmp_path / "next_items_online_retail.json").write_text(report)
    one = with_figures(mark, tmp_path)
    assert "| Online Retail |" in one and "| MovieLens latest-small |" not in one
    (tmp_path / "next_items_movielens_small.json").write_text(report)
    both = with_figures(mark, tmp_path)
    assert both.count("| MovieLens latest-small |") == both.count("| Online Retail |") == one.count("| Online Retail |")


def test_the_oracle_table_says_what_was_not_measured(tmp_path):
    shutil.copytree(REPORTS, tmp_path, dirs_exist_ok=True)
    report = json.loads((tmp_path / "oracle.json").read_text())
    found = report["results"][-1]["difference_at_matched_entropy"]
    found["nll_oracle"] |= {"value": None, "ci95": None}
    found["nll_test"] |= {"value": -0.5, "ci95": None}
    (tmp_path / "oracle.json").write_text(json.dumps(report))
    table = with_figures("<!-- figures: oracle -->\n<!-- /figures -->", tmp_path)
    assert table.splitlines()[-2].split(" | ")[6:8] == ["not measured", "-0.500"]


def test_unknown_tables_and_missing_reports_are_named(tmp_path):
    with pytest.raises(DataError, match="unknown table 'speed'; known: ranking"):
        with_figures("<!-- figures: speed -->\n<!-- /figures -->")
    with pytest.raises(DataError, match=r"text_made_up\.json: no such report"):
        with_figures(TABLE, tmp_path)
