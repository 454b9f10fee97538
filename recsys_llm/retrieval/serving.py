"""The serving manifest: all that a lookup of one feature service needs, so that serving needs no Feast.

A signed JSON file: views, features, kinds, lengths of vectors, ttl, fingerprints, and where the store keeps a row. It
holds no password.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import recsys_llm
from recsys_llm.errors import ConfigError
from recsys_llm.files import read_signed_json, replaced_file, signed_json
from recsys_llm.retrieval.layout import KeyForm, RedisLayout, SqliteLayout
from recsys_llm.retrieval.service import Feature, Service, View
from recsys_llm.retrieval.stored import Kind
from recsys_llm.storage import VectorStorage

FORMAT = 2
PASSWORD_KEYS = ("password_env", "password_file")
"""Of ``store``: the environment variable or the file that the password of Redis is in."""
NUMBERS = (Kind.SCALAR, Kind.VECTOR)
NOT_A_NUMBER = "NaN"
"""JSON has no other way to say so."""


@dataclass(frozen=True)
class Manifest:
    """A serving manifest, read."""

    project: str
    """Of Feast."""
    service: Service
    layouts: Mapping[str, RedisLayout | SqliteLayout]
    """By view."""
    store: Mapping[str, Any]
    """``type`` (redis or sqlite); then the ``path`` of a sqlite file; or ``options`` of the Redis client (null: it is a
    cluster or has sentinels), the names of ``secrets`` that it needs beside them and, for the password, one of
    :data:`PASSWORD_KEYS`; ``timeout_ms``, ``breaker_failures`` and ``allow_eviction`` as our Redis store has them, and
    ``has_marks``: whether the store marks the views that are published."""
    fingerprints: Mapping[str, str | None]
    bridges: Mapping[str, str]


def write_manifest(file: Path, manifest: Manifest) -> None:
    """Write a manifest, whole or not at all."""
    content = {
        "format": FORMAT,
        "version": recsys_llm.__version__,
        "project": manifest.project,
        "service": manifest.service.name,
        "store": dict(manifest.store),
        "views": [_written(view, manifest.layouts[view.name]) for view in manifest.service.views],
        "fingerprints": dict(manifest.fingerprints),
        "bridges": dict(manifest.bridges),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(file) as temporary:
        temporary.write_bytes(signed_json(content))


def read_manifest(file: Path) -> Manifest:
    """Read what :func:`write_manifest` wrote.

    Raises
    ------
    ConfigError
        There is no such file, it was altered, or it has another format; or a default is none of the feature's kind.
    """
    remedy = "write it with `recsys-llm export-serving SERVICE --out FILE`"
    if not file.is_file():
        raise ConfigError(f"{file}: not found; {remedy}")
    try:
        content = read_signed_json(file.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{file}: {error}; {remedy} again") from None
    if content.get("format") != FORMAT:
        raise ConfigError(f"{file}: expected format {FORMAT}, found {content.get('format')!r}; {remedy} again")
    try:
        views = tuple(_view(written) for written in content["views"])
    except ValueError as error:
        raise ConfigError(f"{file}: {error}; {remedy} again") from None
    return Manifest(
        content["project"],
        Service(content["service"], views),
        {written["name"]: _layout(written["stored"]) for written in content["views"]},
        content["store"],
        content["fingerprints"],
        content["bridges"],
    )


def _written(view: View, layout: RedisLayout | SqliteLayout) -> dict[str, Any]:
    return {
        "name": view.name,
        "entity": view.entity,
        "join_key": view.join_key,
        "ttl_us": view.ttl,
        "has_cold_rows": view.has_cold_rows,
        "is_computed": view.is_computed,
        "features": [_written_feature(feature) for feature in view.features],
        "stored": _written_layout(layout),
    }


def _written_feature(feature: Feature) -> dict[str, Any]:
    storage = feature.storage
    return {
        "name": feature.name,
        "column": feature.column,
        "kind": feature.kind.value,
        "dimension": feature.dimension,
        "storage": None
        if storage is None
        else {"storage": storage.storage, "dim": storage.dim, "scale": storage.scale},
        # What a reader gives where there is no value.
        "default": (NOT_A_NUMBER if feature.default is None else feature.default) if feature.kind in NUMBERS else None,
    }


def _written_layout(layout: RedisLayout | SqliteLayout) -> dict[str, Any]:
    key = {"key_head": layout.key.head.hex(), "key_tail": layout.key.tail.hex()}
    if isinstance(layout, SqliteLayout):
        return {**key, "table": layout.table}
    return {**key, "fields": [field.hex() for field in layout.fields], "timestamp_field": layout.stamp.hex()}


def _view(written: Mapping[str, Any]) -> View:
    return View(
        name=written["name"],
        entity=written["entity"],
        ttl=written["ttl_us"],
        features=tuple(_feature(feature) for feature in written["features"]),
        has_row_id=False,
        parts=None,
        definition=None,
        has_cold_rows=written["has_cold_rows"],
        is_computed=written["is_computed"],
    )


def _feature(written: Mapping[str, Any]) -> Feature:
    storage = None if written["storage"] is None else VectorStorage(**written["storage"])
    kind = Kind(written["kind"])
    default = _default(written["default"], kind, written["column"])
    return Feature(written["name"], written["column"], kind, written["dimension"], storage, default)


def _default(found: Any, kind: Kind, column: str) -> float | None:
    if kind not in NUMBERS:
        if found is not None:
            raise ValueError(f"default of {column}: expected null for {kind}, found {found!r}")
        return None
    if found == NOT_A_NUMBER:
        return None
    if isinstance(found, bool) or not isinstance(found, int | float):
        raise ValueError(f"default of {column}: expected a number or {NOT_A_NUMBER!r}, found {found!r}")
    return float(found)


def _layout(written: Mapping[str, Any]) -> RedisLayout | SqliteLayout:
    key = KeyForm(bytes.fromhex(written["key_head"]), bytes.fromhex(written["key_tail"]))
    if "table" in written:
        return SqliteLayout(key, written["table"])
    return RedisLayout(key, tuple(map(bytes.fromhex, written["fields"])), bytes.fromhex(written["timestamp_field"]))
