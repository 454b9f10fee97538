"""``recsys-llm seqgan``: the command line."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from recsys_llm.cli_options import Device, Repository, Resume, StoreFile, feast_command, parse_time

app = typer.Typer(help="Sequence models over all of a history.", no_args_is_help=True)

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing checkpoint.")]


@app.callback()
def _group() -> None:
    """Keep ``backfill`` a subcommand while it is the only one."""


@app.command()
def backfill(
    model: Annotated[str, typer.Argument(help="A name under sequence_models in recsys_llm.yaml.")],
    slices: Annotated[int, typer.Option(min=2, help="Models to train.")],
    until: Annotated[str, typer.Option(help="The last model's events are strictly before this time (ISO 8601, UTC).")],
    repository: Repository = Path("."),
    store_file: StoreFile = None,
    device: Device = "auto",
    overwrite: Overwrite = False,
    resume: Resume = True,
) -> None:
    """Train one model per time slice, each on what lies before it, so that all of a history has rows without leakage.

    The slices have about as many events each; the first has no rows. `feast materialize` then computes each slice's
    rows with its model.

    Example: recsys-llm seqgan backfill seqgan_v1 --slices 5 --until 2024-06-01 -C my_features
    """
    from recsys_llm.commands.steps import progress_bar, show_training
    from recsys_llm.commands.train import Progress, train_slices

    console = Console(stderr=True)
    with progress_bar(console) as bar:

        def told(number: int, cuts: list[datetime]) -> Progress:
            console.print(f"model {number + 1} of {len(cuts)}: events before {cuts[number]:%Y-%m-%d %H:%M:%S}")
            return show_training(bar)

        models = train_slices(
            repository,
            model,
            slices=slices,
            until=parse_time(until),
            config_file=store_file,
            overwrite=overwrite,
            resume=resume,
            device=device,
            progress=told,
        )
    for checkpoint in models.checkpoints:
        scores = ", ".join(f"{name} {found['ndcg_at_10']:.4f}" for name, found in checkpoint.manifest["scores"].items())
        typer.echo(f"{checkpoint.trained_until.isoformat()}  validation NDCG@10: {scores}")
    # Before the first cut-off: the rows stamped at it are among those to come, and an interval leaves out its start.
    first = models.checkpoints[0].trained_until - timedelta(seconds=1)
    feast = feast_command(repository, store_file)
    typer.echo(f"next: {feast} materialize {first:%Y-%m-%dT%H:%M:%S} END, with the model's views")
