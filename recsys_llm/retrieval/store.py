"""Opening a Feast repository from wherever the process runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_llm.config import YAML_ERRORS, absolute_sqlite_url, yaml_problem
from recsys_llm.errors import ConfigError, did_you_mean
from recsys_llm.passwords import without_passwords
from recsys_llm.registry_guard import check_kind, guard_registries

if TYPE_CHECKING:
    import feast


def open_store(repository: Path | str, *, config_file: str | None = None) -> feast.FeatureStore:
    """Open a feature repository.

    Feast takes a relative sqlite registry from the working directory; here it starts at the repository, so that a
    service may run from anywhere.

    Parameters
    ----------
    repository
        Folder with ``feature_store.yaml``.
    config_file
        Another file in it, such as ``feature_store.prod.yaml``; None: ``feature_store.yaml``.

    Raises
    ------
    ConfigError
        There is no such file, or Feast refuses it.
    UnsafeRegistryError
        The registry holds a row that would run code, or is of a kind that can't be checked for it.
    """
    import feast
    from feast.repo_config import FeastConfigError, load_repo_config
    from feast.utils import get_default_yaml_file_path

    root = Path(repository).resolve()
    file = root / config_file if config_file else Path(get_default_yaml_file_path(root))
    if not file.is_file():
        raise ConfigError(f"{file}: not found; run `recsys-llm init {root}` to make a feature repository")
    try:
        config, problem = load_repo_config(root, file), None
    except FeastConfigError as error:
        problem = _problems(error)
    except YAML_ERRORS as error:
        problem = f"not valid YAML: {yaml_problem(error)}"
    except (TypeError, AttributeError, KeyError):
        problem = "expected a mapping with the keys project, registry, provider"
    if problem is not None:  # here, so that what was caught, and holds the file's values, isn't kept as the context
        raise ConfigError(f"{file}: {problem}")
    guard_registries()
    check_kind(config.registry)
    if isinstance(config.registry.path, str):
        config.registry.path = absolute_sqlite_url(config.registry.path, root)
    return feast.FeatureStore(repo_path=str(root), config=config)


def _problems(error: Any) -> str:
    """Return what Feast's configuration lacks or has wrong, without the values: one of them may hold a password."""
    found = error._error_message  # pydantic's ValidationError
    if not hasattr(found, "errors"):
        return without_passwords(str(error))
    listed = found.errors(include_input=False, include_url=False)
    told = "; ".join(f"{'.'.join(map(str, one['loc'])) or '(top level)'}: {one['msg']}" for one in listed)
    return without_passwords(told)


def known_view(store: feast.FeatureStore, name: str) -> feast.FeatureView:
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
