"""What ``recsys-llm bench oracle`` does: run, print, write, draw."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from recsys_llm.bench.oracle import bench_oracle
from recsys_llm.bench.oracle_plot import check_plot, plot_oracle
from recsys_llm.bench.oracle_settings import PAPER_SIZE, OracleSettings
from recsys_llm.bench.report import write_report


def run_oracle(
    *,
    paper_size: bool,
    seeds: int,
    plot: Path | None,
    json_file: Path | None,
    echo: Callable[[str], object],
    settings: OracleSettings | None = None,
) -> None:
    """Run the synthetic test and write its figures.

    Raises
    ------
    ConfigError
        ``plot`` can't be drawn; said before anything is trained.
    """
    if plot is not None:
        check_plot(plot)
    content = bench_oracle(settings or (PAPER_SIZE if paper_size else OracleSettings()), seeds=seeds, echo=echo)
    for result in content["results"]:
        if "verdict" in result:
            found = result["difference_at_matched_entropy"]["nll_oracle"]
            echo(f"{result['name']:<42}{_shown(found)}  {result['verdict']}")
    for target in content["targets"]:
        echo(f"{target['name']:<75} target {target['target']}  {'met' if target['met'] else 'NOT met'}")
    if json_file is not None:
        write_report(json_file, content)
    if plot is not None:
        plot_oracle(content, plot)


def _shown(found: dict[str, Any]) -> str:
    if found["value"] is None:
        return "NLL_oracle outside the temperature sweep"
    interval = "" if found["ci95"] is None else " (95% {:+.3f} to {:+.3f})".format(*found["ci95"])
    return f"NLL_oracle at the same entropy {found['value']:+.3f}{interval}, {len(found['by_seed'])} seeds"
