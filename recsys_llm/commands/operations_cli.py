"""``recsys-llm repair | compact | forget | doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recsys_llm.cli_options import JsonFile, Repository, StoreFile

app = typer.Typer()


@app.command()
def repair(
    view: Annotated[str, typer.Argument(help="A feature view that recsys_llm computes.")],
    repository: Repository = Path("."),
    store_file: StoreFile = None,
) -> None:
    """Fill the online store with all stored rows of VIEW again; nothing is computed.

    Example: recsys-llm repair item_text_embedding_v1 -C my_features -f feature_store.prod.yaml
    """
    from recsys_llm.commands.operations.repairing import repair_view

    rows = repair_view(repository, view, config_file=store_file)
    typer.echo(f"{view}: published the newest of {rows:,} stored rows; none was computed")


@app.command()
def compact(
    view: Annotated[str, typer.Argument(help="A feature view that recsys_llm computes.")],
    rows: Annotated[int, typer.Option(help="Rows of a merged part, about.", min=1)] = 1_000_000,
    repository: Repository = Path("."),
    store_file: StoreFile = None,
) -> None:
    """Merge the small parts of VIEW; its rows, and so its history, stay what they are.

    Example: recsys-llm compact user_stats -C my_features
    """
    from recsys_llm.commands.operations.repairing import compact_view

    done = compact_view(repository, view, rows_per_part=rows, config_file=store_file)
    typer.echo(f"{view}: {done.parts_before:,} parts are now {done.parts_after:,}; {done.rows:,} rows were rewritten")


@app.command()
def forget(
    user: Annotated[str, typer.Option(help="The user's id.")],
    repository: Repository = Path("."),
    store_file: StoreFile = None,
    json_file: JsonFile = None,
) -> None:
    """Remove a person's rows offline, online and in the ledger, and look whether any is left.

    Ends with 1 where rows are left, such as in a source table. Counts over many people and trained models stay.

    Example: recsys-llm forget --user 42 -C my_features
    """
    from recsys_llm.bench.report import write_report
    from recsys_llm.commands.operations.forgetting import forget_user

    done = forget_user(repository, user, config_file=store_file)
    typer.echo(str(done))
    if json_file is not None:
        write_report(json_file, {"command": "forget", **done.as_dict()})
    if done.left:
        raise typer.Exit(1)


@app.command()
def doctor(
    repository: Repository = Path("."),
    store_file: StoreFile = None,
    max_lag_hours: Annotated[float, typer.Option(help="Since the end of a view's last materialisation.")] = 36.0,
    min_coverage: Annotated[float, typer.Option(help="Share of the source's keys with a row.")] = 0.95,
    sample: Annotated[int, typer.Option(help="Keys of each view to compare with the online store.", min=1)] = 500,
    limit: Annotated[
        list[str], typer.Option(help="NAME=VALUE of another limit, such as max_psi=0.3; may be given again.")
    ] = [],  # noqa: B006  typer hands out a new one
    json_file: JsonFile = None,
) -> None:
    """Look for what is wrong: stale views, an online store that lost rows, mixed models, drift, missing keys.

    Ends with 1 where something is wrong.

    Example: recsys-llm doctor -C my_features -f feature_store.prod.yaml --json doctor.json
    """
    from recsys_llm.bench.report import write_report
    from recsys_llm.commands.operations.doctor import Limits, examine

    limits = Limits(max_lag_hours=max_lag_hours, min_coverage=min_coverage, sample=sample).changed(limit)
    findings = examine(repository, limits=limits, config_file=store_file)
    for finding in findings:
        typer.echo(str(finding))
    wrong = sum(not finding.ok for finding in findings)
    typer.echo(f"{len(findings)} checks, {wrong} of them failed")
    if json_file is not None:
        write_report(json_file, {"command": "doctor", "findings": [finding.as_dict() for finding in findings]})
    if wrong:
        raise typer.Exit(1)
