"""Every column, view, service and producer name, once.

The feature repository imports this module and nothing else of the package, so that ``feast apply`` stays light.
"""

from __future__ import annotations

import json
import re
from typing import Final

# Columns of sources and of feature parts.
USER_ID: Final = "user_id"
ITEM_ID: Final = "item_id"
EVENT_TIMESTAMP: Final = "event_timestamp"
CREATED_TIMESTAMP: Final = "created_timestamp"
RATING: Final = "rating"
LIKED: Final = "liked"
"""Source column: whether an event counts as liking the item."""
CONTENT_HASH: Final = "content_hash"
"""Part column, not a feature: the hash of a row's input and model, which the ledger keys on."""

# Feature columns.
ROW_ID: Final = "row_id"
"""int64 that names one stored row for ever. Training sets join it instead of the vectors, then gather."""
EMBEDDING: Final = "embedding"
ITEM_IDS: Final = "item_ids"
LOG_PROBS: Final = "log_probs"
ENTROPY: Final = "entropy"
CENTROID: Final = "centroid"
N_EVENTS: Final = "n_events"
N_EVENTS_30D: Final = "n_events_30d"
MEAN_RATING: Final = "mean_rating"
PRICE: Final = "price"
MEAN_PRICE: Final = "mean_price"
CATEGORY: Final = "category"
CATEGORIES: Final = "categories"
CATEGORY_SHARES: Final = "category_shares"
RECENT_ITEMS: Final = "recent_items"
LAST_GROUP_SIZE: Final = "last_group_size"

# Entities, views and services. The model's version is part of a view's name: a new model is a new view.
USER: Final = "user"
ITEM: Final = "item"
JOIN_KEYS: Final = {USER: USER_ID, ITEM: ITEM_ID}
ITEM_TEXT_EMBEDDING: Final = "item_text_embedding_v1"
USER_TEXT_EMBEDDING: Final = "user_text_embedding_v1"
USER_NEXT_ITEMS: Final = "user_next_items_v1"
ITEM_STATS: Final = "item_stats"
USER_STATS: Final = "user_stats"
RANKER: Final = "ranker_v1"
RANKER_BASELINE: Final = "ranker_baseline_v1"

# Producers that a view's tag may name.
TEXT_EMBEDDING: Final = "text_embedding"
NEXT_ITEMS: Final = "next_items"
ITEM_STATISTICS: Final = "item_statistics"
USER_STATISTICS: Final = "user_statistics"
PRODUCERS: Final = (TEXT_EMBEDDING, NEXT_ITEMS, ITEM_STATISTICS, USER_STATISTICS)

TAG: Final = "recsys_llm"
NAME_PATTERN: Final = re.compile(r"^[a-z][a-z0-9_]{0,62}$")


def producer_tag(producer: str, *, source: str, model: str | None = None) -> dict[str, str]:
    """Return the tags that make a plain feature view computed by recsys_llm.

    Parameters
    ----------
    producer
        One of :data:`PRODUCERS`.
    source
        ``items`` or ``interactions``: what is read, a key of ``sources`` in recsys_llm.yaml.
    model
        Name of a text encoder or sequence model in recsys_llm.yaml, for the producers that use one.

    Examples
    --------
    >>> producer_tag("text_embedding", source="items", model="minilm_v1")
    {'recsys_llm': '{"model": "minilm_v1", "producer": "text_embedding", "source": "items"}'}
    """
    tag = {"producer": producer, "source": source}
    if model is not None:
        tag["model"] = model
    return {TAG: json.dumps(tag, sort_keys=True)}


def feature_column(view: str, feature: str) -> str:
    """Return the full name of a feature, as Feast spells it.

    Examples
    --------
    >>> feature_column("item_stats", "price")
    'item_stats__price'
    """
    return f"{view}__{feature}"
