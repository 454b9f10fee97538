"""The Feast repositories that benchmarks make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import feast


def repo_config(folder: Path, online_store: dict[str, Any], *, project: str = "bench", **more: Any) -> feast.RepoConfig:
    """Return the settings of a repository in ``folder``: DuckDB offline, a registry of the project's own.

    Parameters
    ----------
    online_store, more
        As in feature_store.yaml.
    """
    import feast

    return feast.RepoConfig(
        project=project,
        provider="local",
        registry={"registry_type": "sql", "path": f"sqlite:///{folder / project}.db"},
        offline_store={"type": "duckdb"},
        online_store=online_store,
        entity_key_serialization_version=3,
        repo_path=folder,
        **more,
    )
