"""``recsys-llm evaluate``: the command line."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Literal, Optional

import typer
from rich.console import Console

from recsys_llm.cli_options import Device, JsonFile

app = typer.Typer(help="How good the learned features are, on events after their training.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep ``next-items`` a subcommand while it is the only one."""


@app.command(name="next-items")
def next_items(
    data: Annotated[Path, typer.Option(help="Folder with items.parquet and interactions.parquet.", exists=True)],
    split: Annotated[
        Literal["global-time", "leave-one-out"],
        typer.Option(help="Every group after the cut-off, or each user's last one, where it lies after the cut-off."),
    ] = "global-time",
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each kind.")] = 3,
    groups: Annotated[int, typer.Option(min=1, help="Most groups that are predicted; of more, a sample.")] = 5_000,
    train_share: Annotated[float, typer.Option(min=0.1, max=0.99, help="Share of events before the cut-off.")] = 0.8,
    max_tokens: Annotated[int, typer.Option(min=8, help="Tokens read of each item's text.")] = 128,
    peer_budget: Annotated[float, typer.Option(min=1, help="CPU seconds of tuning of SASRec, and of GRU4Rec.")] = 600.0,
    skip: Annotated[Optional[list[str]], typer.Option(help="Leave out a contestant, such as EASE; repeatable.")] = None,  # noqa: UP045
    device: Device = "auto",
    json_file: JsonFile = None,
) -> None:
    """Compare the SeqGAN's next items with baselines and peers, over the whole catalogue.

    Everything is learned, and every setting chosen, before the cut-off. A group is predicted from what its user had
    before it.

    Example: recsys-llm evaluate next-items --data my_tables --seeds 3 --json next_items.json
    """
    from recsys_llm.bench.next_items import NextItemsSettings, evaluate_world
    from recsys_llm.bench.next_items_report import show_report
    from recsys_llm.bench.next_items_world import read_world
    from recsys_llm.bench.report import write_report
    from recsys_llm.commands.repository import init_repository
    from recsys_llm.commands.steps import progress_bar, show_training
    from recsys_llm.config import load_config

    with TemporaryDirectory() as folder:
        config = load_config(init_repository(Path(folder) / "repository", data=data))
        world = read_world(
            config,
            next(iter(config.text_encoders)),
            split=split,
            train_share=train_share,
            largest=groups,
            max_tokens=max_tokens,
            device=device,
        )
    typer.echo(
        f"{len(world.item_ids):,} items, {len(world.tasks):,} groups to predict from {world.until:%Y-%m-%d %H:%M} on, "
        f"items that a user has had are {'left out' if world.filter_seen else 'predicted again'}"
    )
    settings = NextItemsSettings(seeds=seeds, skip=tuple(skip or ()), peer_budget=peer_budget)
    with progress_bar(Console(stderr=True)) as bar:
        content = evaluate_world(world, settings, device=device, echo=typer.echo, progress=show_training(bar))
    content["settings"] |= {"data": data.name, "split": split, "train_share": train_share, "max_tokens": max_tokens}
    show_report(content, typer.echo)
    if json_file is not None:
        write_report(json_file, content)
