"""Real feature repositories for tests: made by ``init``, applied by Feast's own command, in this process."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from click.testing import CliRunner
from feast.cli.cli import cli as feast_command

from recsys_llm import schema
from recsys_llm.commands.feast_cli import FeastCommandError
from recsys_llm.commands.repository import init_repository
from recsys_llm.retrieval import open_store

START = datetime(1960, 1, 1, tzinfo=UTC)
CHEAP_VIEWS = (schema.ITEM_STATS, schema.USER_STATS)
VIEWS = (
    schema.ITEM_TEXT_EMBEDDING,
    schema.USER_TEXT_EMBEDDING,
    schema.USER_NEXT_ITEMS,
    schema.USER_STATES,
    schema.ITEM_NEXT_VECTORS,
    *CHEAP_VIEWS,
)


def make_repository(target: Path, data: Path) -> Path:
    """Make and apply a feature repository over a data folder."""
    repository = init_repository(target, data=data)
    apply(repository)
    return repository


def apply(repository: Path, *, config_file: Path | None = None) -> None:
    """Run ``feast apply``; ``config_file`` stands in for ``feature_store.yaml``."""
    feast(repository, *([] if config_file is None else ["-f", str(config_file)]), "apply")


def feast(repository: Path, *arguments: str) -> list[str]:
    """Do what :func:`recsys_llm.commands.feast_cli.run_feast` does with Feast's own command, in this process.

    A process of its own spends seconds on imports. Tests of ``run_feast``, of what a whole process prints, and of how
    it ends, start one nevertheless.
    """
    with own_modules(repository), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as run_feast has it
        done = CliRunner().invoke(feast_command, ["-c", str(repository), *arguments])
    if done.exit_code != 0:
        said = f"`feast {' '.join(arguments)}` in {repository} ended with {done.exit_code}:\n{done.output}"
        raise FeastCommandError(said) from done.exception
    return list(done.stdout.splitlines())


@contextlib.contextmanager
def own_modules(repository: Path) -> Iterator[None]:
    """Undo what Feast's command leaves in a process: the folder, the path, and modules that every one names alike.

    A second repository would find the first one's ``feature_views`` in ``sys.modules``.
    """
    folder, path, bytecode = Path.cwd(), list(sys.path), sys.dont_write_bytecode
    names = {file.stem for file in repository.glob("*.py")}
    if loaded := names & set(sys.modules):
        raise RuntimeError(f"modules of another repository are loaded: {sorted(loaded)}")
    sys.dont_write_bytecode = True  # a test may rewrite a file within the second that bytecode is dated by
    importlib.invalidate_caches()
    try:
        yield
    finally:
        os.chdir(folder)
        sys.path[:] = path
        sys.dont_write_bytecode = bytecode
        for name in names:
            sys.modules.pop(name, None)


def use_redis(repository: Path, url: str, **settings: Any) -> None:
    """Put our Redis store at ``redis://host:port/...`` into feature_store.yaml; `feast apply` comes after."""
    file = repository / "feature_store.yaml"
    content = yaml.safe_load(file.read_text())
    content["online_store"] = {
        "type": "recsys_llm.stores.RedisOnlineStore",
        "connection_string": url.removeprefix("redis://").split("/")[0],
        "timeout_ms": 5_000,
    } | settings
    file.write_text(yaml.safe_dump(content))


def materialize(repository: Path, *views: str, end: datetime, start: datetime = START) -> None:
    """Materialise views in this process; what ``feast materialize`` does, without seconds of imports."""
    open_store(repository).materialize(start, end, feature_views=list(views))


def offline(repository: Path, view: str) -> pd.DataFrame:
    """Return all stored rows of a view, sorted, without what depends on the time at which they were written."""
    files = sorted((repository / "data" / "features" / view).glob("*.parquet"))
    table = pa.concat_tables([pq.read_table(file).replace_schema_metadata(None) for file in files])
    written = {schema.CREATED_TIMESTAMP, schema.ROW_ID} & set(table.column_names)
    frame = table.drop_columns(sorted(written)).to_pandas()
    return frame.sort_values(by=[frame.columns[0], schema.EVENT_TIMESTAMP]).reset_index(drop=True)


def online(repository: Path, view: str, keys: list[str]) -> dict[str, Any]:
    """Return what stock Feast reads online."""
    store = open_store(repository)
    definition = store.get_feature_view(view)
    key = definition.join_keys[0]
    refs = [f"{view}:{field.name}" for field in definition.features if field.name != schema.ROW_ID]
    return dict(store.get_online_features(refs, [{key: value} for value in keys]).to_dict())
