"""Every column, view, service and producer name, once.

The feature repository imports this module and nothing else of the package, so that ``feast apply`` stays light.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

# Columns of sources and of feature parts.
USER_ID: Final = "user_id"
ITEM_ID: Final = "item_id"
EVENT_TIMESTAMP: Final = "event_timestamp"
CREATED_TIMESTAMP: Final = "created_timestamp"
RATING: Final = "rating"
LIKED: Final = "liked"
"""Source column: whether an event counts as liking the item."""
SEGMENT: Final = "segment"
"""Column of sources and of examples: the group of users, such as a country, that a user belongs to."""
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
NEXT_QUERY: Final = "next_query"
"""Of a user: its dot product with an item's :data:`NEXT_VECTOR` is the log-probability that the item comes next."""
NEXT_VECTOR: Final = "next_vector"
ROLLOUT_ITEMS: Final = "rollout_items"
ROLLOUT_SHARES: Final = "rollout_shares"
"""List of float: of a user's sampled continuations, the share that holds each of :data:`ROLLOUT_ITEMS`."""
MODEL_TRAINED_UNTIL: Final = "model_trained_until"
"""String (ISO 8601, UTC): the training cut-off of the model that made a row; null where none did."""
IS_FALLBACK: Final = "is_fallback"
"""Bool: whether a row stands in for those of users without a history."""
STATE: Final = "state"
"""Of a user: where the sequence model is after their history; with the next three, a new event goes on from there."""
HAD_ITEMS: Final = "had_items"
"""List of int64: vocabulary indexes of items that the user has had, group by group."""
HAD_GROUPS: Final = "had_groups"
"""List of int64: sizes of those groups."""
NEWEST_EVENT: Final = "newest_event"
"""int64: time of the newest event in a state, microseconds since the epoch."""
STATE_FINGERPRINT: Final = "state_fingerprint"
"""String: fingerprint of the model and settings that a state belongs to; no other model may go on from it."""
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
PROVENANCE: Final = "provenance"
"""String: what a user's row was made from, one of :data:`PROVENANCES`. A view that has it has rows for cold users."""

# What a user's row was made from, and the reserved user ids of the rows that cold users get.
HISTORY: Final = "history"
PROFILE: Final = "profile"
GLOBAL: Final = "global"
PROVENANCES: Final = (HISTORY, PROFILE, SEGMENT, GLOBAL)
GLOBAL_USER: Final = "global"
SEGMENT_USER: Final = "segment:"
"""Start of a reserved user id; the segment's value follows."""

# Entities, views and services. The model's version is part of a view's name: a new model is a new view.
USER: Final = "user"
ITEM: Final = "item"
JOIN_KEYS: Final = {USER: USER_ID, ITEM: ITEM_ID}
ITEM_TEXT_EMBEDDING: Final = "item_text_embedding_v1"
USER_TEXT_EMBEDDING: Final = "user_text_embedding_v1"
USER_NEXT_ITEMS: Final = "user_next_items_v1"
ITEM_NEXT_VECTORS: Final = "item_next_vectors_v1"
USER_STATES: Final = "user_states_v1"
ITEM_STATS: Final = "item_stats"
USER_STATS: Final = "user_stats"
RANKER: Final = "ranker_v1"
RANKER_BASELINE: Final = "ranker_baseline_v1"

# Producers that a view's tag may name.
TEXT_EMBEDDING: Final = "text_embedding"
NEXT_ITEMS: Final = "next_items"
NEXT_VECTORS: Final = "next_vectors"
SEQUENCE_STATES: Final = "sequence_states"
ROLLOUT_LISTS: Final = "rollout_lists"
ITEM_STATISTICS: Final = "item_statistics"
USER_STATISTICS: Final = "user_statistics"
PRODUCERS: Final = (
    TEXT_EMBEDDING,
    NEXT_ITEMS,
    NEXT_VECTORS,
    SEQUENCE_STATES,
    ROLLOUT_LISTS,
    ITEM_STATISTICS,
    USER_STATISTICS,
)

TAG: Final = "recsys_llm"
VECTOR_TAG: Final = "recsys_llm_vector"
"""Tag of a view with compressed vectors: how to decode them."""
BRIDGES_TAG: Final = "recsys_llm_bridges"
"""Tag of a bridged view: the fingerprint of the view that it stands in for, for readers that have no parts."""
NAME_PATTERN: Final = re.compile(r"^[a-z][a-z0-9_]{0,62}\Z")
"""``\\Z``, for ``$`` lets a line break at the end pass."""

VERSIONS_FILE: Final = "versions.yaml"
"""Which view services read in place of which; `recsys-llm migrate` writes it, :func:`current_views` follows it."""
_VERSION: Final = re.compile(r"_v[0-9]+(_.*)?\Z")


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


def vector_tag(storage: str, *, dim: int, scale: float | None = None) -> dict[str, str]:
    """Return the tags that say how the vectors of a view are stored; they join those of :func:`producer_tag`.

    Parameters
    ----------
    storage
        ``int8`` or ``binary``, with ``embedding`` of Feast's type ``Bytes``; or ``float32``, with ``Array(Float32)``.
    dim
        Length of a vector.
    scale
        For int8: the value of the code 127, as `recsys-llm text compress` has calibrated it.

    Examples
    --------
    >>> vector_tag("int8", dim=128, scale=0.31)
    {'recsys_llm_vector': '{"dim": 128, "scale": 0.31, "storage": "int8"}'}
    """
    tag = {"storage": storage, "dim": dim} | ({} if scale is None else {"scale": scale})
    return {VECTOR_TAG: json.dumps(tag, sort_keys=True)}


def feature_column(view: str, feature: str) -> str:
    """Return the full name of a feature, as Feast spells it.

    Examples
    --------
    >>> feature_column("item_stats", "price")
    'item_stats__price'
    """
    return f"{view}__{feature}"


def segment_user(segment: str) -> str:
    """Return the reserved user id of a segment's row.

    Examples
    --------
    >>> segment_user("France")
    'segment:France'
    """
    return f"{SEGMENT_USER}{segment}"


def family(view: str) -> str:
    """Return a view's name without its version: views of one family are one feature, by several models.

    Examples
    --------
    >>> family("item_text_embedding_v2"), family("item_text_embedding_v1_bridge"), family("item_stats")
    ('item_text_embedding', 'item_text_embedding', 'item_stats')
    """
    return _VERSION.sub("", view)


def read_versions(file: Path) -> dict[str, str]:
    """Return what :data:`VERSIONS_FILE` holds: view to the view that is read in its place; empty without the file.

    Raises
    ------
    ValueError
        The file is no mapping of names, or goes round in a circle.
    """
    import yaml

    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(
            f"{file}: expected lines such as `a_view_v1: a_view_v2`, found no YAML ({type(error).__name__}: {error})"
        ) from None
    versions = {} if content is None else content
    if not isinstance(versions, dict) or not all(isinstance(name, str) for pair in versions.items() for name in pair):
        raise ValueError(f"{file}: expected lines such as `a_view_v1: a_view_v2`, found {content!r}")
    for view in versions:
        current_version(view, versions)
    return dict(versions)


def current_version(view: str, versions: Mapping[str, str]) -> str:
    """Return the view that is read in place of ``view``.

    Examples
    --------
    >>> current_version("a_v1", {"a_v1": "a_v2", "a_v2": "a_v3"})
    'a_v3'
    """
    seen = [view]
    while seen[-1] in versions:
        seen.append(versions[seen[-1]])
        if seen[-1] in seen[:-1]:
            raise ValueError(f"{VERSIONS_FILE}: {' -> '.join(seen)} goes round in a circle; remove one of the lines")
    return seen[-1]


def current_views(views: Iterable[Any], *, among: Mapping[str, Any], beside: str) -> list[Any]:
    """Return the feature views that a service reads now: ``views``, or what :data:`VERSIONS_FILE` names instead.

    Parameters
    ----------
    views
        Feature views, or selections of their features such as ``item_stats[["price"]]``.
    among
        All feature views there are: ``vars(feature_views)``.
    beside
        ``__file__`` of a module of the feature repository.

    Raises
    ------
    LookupError
        ``versions.yaml`` names a view that isn't in ``among``.
    """
    file = Path(beside).resolve().with_name(VERSIONS_FILE)
    versions = read_versions(file)
    known = {view.name: view for view in among.values() if hasattr(view, "projection")}
    return [_current(view, current_version(view.name, versions), known, file) for view in views]


def _current(view: Any, name: str, known: Mapping[str, Any], file: Path) -> Any:
    if name == view.name:
        return view
    if name not in known:
        raise LookupError(f"{file}: {name!r} is read in place of {view.name!r}, but feature_views.py has no such view")
    projection = view.projection
    selected = [field.name for field in projection.features]
    found = known[name] if selected == [field.name for field in view.features] else known[name][selected]
    if projection.name_alias:
        found = found.with_name(projection.name_alias)
    return found.with_join_key_map(projection.join_key_map) if projection.join_key_map else found
