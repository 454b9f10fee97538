"""``recsys-llm init``: a feature repository of one's own, from the packaged template."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from recsys_llm.config import FILE_NAME, load_config
from recsys_llm.errors import ConfigError, DataError
from recsys_llm.schema import CATEGORY, EVENT_TIMESTAMP, ITEM_ID, USER_ID

STORE_FILE = "feature_store.yaml"

NOT_INTERESTED = ("cancel", "return", "refund")
"""Kinds of events that say the opposite of interest."""

SEGMENT_COLUMN = "country"
"""Column, of events or of users, that groups users."""

STARS, LIKED_FROM = 5.0, 4.0
"""On the usual scale of 1 to 5 stars. On any other, every event counts as liked until recsys_llm.yaml says more."""


def template() -> Path:
    """Return the packaged feature repository; in a checkout, the one at its top level."""
    packaged = Path(str(files("recsys_llm") / "_feature_repo"))
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[2] / "feature_repo"


def init_repository(target: Path, *, data: Path | None = None) -> Path:
    """Copy the template to ``target`` and return it.

    Parameters
    ----------
    target
        Must not exist, or be empty.
    data
        Folder with ``items.parquet`` and ``interactions.parquet``, as in the README's section on one's own tables. It
        is named in ``recsys_llm.yaml``, with the columns that are found in it, and not copied.

    Raises
    ------
    ConfigError
        ``target`` holds files.
    DataError
        ``data`` lacks one of the two tables.
    """
    if target.is_file() or (target.exists() and any(target.iterdir())):
        raise ConfigError(f"{target}: exists and is no empty directory; name a new one")
    sources = None if data is None else _sources(data.resolve())
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(template(), target, ignore=shutil.ignore_patterns("data", "__pycache__"), dirs_exist_ok=True)
    for folder in ("data/features", "data/models", "data/source"):
        (target / folder).mkdir(parents=True)
    _make_paths_absolute(target)
    if sources is not None:
        _write_config(target, sources)
    load_config(target)
    return target


def _make_paths_absolute(target: Path) -> None:
    """Let the repository be used from any directory: Feast resolves a registry's sqlite path at the process's own."""
    file = target / STORE_FILE
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("sqlite:///data/", f"sqlite:///{target.resolve()}/data/"), encoding="utf-8")


def _write_config(target: Path, sources: dict[str, Any]) -> None:
    file = target / FILE_NAME
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    settings["sources"] = sources
    head = "# What `feast materialize` computes features from. ${VAR} is expanded; unknown keys are refused.\n"
    file.write_text(head + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _sources(data: Path) -> dict[str, Any]:
    """Return the ``sources`` section for a data folder, by the columns that its tables have."""
    items, interactions, tags, users = (data / f"{name}.parquet" for name in ("items", "interactions", "tags", "users"))
    for file in (items, interactions):
        if not file.is_file():
            raise DataError(
                f"{file}: not found; a data folder holds items.parquet and interactions.parquet (see the README)"
            )
    sources: dict[str, Any] = {
        "items": {
            "parquet": str(items),
            "key": ITEM_ID,
            "timestamp": EVENT_TIMESTAMP,
            "category": CATEGORY if CATEGORY in _columns(items) else None,
        },
        "interactions": _events(interactions),
    }
    if users.is_file():
        sources["users"] = {"parquet": str(users), "key": USER_ID, "timestamp": EVENT_TIMESTAMP}
        if "segment" not in sources["interactions"] and SEGMENT_COLUMN in _columns(users):
            sources["users"]["segment"] = SEGMENT_COLUMN
    if tags.is_file():
        sources["user_words"] = {"parquet": str(tags), "user": USER_ID, "text": "tag", "timestamp": EVENT_TIMESTAMP}
    return sources


def _events(file: Path) -> dict[str, Any]:
    columns = _columns(file)
    events: dict[str, Any] = {"parquet": str(file), "user": USER_ID, "item": ITEM_ID, "timestamp": EVENT_TIMESTAMP}
    if "event" in columns:
        events |= {"event": "event", "ignore_events": list(NOT_INTERESTED)}
    if "rating" in columns:
        events["rating"] = "rating"
        if _maximum(file, "rating") == STARS:
            events["liked_from"] = LIKED_FROM
    price = next((name for name in ("price", "unit_price") if name in columns), None)
    if price is not None:
        events["price"] = price
    if SEGMENT_COLUMN in columns:
        events["segment"] = SEGMENT_COLUMN
    return events


def _columns(file: Path) -> set[str]:
    try:
        return set(pq.read_schema(file).names)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{file}: expected a parquet file, found something else ({error}); write it anew") from None


def _maximum(file: Path, column: str) -> Any:
    return pc.max(pq.read_table(file, columns=[column]).column(column)).as_py()


def path_in(repository: Path, path: Path) -> str:
    """Return a path as recsys_llm.yaml takes it: relative ones start at the repository."""
    absolute, root = path.resolve(), repository.resolve()
    return str(absolute.relative_to(root)) if absolute.is_relative_to(root) else str(absolute)
