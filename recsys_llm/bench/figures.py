"""``make figures``: the README's tables, from the reports that the measuring commands wrote.

A table stands between ``<!-- figures: NAME -->`` and ``<!-- /figures -->``; the reports lie in ``figures/`` beside this
file. A test holds that README and reports agree, so no figure is typed.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from recsys_llm.errors import DataError
from recsys_llm.files import replaced_file

REPORTS = Path(__file__).with_name("figures")
_TABLE = re.compile(r"(<!-- figures: (\w+) -->\n).*?(<!-- /figures -->)", re.DOTALL)
_DATA_SETS = {"movielens_small": "MovieLens latest-small", "online_retail": "Online Retail"}

Report = dict[str, Any]


def with_figures(text: str, reports: Path = REPORTS) -> str:
    """Return a Markdown text with each table made anew.

    Parameters
    ----------
    text
        With the marks of tables.
    reports
        Folder of JSON files, as ``--json`` writes them.

    Raises
    ------
    DataError
        A mark names no table, or a report is missing.
    """

    def table(match: re.Match[str]) -> str:
        name = match[2]
        if name not in TABLES:
            raise DataError(f"figures: unknown table {name!r}; known: {', '.join(TABLES)}")
        return f"{match[1]}{TABLES[name](reports)}{match[3]}"

    return _TABLE.sub(table, text)


def _ranking(reports: Path) -> str:
    head = ["data", "ranker, baseline", "with learned features", "difference (95%)"]
    rows = []
    for data, label in _DATA_SETS.items():
        report = _read(reports, f"quickstart_{data}")
        lift, scores = report["lift"]["ndcg_at_10"], report["next_items"]
        low, high = lift["ci95"]
        difference = f"{lift['difference']:+.4f} ({low:+.4f} to {high:+.4f})"
        ranker = [f"{lift['baseline']:.4f}", f"{lift['with_features']:.4f}", difference]
        models = [f"{scores[name]['ndcg_at_10']:.4f}" for name in ("popularity", "mle", "adversarial")]
        rows.append([label, *ranker, *models])
    return _table([*head, "next items: popularity", "MLE", "adversarial"], rows)


def _encoder_speed(reports: Path) -> str:
    texts = {
        "text_made_up": "400 made-up, median 40 words (`bench text`)",
        "text_movielens_small": "600 films (`--texts films.txt --count 600`)",
        "text_online_retail": "2,000 retail titles (`--texts titles.txt --count 2000`)",
    }
    head = ["texts", "tokens/s", "sentence-transformers, default", "its best batch size", "default, 10% duplicates"]
    rows = []
    for name, label in texts.items():
        report = _read(reports, name)
        speed = next(result["tokens_per_s"] for result in report["results"] if result["name"] == "ours_cpu_s")
        figures = {target["name"]: target["value"] for target in report["targets"]}
        ratios = ("ratio_to_default", "ratio_to_best_batch_size", "ratio_with_duplicates")
        times = [f"{figures[ratio]:.2f}x" for ratio in ratios]
        rows.append([label, f"{speed:,.0f}", *times, f"{figures['share_of_gemm_peak']:.0%}"])
    return _table([*head, "of the fp32 GEMM peak"], rows)


def _text_quality(reports: Path) -> str:
    metrics = ("recall_at_20", "cold_recall_among_cold_at_20")
    rows = []
    for data, label in _DATA_SETS.items():
        report = _read(reports, f"text_quality_{data}")
        for result in report["results"]:
            cells = [cell for metric in metrics for cell in _with_difference(result["metrics"].get(metric))]
            rows.append([label, result["name"], str(result["seeds"]), *cells])
    head = ["data", "item vectors", "seeds", "recall@20", "to frozen (95%)", "among cold items", "to frozen (95%)"]
    return _table(head, rows)


def _next_items_reports(reports: Path) -> Iterator[tuple[str, Report]]:
    """Yield label and report of each data set that `evaluate next-items` was run on; at least one."""
    names = {data: f"next_items_{data}" for data in _DATA_SETS}
    run = [data for data, name in names.items() if (reports / f"{name}.json").is_file()] or list(names)
    yield from ((_DATA_SETS[data], _read(reports, names[data])) for data in run)


def _next_items(reports: Path) -> str:
    rows = []
    for label, report in _next_items_reports(reports):
        for result in report["results"]:
            metrics, seconds = result["metrics"], statistics.mean(result["training_seconds"])
            low, high = metrics["ndcg_at_10"]["ci95"]
            cold = metrics.get("cold_among_cold_ndcg_at_10")
            rows.append(
                [
                    label,
                    result["name"],
                    str(result["seeds"]),
                    f"{metrics['ndcg_at_10']['value']:.4f} ({low:.4f} to {high:.4f})",
                    f"{metrics['hr_at_10']['value']:.4f}",
                    "" if cold is None else f"{cold['value']:.4f}",
                    f"{result['coverage']:.2f}",
                    f"{seconds:,.0f}",
                ]
            )
    head = ["data", "contestant", "seeds", "NDCG@10 (95%)", "HR@10", "NDCG@10 among cold items", "coverage"]
    return _table([*head, "training, s"], rows)


def _next_items_targets(reports: Path) -> str:
    rows = []
    for label, report in _next_items_reports(reports):
        rows += [[label, *cells] for cells in _targets(report)]
    return _table(["data", "figure", "target", "found", ""], rows)


def _seqgan_speed(reports: Path) -> str:
    commands = ("rollout", "backfill", "advance", "softmax")
    rows = [[f"`bench {name}`", *cells] for name in commands for cells in _targets(_read(reports, name))]
    return _table(["command", "figure", "target", "found", ""], rows)


def _retrieval_speed(reports: Path) -> str:
    commands = {
        "online_redis_100": "online --candidates 100",
        "online_redis_500": "online --candidates 500",
        "online_redis_5000": "online --candidates 5000",
        "online_sqlite_500": "online --store sqlite",
        "training": "training --rows 200000",
        "materialize": "materialize",
    }
    rows = [[f"`bench {name}`", *cells] for file, name in commands.items() for cells in _targets(_read(reports, file))]
    return _table(["command", "figure", "target", "found", ""], rows)


def _oracle(reports: Path) -> str:
    head = ["recipe", "NLL_oracle", "NLL_test", "H(G)", "distinct-2", "self-BLEU"]
    head += ["NLL_oracle at the same entropy (95%)", "NLL_test at the same entropy (95%)", ""]
    metrics = {"nll_oracle": ".3f", "nll_test": ".3f", "entropy": ".3f", "distinct_2": ".4f", "self_bleu": ".3f"}
    rows = []
    for result in _read(reports, "oracle")["results"]:
        values = [format(result["metrics"][name]["value"], form) for name, form in metrics.items()]
        found = result.get("difference_at_matched_entropy", {})
        differences = [_signed(found[name]) if name in found else "" for name in ("nll_oracle", "nll_test")]
        rows.append([result["name"], *values, *differences, result.get("verdict", "")])
    return _table(head, rows)


def _load(reports: Path) -> str:
    rows = []
    for result in _read(reports, "load")["results"]:
        if "p50_ms" in result:
            times = [f"{result[name]:,.1f}" for name in ("p50_ms", "p99_ms", "p99_9_ms", "longest_ms")]
            others = sum(count for error, count in result["errors"].items() if not error.startswith("defaults: "))
            counts = [f"{result['requests']:,}", str(result["defaults"]), str(others)]
            away = result.get("longest_answer_while_away_ms")
            times.append("" if away is None else f"{away:,.1f}")
            rows.append([result["name"], f"{result['rate_per_s']:,.0f}", *counts, *times])
    head = ["run", "requests/s", "requests", "flagged defaults", "errors", "p50, ms", "p99, ms", "p99.9, ms"]
    return _table([*head, "longest, ms", "longest of a default, ms"], rows)


def _kills(reports: Path) -> str:
    counts = ("killed", "lost", "duplicated", "stale", "redone", "most_redone")
    rows = []
    for result in _read(reports, "soak")["results"]:
        executor, store = result["name"].split("_")
        cells = [str(result[name]) for name in counts]
        rows.append([executor, store, *cells, f"{result['seconds'] / 60:.0f}"])
    head = ["executor", "store", "kills", "rows lost", "doubled", "stale", "chunks redone", "most by one kill"]
    return _table([*head, "minutes"], rows)


def _cost(reports: Path) -> str:
    sizes = ("offline_gib", "online_gib", "network_gib")
    rows = []
    for result in _read(reports, "scaling")["results"]:
        if "gpus" in result:
            cells = [f"{result['items']:,}", str(result["gpus"]), f"{result['hours']:.1f}", result["limited_by"]]
            rows.append([*cells, *(f"{result[name]:,.0f} GiB" for name in sizes)])
    return _table(["items", "GPUs", "hours", "limited by", "parts", "Redis", "sent"], rows)


def _scaling(reports: Path) -> str:
    rows = []
    for result in _read(reports, "scaling")["results"]:
        if "gpus" not in result:
            steady = result["steady_rows_per_s"]
            rate = "" if steady is None else f"{steady:,.0f}"
            rows.append([result["name"].replace("_", " "), f"{result['rows']:,}", f"{result['seconds']:.1f}", rate])
    return _table(
        ["executor, workers", "rows, all equal to local", "with start, s", "rows/s after the first chunk"], rows
    )


def _signed(figure: dict[str, Any]) -> str:
    if figure["value"] is None:  # a recipe may end where the sweep has no temperature
        return "not measured"
    if figure["ci95"] is None:
        return f"{figure['value']:+.3f}"
    low, high = figure["ci95"]
    return f"{figure['value']:+.3f} ({low:+.3f} to {high:+.3f})"


def _targets(report: Report) -> Iterator[list[str]]:
    """Yield figure, target, value and whether it is met, of each target."""
    for target in report["targets"]:
        value = "not measured" if target["value"] is None else f"{target['value']:.3g}"
        if "ci95" in target:
            low, high = target["ci95"]
            value = f"{target['value']:+.4f} ({low:+.4f} to {high:+.4f})"
        met = "met" if target["met"] else target.get("verdict", "not met")
        yield [target["name"].replace("_", " "), target["target"], value, met]


def _with_difference(figure: dict[str, Any] | None) -> tuple[str, str]:
    if figure is None:
        return "", ""
    found = figure.get("difference")
    if found is None:
        return f"{figure['value']:.4f}", ""
    low, high = found["ci95"]
    return f"{figure['value']:.4f}", f"{found['value']:+.4f} ({low:+.4f} to {high:+.4f})"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _read(reports: Path, name: str) -> Report:
    file = reports / f"{name}.json"
    if not file.is_file():
        raise DataError(f"{file}: no such report; write it with the command's --json")
    content: Report = json.loads(file.read_text(encoding="utf-8"))
    return content


TABLES: dict[str, Callable[[Path], str]] = {
    "ranking": _ranking,
    "encoder_speed": _encoder_speed,
    "text_quality": _text_quality,
    "next_items": _next_items,
    "next_items_targets": _next_items_targets,
    "seqgan_speed": _seqgan_speed,
    "oracle": _oracle,
    "retrieval_speed": _retrieval_speed,
    "load": _load,
    "kills": _kills,
    "cost": _cost,
    "scaling": _scaling,
}
"""By the name in the mark."""


def main() -> None:
    """Rewrite the tables of the Markdown files that are named."""
    for file in map(Path, sys.argv[1:]):
        text = with_figures(file.read_text(encoding="utf-8"))
        with replaced_file(file) as temporary:
            temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
