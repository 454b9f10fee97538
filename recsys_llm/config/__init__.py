"""``recsys_llm.yaml``, read and checked."""

from recsys_llm.config.file import FILE_NAME, YAML_ERRORS, absolute_sqlite_url, load_config, yaml_problem
from recsys_llm.config.sections import (
    Config,
    InteractionsConfig,
    ItemsConfig,
    MetricsConfig,
    SequenceModelConfig,
    SourcesConfig,
    StatisticsConfig,
    TableConfig,
    TextEncoderConfig,
    UserDocumentConfig,
    UsersConfig,
    UserTokensConfig,
    UserWordsConfig,
)

__all__ = [
    "Config",
    "FILE_NAME",
    "InteractionsConfig",
    "ItemsConfig",
    "MetricsConfig",
    "SequenceModelConfig",
    "SourcesConfig",
    "StatisticsConfig",
    "TableConfig",
    "TextEncoderConfig",
    "UserDocumentConfig",
    "UserTokensConfig",
    "UserWordsConfig",
    "UsersConfig",
    "YAML_ERRORS",
    "absolute_sqlite_url",
    "load_config",
    "yaml_problem",
]
