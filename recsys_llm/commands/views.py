"""Computed views, as the commands see them; ``recsys-llm rebuild``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from recsys_llm.config import load_config
from recsys_llm.producers import open_ledger
from recsys_llm.retrieval import open_store
from recsys_llm.retrieval.store import known_view

if TYPE_CHECKING:
    from feast import FeatureView


def feature_view(repository: Path, name: str, *, config_file: str | None = None) -> FeatureView:
    """Return a view of the registry.

    Raises
    ------
    ConfigError
        There is no such view.
    """
    return known_view(open_store(repository, config_file=config_file), name)


def rebuild_view(repository: Path, name: str, *, config_file: str | None = None) -> None:
    """Make the next materialisation of a view read its parts anew, publish them, and compute what was lost.

    Raises
    ------
    ConfigError
        There is no such view.
    LedgerError
        The view is being materialised.
    """
    feature_view(repository, name, config_file=config_file)
    ledger = open_ledger(load_config(repository))
    try:
        with ledger.lock(name):
            ledger.forget(name)
    finally:
        ledger.close()
