"""Rows as Feast hands them to a store, compared and set on the server; what is left out is told."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from feast import FeatureView, RepoConfig
from feast.infra.online_stores.helpers import _redis_key, compute_versioned_name
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value

# Private to Feast: what a time without a zone means.
from feast.utils import make_tzaware
from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped]

from recsys_llm.metrics.pushes import PUSHED_ROWS
from recsys_llm.stores.compare_and_set import OLDER, Written, compare_and_set, counted

logger = logging.getLogger(__name__)

Row = tuple[EntityKey, Mapping[str, Value], datetime, datetime | None]
"""Entity key, feature to value, event time, creation time."""


def write_rows(client: Any, config: RepoConfig, view: FeatureView, rows: Sequence[Row]) -> Written:
    """Write rows, each unless Redis holds a newer one; of rows that share a key, the newest stays.

    Rows that are left out are told of in one warning, with their number and the first of them.

    Raises
    ------
    redis.RedisError, redis.RedisClusterException
        The server failed, or refuses scripts; some rows may be written.
    """
    name = compute_versioned_name(view, config.registry.enable_online_feature_view_versioning)
    by_features: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        by_features.setdefault(tuple(row[1]), []).append(row)
    written, late = Written(), []
    for features, some in by_features.items():
        keys = [_redis_key(config.project, row[0], config.entity_key_serialization_version) for row in some]
        values = [[_stamp(row[2]), *(row[1][feature].SerializeToString() for feature in features)] for row in some]
        seconds_to_live = config.online_store.key_ttl_seconds or 0
        outcomes = compare_and_set(client, name, features, keys, values, seconds_to_live)
        written = written.plus(counted(outcomes))
        late += [row for row, outcome in zip(some, outcomes, strict=True) if outcome == OLDER]
    for outcome, count in written._asdict().items():
        PUSHED_ROWS.labels(config.project, view.name, outcome).inc(count)
    _tell(config.project, view.name, written, late)
    return written


def _tell(project: str, view: str, written: Written, late: Sequence[Row]) -> None:
    told = {"project": project, "view": view, **written._asdict()}
    if late:
        logger.warning(
            "view %s: %d of %d rows left out, since Redis holds newer ones of their keys; the first: %s at %s",
            view,
            written.older,
            sum(written),
            _shown(late[0][0]),
            make_tzaware(late[0][2]).isoformat(),
            extra=told,
        )
    elif written.equal:
        logger.info("view %s: %d rows replaced rows of the same time", view, written.equal, extra=told)


def _shown(key: EntityKey) -> str:
    pairs = zip(key.join_keys, key.entity_values, strict=True)
    return ", ".join(f"{name} {getattr(value, value.WhichOneof('val'))!r}" for name, value in pairs)


def _stamp(at: datetime) -> bytes:
    stamp = Timestamp()
    stamp.FromDatetime(make_tzaware(at))
    serialized: bytes = stamp.SerializeToString()
    return serialized
