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
YAML_ERRORS = (yaml.YAMLError, RecursionError, ValueError)
"""What reading and parsing a YAML file raises; the last is of bytes that are no text, and of values like dates."""
_QUOTE = re.compile(r"['\"]")
_OWN_QUOTE = re.compile(r"'(?:<[a-z ]+>|[^\w'])'")
"""What a message of the parser quotes of its own: a kind of token, or a sign."""


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
    raw, problem = _read_yaml(file)
    # Raised here and below, not where it is caught: the error would keep what it is made of, and that holds values.
    if problem is not None:
        raise ConfigError(f"{file}: {problem}")
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: expected a mapping with the key 'sources', found {type(raw).__name__}")
    if "root" in raw:
        raise ConfigError(f"{file}: unknown key 'root'; known: {', '.join(_file_keys())}")
    expanded = _expand(raw, file)
    try:
        config, problem = Config.model_validate({**expanded, "root": root}), None
    except ValidationError as error:
        problem = "\n".join(_explain(file, raw, found) for found in error.errors())
    if problem is not None:
        raise ConfigError(problem)
    return config.model_copy(update={"ledger": absolute_sqlite_url(config.ledger, root)})


def yaml_problem(error: Exception) -> str:
    """Return why a file is no YAML, and where, without a word of the file: it may be a password.

    Parameters
    ----------
    error
        What reading and parsing raised: one of :data:`YAML_ERRORS`.

    Examples
    --------
    >>> for text in ("ledger: @secret", "ledger: *secret", "ledger: 2026-99-99"):
    ...     try:
    ...         yaml.safe_load(text)
    ...     except YAML_ERRORS as error:
    ...         yaml_problem(error)
    "line 1, column 9: found character '@' that cannot start any token"
    'line 1, column 9: found undefined alias'
    'a value is none of its kind, such as a date without such a day'
    """
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start + 1} is not UTF-8"
    if not isinstance(error, yaml.YAMLError):
        return "a value is none of its kind, such as a date without such a day"
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return type(error).__name__
    problem = error.problem or ""
    if _QUOTE.search(_OWN_QUOTE.sub("", problem)):
        problem = _QUOTE.split(problem, maxsplit=1)[0].strip()
    return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {problem}"


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


def _read_yaml(file: Path) -> tuple[Any, str | None]:
    """Return what a file holds, or what is wrong with it."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8")), None
    except YAML_ERRORS as error:
        return None, f"not valid YAML: {yaml_problem(error)}"


def _expand(value: Any, file: Path, above: frozenset[int] = frozenset()) -> Any:
    """Return a value with its variables; ``above`` are the mappings and lists that it lies in."""
    if isinstance(value, dict | list):
        if id(value) in above:
            raise ConfigError(f"{file}: a value holds itself, by an alias (`*name`) of its own anchor; write it out")
        above = above | {id(value)}
    if isinstance(value, dict):
        return {key: _expand(item, file, above) for key, item in value.items()}
    if isinstance(value, list):
        return [_expand(item, file, above) for item in value]
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
