"""Which data the quickstart runs on."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from recsys_llm.errors import DataError, DownloadError
from recsys_llm.sources import fetch_movielens_small, write_simulated

DATA_VARIABLE = "RECSYS_LLM_DATA"
DEFAULT_DATA_SET = "movielens_small"


@dataclass(frozen=True)
class DataChoice:
    """A data folder, and how it came to be chosen."""

    name: str
    path: Path
    simulated: bool = False
    warning: str | None = None
    """Said loudly: why this is not the data that one would expect."""


def check_data(explicit: Path | None, *, workdir: Path) -> None:
    """Refuse a ``--data`` that can't be used, before anything in ``workdir`` is touched.

    Raises
    ------
    DataError
        It is no directory, or lies inside ``workdir``, which a quickstart replaces.
    """
    if explicit is None:
        return
    if not explicit.is_dir():
        raise DataError(
            f"{explicit}: no such directory; --data names a folder with items.parquet and interactions.parquet"
        )
    if explicit.resolve().is_relative_to(workdir.resolve()):
        raise DataError(f"{explicit}: lies inside the --workdir {workdir}, which is replaced; copy the data elsewhere")


def choose_data(explicit: Path | None, *, workdir: Path, seed: int) -> DataChoice:
    """Return ``explicit``; else the shared data set; else a download; else, with a warning, simulated data."""
    if explicit is not None:
        return DataChoice(explicit.resolve().name, explicit.resolve())
    shared = os.environ.get(DATA_VARIABLE)
    if shared and (Path(shared) / DEFAULT_DATA_SET).is_dir():
        return DataChoice(DEFAULT_DATA_SET, (Path(shared) / DEFAULT_DATA_SET).resolve())
    try:
        return DataChoice(DEFAULT_DATA_SET, fetch_movielens_small(cache_directory()))
    except DownloadError as error:
        path = write_simulated(workdir / "simulated_data", seed=seed)
        warning = f"MovieLens can't be fetched ({error}); every figure below is of SIMULATED data"
        return DataChoice("simulated", path, simulated=True, warning=warning)


def cache_directory() -> Path:
    """Return where downloads are kept: ``$XDG_CACHE_HOME/recsys_llm``, by default ``~/.cache/recsys_llm``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recsys_llm"
