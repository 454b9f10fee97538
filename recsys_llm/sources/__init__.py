"""Raw tables, from wherever they are, as checked Arrow record batches.

:func:`items`, :func:`interactions` and :func:`user_words` are what the rest of the package reads;
:class:`ParquetSource` and :class:`SqlSource` are where they come from.
"""

from recsys_llm.sources.base import Source
from recsys_llm.sources.opening import open_source
from recsys_llm.sources.parquet import ParquetSource
from recsys_llm.sources.runs import whole_keys
from recsys_llm.sources.sql import SqlSource
from recsys_llm.sources.tables import interactions, items, user_words

__all__ = ["ParquetSource", "Source", "SqlSource", "interactions", "items", "open_source", "user_words", "whole_keys"]
