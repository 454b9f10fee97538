"""``recsys_llm.yaml``: what the engine computes features from.

``${VAR}`` is expanded from the environment, relative paths start at the feature repository. Unknown keys and values out
of range are refused with file, key and what would be right.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from recsys_llm.config.sections import Config
from recsys_llm.errors import ConfigError, did_you_mean
from recsys_llm.passwords import without_passwords

FILE_NAME = "recsys_llm.yaml"


def load_config(repository: Path | str) -> Config:
    """Read ``recsys_llm.yaml`` of a feature repository.

    Raises
    ------
    ConfigError
        The file is missing, is no mapping, has an unknown key or a value out of range; all are named at once.
    """
    root = Path(repository).resolve()
    file = root / FILE_NAME
    if not file.is_file():
        raise ConfigError(f"{file}: not found; run `recsys-llm init {root}` to make a feature repository")
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: not valid YAML: {yaml_problem(error)}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: expected a mapping with the key 'sources', found {type(raw).__name__}")
    if "root" in raw:
        raise ConfigError(f"{file}: unknown key 'root'; known: {', '.join(_file_keys())}")
    try:
        config = Config.model_validate({**_expand(raw, file), "root": root})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(file, raw, problem) for problem in error.errors())) from None
    return config.model_copy(update={"ledger": absolute_sqlite_url(config.ledger, root)})


def yaml_problem(error: yaml.YAMLError) -> str:
    """Return what is wrong and where, without the line itself: it may hold a password.

    Examples
    --------
    >>> try:
    ...     yaml.safe_load("ledger: @secret")
    ... except yaml.YAMLError as error:
    ...     yaml_problem(error)
    "line 1, column 9: found character '@' that cannot start any token"
    """
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return type(error).__name__
    return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"


def absolute_sqlite_url(url: str, root: Path) -> str:
    """Return ``url`` with a relative sqlite path made absolute; other URLs are returned as they are.

    Examples
    --------
    >>> absolute_sqlite_url("sqlite:///data/ledger.db", Path("/repo"))
    'sqlite:////repo/data/ledger.db'
    >>> absolute_sqlite_url("postgresql+psycopg://db/ledger", Path("/repo"))
    'postgresql+psycopg://db/ledger'
    """
    match = re.match(r"^(sqlite(?:\+\w+)?:///)(?!/)(?!:memory:)(.+)$", url)
    return f"{match[1]}{root / match[2]}" if match else url


def _file_keys() -> list[str]:
    return sorted(name for name in Config.model_fields if name != "root")


def _expand(value: Any, file: Path) -> Any:
    if isinstance(value, dict):
        return {key: _expand(item, file) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, file) for item in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)\}", lambda match: _variable(match[1], file), value)
    return value


def _variable(name: str, file: Path) -> str:
    if name not in os.environ:
        raise ConfigError(f"{file}: ${{{name}}} is used but the environment variable {name} is not set")
    return os.environ[name]


def _explain(file: Path, raw: Any, problem: Any) -> str:
    """Return one line for a problem that pydantic found: file, key, what was expected, what was found."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location) or "(top level)"
    if problem["type"] == "extra_forbidden":
        return f"{file}: unknown key {key!r}; {did_you_mean(location[-1], _known_keys(location[:-1]))}"
    if problem["type"] == "missing":
        return f"{file}: key {key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    found = problem["input"]
    shown = (
        ""
        if isinstance(found, dict | BaseModel) or problem["type"] == "value_error"
        else f", found {without_passwords(repr(found))}"
    )
    return f"{file}: {key}: {message}{shown}"


def _known_keys(location: list[str]) -> list[str]:
    """Return the keys of the section at ``location``, a path that pydantic has walked."""
    section: type[BaseModel] = Config
    for part in location:
        if part in section.model_fields:
            section = _section_in(section.model_fields[part].annotation) or section
    return _file_keys() if section is Config else sorted(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """Return the section class that ``annotation`` is, or holds as ``X | None`` or ``dict[str, X]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_in(part) for part in get_args(annotation))
    return next((section for section in found if section is not None), None)
