"""``recsys-llm text``: the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console

from recsys_llm.cli_options import Device, JsonFile, Repository, parse_time

app = typer.Typer(help="Train and shrink text encoders on a repository's own data.", no_args_is_help=True)

Encoder = Annotated[str, typer.Argument(help="A name under text_encoders in recsys_llm.yaml.")]
Until = Annotated[str, typer.Option(help="Use only what is stamped strictly before this time (ISO 8601, UTC).")]
Output = Annotated[Path, typer.Option("--out", help="Directory of the new model; an older one there is replaced.")]


@app.command()
def pretrain(
    model: Encoder,
    until: Until,
    out: Output,
    repository: Repository = Path("."),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the texts.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="The highest, after the warm-up.")] = 5e-5,
    max_tokens: Annotated[int, typer.Option(min=8, help="Tokens read of each text in training.")] = 128,
    max_steps: Annotated[Optional[int], typer.Option(min=1, help="Gradient steps at most.")] = None,  # noqa: UP045
    batch_tokens: Annotated[int, typer.Option(min=32, help="Tokens of a gradient step at most.")] = 4096,
    head_steps: Annotated[
        int, typer.Option(min=0, help="First steps that only train a fresh head, where the checkpoint has none.")
    ] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of masks, order and dropout.")] = 0,
    device: Device = "auto",
    resume: Annotated[
        bool, typer.Option("--resume/--restart", help="Go on where a stopped run of the same settings was.")
    ] = True,
    json_file: JsonFile = None,
) -> None:
    """Go on with an encoder's masked-language-model training, on the texts of items and users.

    Example: recsys-llm text pretrain minilm_v1 --until 2024-06-01 --out data/models/minilm_domain -C my_features
    """
    from recsys_llm.bench.report import write_report
    from recsys_llm.commands.text_training import pretrain_encoder
    from recsys_llm.commands.text_training_report import pretraining_report, show_pretraining, training_bar
    from recsys_llm.text.pretraining_settings import PretrainingConfig

    settings = PretrainingConfig(
        epochs=epochs,
        learning_rate=learning_rate,
        max_tokens=max_tokens,
        max_steps=max_steps,
        batch_tokens=batch_tokens,
        head_steps=head_steps,
        seed=seed,
    )
    with training_bar(Console(stderr=True)) as progress:
        trained = pretrain_encoder(
            repository,
            model,
            until=parse_time(until),
            out=out,
            settings=settings,
            device=device,
            resume=resume,
            progress=progress,
        )
    show_pretraining(trained, typer.echo)
    if json_file is not None:
        write_report(json_file, pretraining_report(trained))


@app.command()
def compress(
    model: Encoder,
    until: Until,
    out: Annotated[Path, typer.Option("--out", help="Directory of the transform; an older one there is replaced.")],
    repository: Repository = Path("."),
    end: Annotated[Optional[str], typer.Option(help="Measure on events before this time; by default now.")] = None,  # noqa: UP045
    choose: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="A candidate's name; by default the smallest that keeps enough."),
    ] = None,
    keep: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of recall@20 and NDCG@10 that the choice must keep.")
    ] = 0.97,
    runs: Annotated[int, typer.Option(min=3, help="Timed lookups of each form, in turns.")] = 15,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling and the bootstrap.")] = 0,
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Make an encoder's vectors smaller: fewer dimensions, int8 or bits, chosen by what they still find.

    Example: recsys-llm text compress minilm_v1 --until 2024-06-01 --out data/models/minilm_small -C my_features
    """
    from recsys_llm.bench.report import write_report
    from recsys_llm.commands.text_compression import compress_encoder
    from recsys_llm.commands.text_compression_report import compression_bar, compression_report, show_compression

    with compression_bar(Console(stderr=True)) as progress:
        found = compress_encoder(
            repository,
            model,
            until=parse_time(until),
            out=out,
            end=parse_time(end) if end else None,
            choose=choose,
            keep=keep,
            runs=runs,
            seed=seed,
            device=device,
            progress=progress,
        )
    show_compression(found, repository, Console())
    if json_file is not None:
        write_report(json_file, compression_report(found))
