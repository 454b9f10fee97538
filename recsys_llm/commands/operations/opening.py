"""A computed view with all that holds its rows: parts, ledger, online store."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from recsys_llm.config import load_config
from recsys_llm.engine.engine import parts_directory
from recsys_llm.errors import ConfigError
from recsys_llm.producers import Ledger, Parts, ProducerTag, open_ledger
from recsys_llm.producers.parts import part_files, read_manifest
from recsys_llm.retrieval import open_store
from recsys_llm.retrieval.store import known_view

if TYPE_CHECKING:
    import feast


@dataclass(frozen=True)
class StoredView:
    """One computed view."""

    store: feast.FeatureStore
    definition: feast.FeatureView
    ledger: Ledger

    @property
    def name(self) -> str:
        """Name of the view."""
        return str(self.definition.name)

    @property
    def join_key(self) -> str:
        """Column of the entity's key."""
        return str(self.definition.join_keys[0])

    @property
    def directory(self) -> Path:
        """Where the parts lie.

        Raises
        ------
        ConfigError
            Outside the repository.
        """
        return parts_directory(self.definition, Path(self.store.repo_path))

    @property
    def has_parts(self) -> bool:
        """Whether any row was computed; no part is opened."""
        return bool(part_files(self.directory))

    @property
    def parts(self) -> Parts:
        """The parts; see :func:`parts_in`."""
        return parts_in(self.directory, self.name, self.ledger)


def parts_in(directory: Path, view: str, ledger: Ledger) -> Parts:
    """Return the parts that a directory holds; whether the view is registered doesn't matter.

    Those that are rewritten keep what they say of themselves; an empty one says what the first part does.
    """
    manifest = next((read_manifest(file) for file in part_files(directory)), {})
    bound = ledger.fingerprint(view)
    manifest |= {} if bound is None else {"fingerprint": bound}
    return Parts(directory, view, {key: value for key, value in manifest.items() if key != "view"})


@contextmanager
def stored_views(repository: Path, config_file: str | None = None) -> Iterator[list[StoredView]]:
    """Open all views that recsys_llm computes.

    Raises
    ------
    ConfigError
        The repository can't be opened.
    """
    store, ledger = open_store(repository, config_file=config_file), open_ledger(load_config(repository))
    try:
        computed = [view for view in store.list_feature_views() if ProducerTag.of(view.name, view.tags) is not None]
        yield [StoredView(store, view, ledger) for view in computed]
    finally:
        ledger.close()


@contextmanager
def stored_view(repository: Path, name: str, config_file: str | None = None) -> Iterator[StoredView]:
    """Open one of them.

    Raises
    ------
    ConfigError
        There is no such view, or Feast itself materialises it.
    """
    with stored_views(repository, config_file) as views:
        for view in views:
            if view.name == name:
                yield view
                return
        known_view(open_store(repository, config_file=config_file), name)
        raise ConfigError(f"view {name}: carries no recsys_llm tag, so Feast itself materialises it")
