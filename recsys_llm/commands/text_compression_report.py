"""What ``recsys-llm text compress`` says: a table for people, figures for ``--json``, and what to add next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import TaskID
from rich.table import Table

from recsys_llm.bench.report import report
from recsys_llm.bootstrap import Interval
from recsys_llm.cli_options import feast_command
from recsys_llm.commands.migration.moves import view_snippet
from recsys_llm.commands.repository import path_in
from recsys_llm.commands.steps import progress_bar
from recsys_llm.commands.text_compression import CANDIDATES, Candidate, Compression, Progress
from recsys_llm.config import FILE_NAME
from recsys_llm.engine.vectors import tag_call
from recsys_llm.schema import family

_FIRST_NEW_VERSION = 2
_TABLE_WIDTH = 110


@contextmanager
def compression_bar(console: Console) -> Iterator[Progress]:
    """Hand out a callback that shows what is being done; nothing where there is no terminal."""
    tasks: dict[str, TaskID] = {}
    with progress_bar(console) as bar:

        def show(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=total)
            bar.update(tasks[what], completed=done)

        yield show


def compression_table(found: Compression) -> Table:
    """Return one row for each candidate, the smallest first; a star marks the front of recall and bytes."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for name in (" ", "candidate", "recall@20", "kept", "difference (95%)", "NDCG@10", "kept", "bytes", "lookup ms"):
        table.add_column(name, justify="left" if name in (" ", "candidate") else "right", no_wrap=True)
    for each in sorted(found.candidates, key=lambda each: (each.cost.bytes_per_item, -each.quality.recall)):
        quality = each.quality
        table.add_row(
            "*" if each.on_front else " ",
            each.name,
            f"{quality.recall:.4f}",
            _percent(quality.recall_kept),
            _interval(quality.recall_difference),
            f"{quality.ndcg:.4f}",
            _percent(quality.ndcg_kept),
            f"{each.cost.bytes_per_item:,.0f}",
            f"{each.lookup_ms:.2f}",
            style="bold green" if each is found.chosen else None,
        )
    return table


def show_compression(found: Compression, repository: Path, console: Console, store_file: str | None = None) -> None:
    """Print the table, the choice, and what makes a new view version of it."""
    sources = found.sources
    where = "encoded" if sources["vectors"] == "encoded" else f"of {sources['vectors']}"
    console.print(
        f"{sources['items']:,} items ({where}), fitted to the {sources['fitted_items']:,} before "
        f"{found.until:%Y-%m-%d %H:%M}; {sources['pairs']:,} next items of {sources['users']:,} users from then on; "
        f"{sources['choosing_users']:,} other users choose",
        highlight=False,
        soft_wrap=True,
    )
    console.width = max(console.width, _TABLE_WIDTH)  # cut columns would say less than wrapped lines
    console.print(compression_table(found), crop=False)
    console.print(
        f"* no other finds as much in as few bytes; lookup: {CANDIDATES} items from sqlite, decoded, median",
        highlight=False,
        soft_wrap=True,
    )
    if found.directory is None:
        console.print(f"chosen: {found.chosen.name}; nothing smaller was asked for or keeps {found.keep:.0%} of both")
        return
    console.print(f"chosen: {found.chosen.name}, saved in {found.directory}", highlight=False, soft_wrap=True)
    console.print(snippet(found, repository, store_file), markup=False, highlight=False, soft_wrap=True)


def snippet(found: Compression, repository: Path, store_file: str | None = None) -> str:
    """Return what the feature repository needs for the choice: an encoder, and a new version of each of its views."""
    assert found.directory is not None  # only a transform needs an encoder of its own
    stored = found.chosen.transform.stored
    encoder = f"{found.encoder}_{found.chosen.name}"
    entry = found.settings.model_dump(exclude_unset=True) | {"transform": path_in(repository, found.directory)}
    line = yaml.safe_dump(entry, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True).strip()
    parts = [f"# {FILE_NAME}\ntext_encoders:\n  {encoder}: {line}\n"]
    names = {view.name: _next_version(view.name, found.registered) for view in found.views}
    parts += [view_snippet(view, names[view.name], encoder, stored=stored) for view in found.views]
    if not names:
        tags = f'schema.producer_tag("text_embedding", source="items", model="{encoder}") | {tag_call(stored)}'
        dtype = "Bytes" if stored.is_bytes else "Array(Float32)"
        parts.append(f"# no view names {found.encoder} yet: declare one with embedding of {dtype} and\ntags={tags}\n")
        return "\n".join(parts)
    (old, new), *others = names.items()
    also = "".join(f" --with {view}={version}" for view, version in others)
    feast = feast_command(repository, store_file)
    where = f"-C {repository}" + ("" if store_file is None else f" -f {store_file}")
    parts.append(
        f"# then\n{feast} apply\nrecsys-llm migrate backfill {old} {new}{also} {where}\n"
        f"recsys-llm migrate cutover {old} {new}{also} {where}\n"
    )
    return "\n".join(parts)


def compression_report(found: Compression) -> dict[str, Any]:
    """Return the figures for ``--json``."""
    settings = {
        "encoder": found.encoder,
        "until": found.until.isoformat(),
        "end": found.end.isoformat(),
        "keep": found.keep,
        "candidates": CANDIDATES,
        **found.sources,
    }
    quality = found.chosen.quality
    targets = [
        {"name": name, "target": f">= {found.keep:g}", "value": value, "met": value is not None and value >= found.keep}
        for name, value in (("recall_kept", quality.recall_kept), ("ndcg_kept", quality.ndcg_kept))
    ]
    results = [_result(each, found) for each in found.candidates]
    content = report("text compress", settings=settings, results=results, targets=targets)
    return content | {
        "chosen": found.chosen.name,
        "directory": None if found.directory is None else str(found.directory),
    }


def _result(each: Candidate, found: Compression) -> dict[str, Any]:
    quality, transform = each.quality, each.transform
    scores = quality.scores.as_dict()
    return {
        "name": each.name,
        "transform": transform.kind,
        "dim": transform.dim,
        "storage": transform.storage,
        "scale": transform.scale,
        "recall_at_20": scores["recall_at_20"],
        "recall_kept": quality.recall_kept,
        **_difference("recall", quality.recall_difference),
        "recall_kept_when_chosen": each.choosing.recall_kept,
        "ndcg_at_10": scores["ndcg_at_10"],
        "ndcg_kept": quality.ndcg_kept,
        "ndcg_kept_when_chosen": each.choosing.ndcg_kept,
        **_difference("ndcg", quality.ndcg_difference),
        "seeds": [found.seed],
        "bytes_per_item": each.cost.bytes_per_item,
        "lookup_ms": each.lookup_ms,
        "runs": len(each.cost.milliseconds),
        "pareto": each.on_front,
        "chosen": each is found.chosen,
    }


def _difference(name: str, interval: Interval | None) -> dict[str, Any]:
    if interval is None:
        return {}
    return {f"{name}_difference": interval.difference, f"{name}_difference_ci95": list(interval.ci95)}


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _interval(found: Interval | None) -> str:
    return "-" if found is None else f"{found.difference:+.4f} ({found.low:+.4f} to {found.high:+.4f})"


def _next_version(view: str, registered: tuple[str, ...]) -> str:
    """Return the first free name.

    Examples
    --------
    >>> _next_version("item_text_embedding_v1", ("item_text_embedding_v1", "item_text_embedding_v2"))
    'item_text_embedding_v3'
    """
    version = _FIRST_NEW_VERSION
    while f"{family(view)}_v{version}" in registered:
        version += 1
    return f"{family(view)}_v{version}"
