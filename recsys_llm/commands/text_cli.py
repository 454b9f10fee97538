"""``recsys-llm text``: the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional, cast

import typer
from rich.console import Console

from recsys_llm.cli_options import Device, JsonFile, Repository, Resume, StoreFile, parse_time

app = typer.Typer(help="Train and shrink text encoders on a repository's own data.", no_args_is_help=True)

Encoder = Annotated[str, typer.Argument(help="A name under text_encoders in recsys_llm.yaml.")]
Until = Annotated[str, typer.Option(help="Use only what is stamped strictly before this time (ISO 8601, UTC).")]
MaxSteps = Annotated[Optional[int], typer.Option(min=1, help="Gradient steps at most.")]  # noqa: UP045
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
    max_steps: MaxSteps = None,
    batch_tokens: Annotated[int, typer.Option(min=32, help="Tokens of a gradient step at most.")] = 4096,
    head_steps: Annotated[
        int, typer.Option(min=0, help="First steps that only train a fresh head, where the checkpoint has none.")
    ] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of masks, order and dropout.")] = 0,
    device: Device = "auto",
    resume: Resume = True,
    json_file: JsonFile = None,
) -> None:
    """Go on with an encoder's masked-language-model training, on the texts of items and users.

    Example: recsys-llm text pretrain minilm_v1 --until 2024-06-01 --out my_features/data/models/minilm_domain
    -C my_features
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
    show_pretraining(trained, repository, typer.echo)
    if json_file is not None:
        write_report(json_file, pretraining_report(trained))


@app.command()
def finetune(
    model: Encoder,
    until: Until,
    out: Output,
    repository: Repository = Path("."),
    objective: Annotated[str, typer.Option(help="contrastive: find the next item; category: tell categories.")] = (
        "contrastive"
    ),
    start: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--from", help="Weights to start from, such as a pre-trained encoder's.", exists=True),
    ] = None,
    train_layers: Annotated[int, typer.Option(min=1, help="The last layers, which alone are trained.")] = 2,
    lora_rank: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(min=1, help="Train low-rank additions to these layers' attention instead of the layers."),
    ] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the pairs.")] = 3,
    batch_size: Annotated[int, typer.Option(min=2, help="Pairs in a gradient step.")] = 64,
    learning_rate: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(help="The highest; by default 2e-4, 1e-3 with --lora-rank."),
    ] = None,
    temperature: Annotated[float, typer.Option(help="Cosines are divided by it.")] = 0.1,
    max_tokens: Annotated[int, typer.Option(min=8, help="Tokens read of each text in training.")] = 64,
    max_steps: MaxSteps = None,
    item_pairs: Annotated[int, typer.Option(min=1, help="Pairs of an item and the next one, at most.")] = 20_000,
    user_pairs: Annotated[int, typer.Option(min=0, help="Pairs of a user's text and the next item, at most.")] = 10_000,
    interpolate: Annotated[
        bool, typer.Option("--interpolate", help="Also try weights between the start and the best epoch.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling, order and dropout.")] = 0,
    device: Device = "auto",
    resume: Resume = True,
    json_file: JsonFile = None,
) -> None:
    """Train an encoder's top layers so that the texts of items that follow each other become alike.

    Example: recsys-llm text finetune minilm_v1 --until 2024-06-01 --out my_features/data/models/minilm_tuned
    -C my_features
    """
    from recsys_llm.bench.report import write_report
    from recsys_llm.commands.text_finetuning import (
        finetune_encoder,
        finetuning_bar,
        finetuning_report,
        show_finetuning,
    )
    from recsys_llm.text.finetuning_settings import FinetuningConfig, ObjectiveName

    settings = FinetuningConfig(
        objective=cast(ObjectiveName, objective),  # checked by FinetuningConfig, which names the nearest
        train_layers=train_layers,
        lora_rank=lora_rank,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        temperature=temperature,
        max_tokens=max_tokens,
        max_steps=max_steps,
        item_pairs=item_pairs,
        user_pairs=user_pairs,
        interpolate=interpolate,
        seed=seed,
    )
    with finetuning_bar(Console(stderr=True)) as progress:
        trained = finetune_encoder(
            repository,
            model,
            until=parse_time(until),
            out=out,
            settings=settings,
            start=start,
            device=device,
            resume=resume,
            progress=progress,
        )
    show_finetuning(trained, repository, typer.echo)
    if json_file is not None:
        write_report(json_file, finetuning_report(trained))


@app.command()
def evaluate(
    encoders: Annotated[list[str], typer.Argument(help="Names in recsys_llm.yaml, or directories of models.")],
    until: Annotated[str, typer.Option(help="Evaluate on events from this time on (ISO 8601, UTC).")],
    end: Annotated[Optional[str], typer.Option(help="And before this time; by default now.")] = None,  # noqa: UP045
    repository: Repository = Path("."),
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Say how well encoders find the next item, and items that nobody has had yet; the first is compared with.

    Example: recsys-llm text evaluate minilm_v1 my_features/data/models/minilm_tuned --until 2024-06-01 -C my_features
    """
    from recsys_llm.bench.report import write_report
    from recsys_llm.commands.text_report import evaluate_encoders, evaluation_report, show_evaluation

    found = evaluate_encoders(
        repository, encoders, until=parse_time(until), end=parse_time(end) if end else None, device=device
    )
    content = evaluation_report(found)
    show_evaluation(content, typer.echo)
    if json_file is not None:
        write_report(json_file, content)


@app.command()
def compress(
    model: Encoder,
    until: Until,
    out: Annotated[Path, typer.Option("--out", help="Directory of the transform; an older one there is replaced.")],
    repository: Repository = Path("."),
    store_file: StoreFile = None,
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

    Example: recsys-llm text compress minilm_v1 --until 2024-06-01 --out my_features/data/models/minilm_small
    -C my_features
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
            config_file=store_file,
            end=parse_time(end) if end else None,
            choose=choose,
            keep=keep,
            runs=runs,
            seed=seed,
            device=device,
            progress=progress,
        )
    show_compression(found, repository, Console(), store_file)
    if json_file is not None:
        write_report(json_file, compression_report(found))
