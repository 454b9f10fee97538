"""The ``recsys-llm`` command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

import recsys_llm
from recsys_llm import logs
from recsys_llm.cli_options import Device, JsonFile, Repository, Resume, StoreFile, feast_command, parse_time
from recsys_llm.commands import bench_cli, evaluate_cli, metrics_cli, migrate_cli, operations_cli, seqgan_cli, text_cli
from recsys_llm.errors import ConfigError, DataError, RecsysLLMError
from recsys_llm.timestamps import now

EXIT_USAGE = 2
"""Wrong configuration or data: something for the user to correct."""
EXIT_FAILED = 1

app = typer.Typer(
    name="recsys-llm",
    help="Text embeddings and SeqGAN next items as features of a Feast feature store.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False) -> None:
    if version:
        typer.echo(recsys_llm.__version__)
        raise typer.Exit


@app.command()
def quickstart(
    data: Annotated[Optional[Path], typer.Option(help="Folder with items.parquet and interactions.parquet.")] = None,  # noqa: UP045
    workdir: Annotated[
        Path, typer.Option(help="Where everything is built; an earlier quickstart there is replaced.")
    ] = Path("recsys_llm_demo"),
    json_file: JsonFile = None,
    seed: Annotated[int, typer.Option(help="Of sampling and training.", min=0)] = 0,
) -> None:
    """Run the whole path: raw tables in, ranked items out, with stock Feast commands.

    Example: recsys-llm quickstart --data my_tables --workdir demo --json out.json
    """
    from recsys_llm.commands.quickstart import run_quickstart

    run_quickstart(data=data, workdir=workdir, json_file=json_file, seed=seed, console=Console())


@app.command()
def init(
    target: Annotated[Path, typer.Argument(help="New directory for the feature repository.")],
    data: Annotated[Optional[Path], typer.Option(help="Folder with items.parquet and interactions.parquet.")] = None,  # noqa: UP045
) -> None:
    """Make a feature repository from the packaged template.

    Example: recsys-llm init my_features --data my_tables
    """
    from recsys_llm.commands.repository import init_repository

    made = init_repository(target, data=data)
    typer.echo(f"made {made}; next: edit {made}/recsys_llm.yaml, then feast -c {made} apply")


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="A name under sequence_models in recsys_llm.yaml.")],
    until: Annotated[str, typer.Option(help="Train on events strictly before this time (ISO 8601, UTC).")],
    repository: Repository = Path("."),
    store_file: StoreFile = None,
    device: Device = "auto",
    overwrite: seqgan_cli.Overwrite = False,
    resume: Resume = True,
) -> None:
    """Train a SeqGAN on the events of a feature repository; the checkpoint has its losses as curves.csv and curves.png.

    Example: recsys-llm train seqgan_v1 --until 2024-06-01 -C my_features
    """
    from recsys_llm.commands.steps import progress_bar, show_training
    from recsys_llm.commands.train import train_sequence_model

    with progress_bar(Console(stderr=True)) as bar:
        checkpoint = train_sequence_model(
            repository,
            model,
            until=parse_time(until),
            config_file=store_file,
            overwrite=overwrite,
            resume=resume,
            device=device,
            progress=show_training(bar),
        )
    shown = {key: checkpoint.manifest[key] for key in ("fingerprint", "trained_until", "chosen", "scores")}
    typer.echo(json.dumps(shown, indent=2))


@app.command()
def plan(
    view: Annotated[str, typer.Argument(help="A feature view that recsys_llm computes.")],
    start: Annotated[str, typer.Option(help="As for feast materialize (ISO 8601, UTC).")],
    end: Annotated[Optional[str], typer.Option(help="As for feast materialize; by default now.")] = None,  # noqa: UP045
    repository: Repository = Path("."),
    store_file: StoreFile = None,
    json_file: JsonFile = None,
) -> None:
    """Say what `feast materialize START END` would compute, without computing it.

    Example: recsys-llm plan item_text_embedding_v1 --start 2024-01-01 -C my_features
    """
    from recsys_llm.bench.report import write_report
    from recsys_llm.commands.plan import plan_view

    until = parse_time(end) if end else now()
    summary = plan_view(repository, view, start=parse_time(start), end=until, config_file=store_file)
    counts = {"rows_due": summary.due, "rows_to_compute": summary.computed, "rows_skipped": summary.skipped}
    typer.echo(
        f"{view}: {summary.computed:,} of {summary.due:,} rows to compute, {summary.skipped:,} up to date; "
        f"{summary.cost:,} {summary.unit}"
    )
    if json_file is not None:
        write_report(json_file, {"command": "plan", "view": view, **counts, summary.unit: summary.cost})


@app.command()
def rebuild(
    view: Annotated[str, typer.Argument(help="A feature view that recsys_llm computes.")],
    repository: Repository = Path("."),
    store_file: StoreFile = None,
) -> None:
    """Let the next materialisation of VIEW publish all stored rows again, and compute those that were lost.

    For an online store that was emptied, and for parts that were deleted.

    Example: recsys-llm rebuild item_text_embedding_v1 -C my_features
    """
    from recsys_llm.commands.views import rebuild_view

    rebuild_view(repository, view, config_file=store_file)
    feast = feast_command(repository, store_file)
    typer.echo(f"{view}: will be rebuilt; next: {feast} materialize START END -v {view}")


@app.command()
def explain(
    view: Annotated[str, typer.Argument(help="A feature view that recsys_llm computes.")],
    key: Annotated[str, typer.Argument(help="A user's or an item's id.")],
    at: Annotated[Optional[str], typer.Option(help="Take the row that was valid then (ISO 8601, UTC).")] = None,  # noqa: UP045
    repository: Repository = Path("."),
    store_file: StoreFile = None,
    json_file: JsonFile = None,
) -> None:
    """Say what a key's row is: its text, time, model and part, and whether the online store holds it.

    Example: recsys-llm explain item_text_embedding_v1 318 --at 2024-01-01 -C my_features
    """
    from recsys_llm.bench.report import write_report
    from recsys_llm.commands.explain import explain_row

    found = explain_row(repository, view, key, at=parse_time(at) if at else None, config_file=store_file)
    typer.echo(str(found))
    if json_file is not None:
        write_report(json_file, {"command": "explain", **found.as_dict()})


@app.command(name="export-serving")
def export_serving(
    service: Annotated[str, typer.Argument(help="A feature service.")],
    out: Annotated[Path, typer.Option(help="JSON file to write.")],
    repository: Repository = Path("."),
    store_file: StoreFile = None,
) -> None:
    """Write what LookupClient needs to read SERVICE from Redis or sqlite without Feast; no password is in it.

    Example: recsys-llm export-serving ranker_v1 --out serving.json -C my_features
    """
    from recsys_llm.retrieval import FeatureClient
    from recsys_llm.retrieval.serving_export import export_serving

    with FeatureClient(repository, config_file=store_file) as client:
        manifest = export_serving(client, service, out)
    features = sum(len(view.features) for view in manifest.service.views)
    typer.echo(f"wrote {out}: {service}, {len(manifest.service.views)} views, {features} features")


app.add_typer(operations_cli.app)
app.add_typer(migrate_cli.app, name="migrate")
app.add_typer(metrics_cli.app, name="metrics")
app.add_typer(evaluate_cli.app, name="evaluate")
app.add_typer(text_cli.app, name="text")
app.add_typer(seqgan_cli.app, name="seqgan")
app.add_typer(bench_cli.app, name="bench")


def main() -> None:
    """Run the command line; a user's mistake ends in one line on stderr, not in a traceback."""
    logs.configure()
    try:
        app()
    except RecsysLLMError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}[/]: ", end="")
        sys.stderr.write(f"{error}\n")
        sys.exit(EXIT_USAGE if isinstance(error, ConfigError | DataError) else EXIT_FAILED)
