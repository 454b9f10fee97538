"""Options that several commands of ``recsys-llm`` share."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Optional

import typer

from recsys_llm.errors import ConfigError
from recsys_llm.timestamps import as_utc, now

Repository = Annotated[
    Path, typer.Option("--repository", "-C", help="The feature repository.", exists=True, file_okay=False)
]
StoreFile = Annotated[
    Optional[str],  # noqa: UP045
    typer.Option("--feature-store-yaml", "-f", help="As for feast, such as feature_store.prod.yaml."),
]
JsonFile = Annotated[Optional[Path], typer.Option("--json", help="Also write the figures to this file.")]  # noqa: UP045
Resume = Annotated[bool, typer.Option("--resume/--restart", help="Go on where a stopped run of the same settings was.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]


def feast_command(repository: Path, store_file: str | None) -> str:
    """Return how a shell starts ``feast`` on a repository.

    Examples
    --------
    >>> feast_command(Path("my_features"), "feature_store.prod.yaml")
    'feast -c my_features -f my_features/feature_store.prod.yaml'
    """
    return f"feast -c {repository}" + ("" if store_file is None else f" -f {repository / store_file}")


def parse_time(text: str) -> datetime:
    """Read a time as Feast's command line does: without a zone it is UTC.

    Raises
    ------
    ConfigError
        ``text`` is no time in ISO 8601.

    Examples
    --------
    >>> parse_time("2024-06-01").isoformat()
    '2024-06-01T00:00:00+00:00'
    """
    try:
        value = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"expected a time such as 2024-06-01 or 2024-06-01T12:00:00+00:00, found {text!r}") from None
    return as_utc(value if value.tzinfo else value.replace(tzinfo=now().tzinfo))
