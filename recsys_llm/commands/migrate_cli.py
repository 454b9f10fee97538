"""``recsys-llm migrate``: the command line."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from recsys_llm.cli_options import JsonFile, Repository, StoreFile, feast_command
from recsys_llm.errors import ConfigError

if TYPE_CHECKING:
    from recsys_llm.commands.migration.bridging import BridgeResult

app = typer.Typer(
    help="Move services from one version of a view to the next: gated, all at once, and back in one command.",
    no_args_is_help=True,
)

View = Annotated[str, typer.Argument(help="The view that services read now.")]
NewVersion = Annotated[str, typer.Argument(help="The view that takes its place: declared, and `feast apply`ed.")]
With = Annotated[
    Optional[list[str]],  # noqa: UP045
    typer.Option("--with", metavar="VIEW=NEW_VERSION", help="Another view to move at the same time; may be repeated."),
]


@app.command()
def plan(
    view: View,
    new_version: NewVersion,
    also: With = None,
    repository: Repository = Path("."),
    store_file: StoreFile = None,
    json_file: JsonFile = None,
) -> None:
    """Say what NEW_VERSION costs, which services read VIEW, and what would break.

    Example: recsys-llm migrate plan item_text_embedding_v1 item_text_embedding_v2 -C my_features
    """
    from recsys_llm.commands.migration.migrate import plan_migration

    plans = plan_migration(repository, _pairs(view, new_version, also), config_file=store_file)
    for each in plans:
        typer.echo(str(each))
    _write(json_file, "plan", {"views": [each.as_dict() for each in plans]})


@app.command()
def backfill(
    view: View,
    new_version: NewVersion,
    also: With = None,
    bridge: Annotated[
        bool, typer.Option("--bridge", help="Then fit a map back to VIEW's vectors, for rankers trained on them.")
    ] = False,
    repository: Repository = Path("."),
    store_file: StoreFile = None,
    json_file: JsonFile = None,
) -> None:
    """Compute NEW_VERSION over the time that VIEW covers, and show its coverage; a killed run is simply run again.

    Example: recsys-llm migrate backfill item_text_embedding_v1 item_text_embedding_v2 --bridge -C my_features
    """
    from recsys_llm.commands.migration.migrate import backfill as run_backfill

    pairs = _pairs(view, new_version, also)
    coverage, built = run_backfill(repository, pairs, bridge=bridge, config_file=store_file)
    for name, found in coverage.items():
        typer.echo(f"{name}: covers {found}")
    content: dict[str, Any] = {"views": pairs, "coverage": {name: found.as_dict() for name, found in coverage.items()}}
    if built is not None:
        _show_bridge(built, view, repository, store_file)
        content["bridge"] = {
            "fit": built.bridge.kind,
            "penalty": built.bridge.penalty,
            "items": dict(built.bridge.items),
        }
        content["bridge"]["scores"] = {kind: dict(scores) for kind, scores in built.bridge.scores.items()}
    _write(json_file, "backfill", content)


@app.command()
def cutover(
    view: View,
    new_version: NewVersion,
    also: With = None,
    min_coverage: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of VIEW's live keys that NEW_VERSION must hold.")
    ] = 0.999,
    repository: Repository = Path("."),
    store_file: StoreFile = None,
    json_file: JsonFile = None,
) -> None:
    """Let all services that read VIEW read NEW_VERSION, if it holds enough of VIEW's live keys, offline and online.

    Running clients go on with VIEW until they are refreshed or started again; keep materialising VIEW until then.

    Example: recsys-llm migrate cutover item_text_embedding_v1 item_text_embedding_v2 -C my_features
    """
    from recsys_llm.commands.migration.migrate import cutover as run_cutover

    pairs = _pairs(view, new_version, also)
    done = run_cutover(repository, pairs, min_coverage=min_coverage, config_file=store_file)
    for name, found in done.coverage.items():
        typer.echo(f"{name}: covers {found}")
    typer.echo(_switched(done.services, done.views))
    _write(json_file, "cutover", done.as_dict())


@app.command()
def rollback(
    view: View,
    new_version: NewVersion,
    also: With = None,
    repository: Repository = Path("."),
    store_file: StoreFile = None,
    json_file: JsonFile = None,
) -> None:
    """Let services read VIEW again, and all views that were moved together with it.

    Example: recsys-llm migrate rollback item_text_embedding_v1 item_text_embedding_v2 -C my_features
    """
    from recsys_llm.commands.migration.migrate import rollback as run_rollback

    done = run_rollback(repository, _pairs(view, new_version, also), config_file=store_file)
    typer.echo(_switched(done.services, done.views))
    _write(json_file, "rollback", done.as_dict())


@app.command()
def status(repository: Repository = Path(".")) -> None:
    """Say which view is read in place of which, and what migrations did last.

    Example: recsys-llm migrate status -C my_features
    """
    from recsys_llm.commands.migration.journal import history, read_versions

    versions = read_versions(repository)
    for old, new in versions.items():
        typer.echo(f"{old}: {new} is read in its place")
    for record in history(repository)[-10:]:
        views = ", ".join(f"{old} -> {new}" for old, new in record["views"].items())
        typer.echo(f"{record['action']} {record['state']}: {views} ({', '.join(record['services']) or 'no service'})")
    if not versions:
        typer.echo("every service reads the views that the Python files name")


def _pairs(view: str, new_version: str, also: list[str] | None) -> dict[str, str]:
    pairs = {view: new_version}
    for text in also or ():
        old, found, new = text.partition("=")
        if not (old and found and new) or old in pairs:
            raise ConfigError(f"--with: expected VIEW=NEW_VERSION of another view, found {text!r}")
        pairs[old] = new
    return pairs


def _switched(services: tuple[str, ...], views: dict[str, str]) -> str:
    moves = ", ".join(f"{before} -> {after}" for before, after in views.items())
    if not services:
        return f"{moves}: was done already"
    return f"{moves}: switched {', '.join(services)}; next: FeatureClient.refresh() or a restart of what reads them"


def _show_bridge(built: BridgeResult, view: str, repository: Path, store_file: str | None) -> None:
    for kind, scores in built.bridge.scores.items():
        chosen = "  (chosen)" if kind == built.bridge.kind else ""
        figures = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        typer.echo(f"{kind:<10} {figures}{chosen}")
    items = built.bridge.items
    pair = f"{view} {built.view} -C {repository}" + ("" if store_file is None else f" -f {store_file}")
    typer.echo(
        f"bridge: fitted to {items['fitted']:,} items, measured on {items['held_out']:,} others: {built.directory}\n"
        f"Next: add\n\n{built.todo}\nthen: {feast_command(repository, store_file)} apply; recsys-llm migrate backfill "
        f"{pair}; recsys-llm migrate cutover {pair}"
    )


def _write(file: Path | None, command: str, content: dict[str, Any]) -> None:
    if file is not None:
        from recsys_llm.bench.report import write_report

        write_report(file, {"command": f"migrate {command}", **content})
