"""The sections of ``recsys_llm.yaml``, typed and frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from recsys_llm.errors import ConfigError
from recsys_llm.schema import CATEGORY, EVENT_TIMESTAMP, ITEM_ID, NAME_PATTERN, USER_ID
from recsys_llm.timestamps import parse_granularity

SPECIAL_TOKENS = 2
"""That a BERT-family encoder puts around a text."""


def _known_granularity(text: str) -> str:
    try:
        parse_granularity(text)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return text


def _known_name(text: str) -> str:
    if NAME_PATTERN.fullmatch(text) is None:
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


class _ColdStart(_Section):
    cold_start_days: int = Field(default=30, ge=0, le=3650)
    """Days whose most liked items make the nightly rows of each segment and of everyone, for cold users; 0: none."""
    cold_start_users: int = Field(default=5, ge=1, le=100_000)
    """A segment whose likes of these days are of fewer users has no row: it would show what they like."""


class UserDocumentConfig(_ColdStart):
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


class RolloutsConfig(_Section):
    """Sampled continuations, for a view of the producer ``rollout_lists``."""

    samples: int = Field(default=64, ge=1, le=10_000)
    """Continuations of each history."""
    steps: int = Field(default=5, ge=1, le=100)
    """Items of each."""


class SequenceModelConfig(_ColdStart):
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
    rollouts: RolloutsConfig = RolloutsConfig()
    training: dict[str, int | float | str] = {}
    """Settings of ``recsys_llm.seqgan.SeqGANConfig`` that differ from its defaults; `recsys-llm train` checks them."""


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


class MetricsConfig(_Section):
    """How metrics of runs that end get out."""

    textfile: str | None = None
    """Directory that node_exporter's textfile collector reads: a file for each view is written there after each run."""


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
    metrics: MetricsConfig = MetricsConfig()
    root: Path = Path(".")
    """The feature repository; set by :func:`load_config`, not a key of the file."""

    def path(self, relative: str) -> Path:
        """Return ``relative`` as an absolute path, starting at the feature repository."""
        return (self.root / relative).resolve()
