"""``recsys_llm.yaml``: what the engine computes features from.

Typed and frozen. ``${VAR}`` is expanded from the environment, relative paths start at the feature repository. Unknown
keys and values out of range are refused with file, key and what would be right.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from recsys_llm.errors import ConfigError, did_you_mean
from recsys_llm.schema import CATEGORY, EVENT_TIMESTAMP, ITEM_ID, NAME_PATTERN, USER_ID
from recsys_llm.timestamps import parse_granularity

FILE_NAME = "recsys_llm.yaml"
SPECIAL_TOKENS = 2
"""That a BERT-family encoder puts around a text."""


def _known_granularity(text: str) -> str:
    try:
        parse_granularity(text)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return text


def _known_name(text: str) -> str:
    if NAME_PATTERN.match(text) is None:
        raise ValueError(f"a name must match {NAME_PATTERN.pattern}, found {text!r}")
    return text


Granularity = Annotated[str, AfterValidator(_known_granularity)]
"""``event``, or a period such as ``30m``, ``1h``, ``1d``."""
Name = Annotated[str, AfterValidator(_known_name)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TableConfig(_Section):
    """Where rows come from: a parquet file, directory or glob; or a query on any SQLAlchemy URL."""

    parquet: str | None = None
    """Path; relative ones start at the feature repository."""
    sql: str | None = Field(default=None, repr=False)
    """SQLAlchemy URL. Not shown by ``repr``: it may hold a password."""
    query: str | None = None
    """A SELECT statement, for ``sql``."""
    timestamp: str = EVENT_TIMESTAMP
    """Column of type timestamp, UTC."""

    @property
    def origin(self) -> str:
        """Name for messages: the path, or that it is a query."""
        return self.parquet if self.parquet is not None else "sql query"

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.parquet is None) == (self.sql is None):
            raise ValueError("give exactly one of 'parquet' and 'sql'")
        if (self.sql is None) != (self.query is None):
            raise ValueError("'sql' and 'query' go together")
        return self


class ItemsConfig(TableConfig):
    """One row per item and version of its text."""

    key: str = ITEM_ID
    category: str | None = CATEGORY
    """Column of comma-separated category names; null: there is none."""


class InteractionsConfig(TableConfig):
    """One row per event of a user with an item."""

    user: str = USER_ID
    item: str = ITEM_ID
    event: str | None = None
    """Column with the kind of event."""
    ignore_events: tuple[str, ...] = ()
    """Kinds that are no sign of interest, such as ``cancel``."""
    rating: str | None = None
    """Column with a rating."""
    liked_from: float | None = None
    """Ratings at or above this count as liked; null: every event does."""
    price: str | None = None
    """Column with the price paid."""
    segment: str | None = None
    """Column with the user's segment at the event, such as a country."""

    @model_validator(mode="after")
    def _columns_for_rules(self) -> Self:
        if self.ignore_events and self.event is None:
            raise ValueError("'ignore_events' needs the column name in 'event'")
        if self.liked_from is not None and self.rating is None:
            raise ValueError("'liked_from' needs the column name in 'rating'")
        return self


class UsersConfig(TableConfig):
    """One row per user and version of their profile."""

    key: str = USER_ID
    segment: str | None = None
    """Column with the user's segment, such as a country."""


class UserWordsConfig(TableConfig):
    """What users wrote themselves: tags, queries, reviews."""

    user: str = USER_ID
    text: str = "text"


def _as_list(value: Any) -> Any:
    if value is None:
        return ()
    return value if isinstance(value, list | tuple) else (value,)


class SourcesConfig(_Section):
    """The raw tables."""

    items: ItemsConfig
    interactions: InteractionsConfig
    users: UsersConfig | None = None
    user_words: Annotated[tuple[UserWordsConfig, ...], BeforeValidator(_as_list)] = ()
    """One table or a list of tables."""

    @model_validator(mode="after")
    def _one_segment(self) -> Self:
        if self.interactions.segment is not None and self.users is not None and self.users.segment is not None:
            raise ValueError("give 'segment' in 'users' or in 'interactions', not in both")
        return self


class UserTokensConfig(_Section):
    """Tokens of each part of a user's text at most, its separators included; the newest come first, the rest is cut."""

    profile: int | None = Field(default=None, ge=0, le=8192)
    """null: an eighth of the encoder's ``max_tokens``."""
    items: int | None = Field(default=None, ge=0, le=8192)
    """null: half of ``max_tokens``."""
    words: int | None = Field(default=None, ge=0, le=8192)
    """null: what the other two leave."""


class UserDocumentConfig(_Section):
    """How a user's profile and history become a text."""

    granularity: Granularity = "1d"
    """How fresh a user's row is; a day ends at midnight UTC."""
    recent_items: int = Field(default=8, ge=1, le=100)
    """Most recent liked items in the text."""
    recent_words: int = Field(default=8, ge=0, le=100)
    """Most recent words of the user's own (rows of ``user_words``) in the text."""
    template: str = "{title}"
    """One item in a user's text, from columns of ``items``."""
    profile_template: str | None = None
    """The profile in a user's text, from columns of ``users``; null: none of it."""
    tokens: UserTokensConfig = UserTokensConfig()
    cold_start_days: int = Field(default=30, ge=0, le=3650)
    """Days whose most liked items make the nightly text of each segment and of everyone; 0: no such rows."""
    cold_start_users: int = Field(default=5, ge=1, le=100_000)
    """A segment whose likes of these days are of fewer users has no row: it would show what they like."""


class TextEncoderConfig(_Section):
    """A BERT-family encoder and what it reads."""

    model: str
    """A directory, a Hugging Face id, or a package that carries weights."""
    pooling: Literal["mean", "cls"] = "mean"
    normalize: bool = True
    max_tokens: int = Field(default=256, ge=8, le=8192)
    """Tokens per text, special ones included; the rest is cut."""
    transform: str | None = None
    """Directory of a map that `recsys-llm text compress` or `recsys-llm migrate` fitted to this encoder's vectors."""
    template: str = "{title}. {text}"
    """An item's text, from columns of ``items``."""
    user: UserDocumentConfig = UserDocumentConfig()

    @property
    def user_tokens(self) -> tuple[int, int, int]:
        """Tokens of a user's profile, items and words at most; together they fit into ``max_tokens``."""
        room, asked = self.max_tokens - SPECIAL_TOKENS, self.user.tokens
        profile = room // 8 if asked.profile is None else asked.profile
        items = room // 2 if asked.items is None else asked.items
        return profile, items, room - profile - items if asked.words is None else asked.words

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if min(self.user_tokens) < 0 or sum(self.user_tokens) > self.max_tokens - SPECIAL_TOKENS:
            raise ValueError(
                f"'user.tokens' must fit into 'max_tokens' less {SPECIAL_TOKENS} special ones, "
                f"{self.max_tokens - SPECIAL_TOKENS}; found profile, items, words {self.user_tokens}"
            )
        return self


class SequenceModelConfig(_Section):
    """A trained SeqGAN and how it is asked."""

    checkpoint: str
    """Directory; relative ones start at the feature repository."""
    top_n: int = Field(default=20, ge=1, le=1000)
    """Predicted items per row."""
    granularity: Granularity = "event"
    filter_seen: bool | None = None
    """Leave out items that the user has had already; null: as the training data suggests."""
    item_vectors: Name | None = None
    """View of item text vectors that training starts from; null: item ids alone."""


class StatisticsConfig(_Section):
    """Counts and averages of items and users."""

    item_granularity: Granularity = "1d"
    user_granularity: Granularity = "event"
    recent_items: int = Field(default=50, ge=1, le=1000)
    """Length of a user's list of recent items."""
    categories: int = Field(default=10, ge=1, le=100)
    """Length of a user's list of categories."""

    @model_validator(mode="after")
    def _periods(self) -> Self:
        if self.item_granularity == "event":
            raise ValueError("'item_granularity' must be a period: an item's counts change with every event of anyone")
        return self


class Config(_Section):
    """The whole of ``recsys_llm.yaml``."""

    sources: SourcesConfig
    text_encoders: dict[Name, TextEncoderConfig] = {}
    sequence_models: dict[Name, SequenceModelConfig] = {}
    statistics: StatisticsConfig = StatisticsConfig()
    ledger: str = Field(default="sqlite:///data/ledger.db", repr=False)
    """SQLAlchemy URL of the ledger; a relative sqlite path starts at the feature repository."""
    chunk_rows: int = Field(default=2048, ge=1, le=1_000_000)
    """Rows that are computed, written and recorded together; what a killed run loses at most."""
    root: Path = Path(".")
    """The feature repository; set by :func:`load_config`, not a key of the file."""

    def path(self, relative: str) -> Path:
        """Return ``relative`` as an absolute path, starting at the feature repository."""
        return (self.root / relative).resolve()


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
        raise ConfigError(f"{file}: not valid YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: expected a mapping with the key 'sources', found {type(raw).__name__}")
    if "root" in raw:
        raise ConfigError(f"{file}: unknown key 'root'; known: {', '.join(_file_keys())}")
    try:
        config = Config.model_validate({**_expand(raw, file), "root": root})
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(file, raw, problem) for problem in error.errors())) from None
    return config.model_copy(update={"ledger": absolute_sqlite_url(config.ledger, root)})


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
    shown = "" if isinstance(found, dict | BaseModel) or problem["type"] == "value_error" else f", found {found!r}"
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
