"""Raw tables, from wherever they are, as checked Arrow record batches.

:func:`items`, :func:`interactions`, :func:`users` and :func:`user_words` are what the rest of the package
reads; :class:`ParquetSource` and :class:`SqlSource` are where they come from. The other functions get data to
try things out with.
"""

from recsys_llm.sources.base import Source
from recsys_llm.sources.movielens import fetch_movielens_small
from recsys_llm.sources.online_retail import fetch_online_retail
from recsys_llm.sources.opening import open_source
from recsys_llm.sources.parquet import ParquetSource
from recsys_llm.sources.runs import whole_keys
from recsys_llm.sources.simulated import write_simulated
from recsys_llm.sources.sql import SqlSource
from recsys_llm.sources.tables import interactions, items, user_words, users

__all__ = [
    "ParquetSource",
    "Source",
    "SqlSource",
    "fetch_movielens_small",
    "fetch_online_retail",
    "interactions",
    "items",
    "open_source",
    "user_words",
    "users",
    "whole_keys",
    "write_simulated",
]
