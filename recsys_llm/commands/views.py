"""Computed views, as the commands see them; ``recsys-llm rebuild``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from recsys_llm.config import load_config
from recsys_llm.errors import ConfigError, did_you_mean
from recsys_llm.producers import open_ledger
from recsys_llm.retrieval import open_store

if TYPE_CHECKING:
    from feast import FeatureStore, FeatureView


def feature_view(repository: Path, name: str) -> FeatureView:
    """Return a view of the registry.

    Raises
    ------
    ConfigError
        There is no such view.
    """
    return known_view(open_store(repository), name)


def known_view(store: FeatureStore, name: str) -> FeatureView:
    """Return a view of an open store.

    Raises
    ------
    ConfigError
        There is no such view.
    """
    views = {view.name: view for view in store.list_feature_views()}
    if name not in views:
        raise ConfigError(
            f"unknown feature view {name!r}; {did_you_mean(name, views)} (run `feast apply` for a new one)"
        )
    return views[name]


def rebuild_view(repository: Path, name: str) -> None:
    """Make the next materialisation of a view read its parts anew, publish them, and compute what was lost.

    Raises
    ------
    ConfigError
        There is no such view.
    LedgerError
        The view is being materialised.
    """
    feature_view(repository, name)
    ledger = open_ledger(load_config(repository))
    try:
        with ledger.lock(name):
            ledger.forget(name)
    finally:
        ledger.close()
