"""What a feature service asks for, resolved once: views by entity, their features, kinds, ttl and parts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_llm.errors import ServiceError, did_you_mean
from recsys_llm.retrieval.pairwise import PairwiseInputs
from recsys_llm.retrieval.stored import Kind
from recsys_llm.schema import (
    CENTROID,
    EMBEDDING,
    ITEM,
    JOIN_KEYS,
    NEXT_QUERY,
    NEXT_VECTOR,
    PROVENANCE,
    ROW_ID,
    TAG,
    USER,
    VECTOR_TAG,
    feature_column,
)
from recsys_llm.storage import VectorStorage
from recsys_llm.timestamps import MICROSECOND

if TYPE_CHECKING:
    import feast

VECTORS = (EMBEDDING, CENTROID, NEXT_QUERY, NEXT_VECTOR)
"""Features of these names are vectors of one length; so are those whose Feast field says ``vector_index=True``. Other
lists of floats may differ in length from row to row."""

DUCKDB_TYPES = ("duckdb", "recsys_llm.stores.DuckDBOfflineStore")
"""Offline stores that read parts with DuckDB."""

SCALAR_TYPES = ("Float32", "Float64", "Int32", "Int64", "Bool")
LIST_KINDS = {
    "String": Kind.STRINGS,
    "Float32": Kind.FLOATS,
    "Float64": Kind.FLOATS,
    "Int32": Kind.INTS,
    "Int64": Kind.INTS,
}


@dataclass(frozen=True)
class Feature:
    """One feature of a service."""

    name: str
    """Its name in the view."""
    column: str
    """Its full name, ``view__feature``."""
    kind: Kind
    dimension: int | None = None
    """Length of a vector, where the view states it."""
    storage: VectorStorage | None = None
    """Of a vector that is stored as bytes: how to decode it."""
    default: float | None = None
    """What an online reader gives where there is no number, or for each number of a vector; None: NaN. A serving
    manifest may name one."""


@dataclass(frozen=True)
class View:
    """One feature view of a service."""

    name: str
    entity: str
    ttl: int
    """Microseconds; 0: rows never expire."""
    features: tuple[Feature, ...]
    """Without the row id, which is not for models."""
    has_row_id: bool
    """Whether stored rows carry an int64 ``row_id``."""
    parts: str | None
    """Path or glob of local parquet files; None: stored elsewhere."""
    definition: Any = field(repr=False, compare=False)
    """The ``feast.FeatureView``."""
    has_cold_rows: bool = False
    """Whether reserved user ids have rows that stand in for those of cold users."""
    is_computed: bool = False
    """Whether recsys_llm publishes it: our Redis store then has a mark for it."""

    def __hash__(self) -> int:
        return hash((self.name, self.entity))  # readers look views up at every call

    @property
    def join_key(self) -> str:
        """Column of the entity's key."""
        return JOIN_KEYS[self.entity]

    @property
    def gathered(self) -> bool:
        """Whether vectors and lists can be read from the parts by row id, instead of passing through Feast's join."""
        lists = any(feature.kind not in (Kind.SCALAR, Kind.STRING) for feature in self.features)
        return lists and self.has_row_id and self.parts is not None


@dataclass(frozen=True)
class Service:
    """A feature service, resolved."""

    name: str
    views: tuple[View, ...]

    def of(self, entity: str) -> tuple[View, ...]:
        """Return the views of ``user`` or ``item``."""
        return tuple(view for view in self.views if view.entity == entity)

    @property
    def references(self) -> tuple[str, ...]:
        """Feast's names of all features, ``view:feature``."""
        return tuple(f"{view.name}:{feature.name}" for view in self.views for feature in view.features)


def resolve(store: feast.FeatureStore, name: str) -> Service:
    """Read a feature service from the registry.

    Raises
    ------
    ServiceError
        The service is unknown, or asks for something that can't be read: a view of another entity, an on-demand view, a
        feature of a type that no model reads.
    """
    from feast.errors import FeatureServiceNotFoundException

    try:
        definition = store.get_feature_service(name)
    except FeatureServiceNotFoundException:
        known = [service.name for service in store.list_feature_services()]
        hint = did_you_mean(name, known) if known else "the registry holds none; run `feast apply`"
        raise ServiceError(f"feature service {name!r} is not in project {store.project}; {hint}") from None
    return resolve_definition(store, definition)


def resolve_definition(store: feast.FeatureStore, definition: feast.FeatureService) -> Service:
    """Resolve a feature service that needn't be in the registry; its views must be.

    Raises
    ------
    ServiceError
        As :func:`resolve`.
    """
    name = definition.name
    views = tuple(_view(store, name, projection) for projection in definition.feature_view_projections)
    service = Service(name, tuple(view for view in views if view.features))
    # Refuses two versions of a view, before anything is read.
    PairwiseInputs.of(_columns(service, USER), _columns(service, ITEM))
    return service


def _columns(service: Service, entity: str) -> list[str]:
    return [feature.column for view in service.of(entity) for feature in view.features]


def _view(store: feast.FeatureStore, service: str, projection: Any) -> View:
    from feast.errors import FeatureViewNotFoundException

    where = f"feature service {service}: view {projection.name}"
    if projection.name_alias or projection.join_key_map:
        raise ServiceError(
            f"{where}: expected it under its own name and join keys, found an alias; remove with_name(...)"
        )
    try:
        definition = store.get_feature_view(projection.name)
    except FeatureViewNotFoundException:
        raise ServiceError(f"{where}: expected a plain feature view, found none; run `feast apply`") from None
    keys = list(definition.join_keys)
    entity = next((entity for entity, key in JOIN_KEYS.items() if keys == [key]), None)
    if entity is None:
        expected = " or ".join(f"[{key}]" for key in JOIN_KEYS.values())
        raise ServiceError(f"{where}: expected join keys {expected}, found {keys}; read it through Feast itself")
    key_type = str(definition.entity_columns[0].dtype)
    if key_type != "String":
        raise ServiceError(
            f"{where}: expected join key {keys[0]} of type String, found {key_type}; cast ids to strings"
        )
    types = {feature.name: str(feature.dtype) for feature in definition.features}
    storage = VectorStorage.of(projection.name, definition.tags)
    return View(
        name=projection.name,
        entity=entity,
        ttl=(definition.ttl or timedelta(0)) // MICROSECOND,
        features=tuple(
            _feature(where, projection.name, field, storage) for field in projection.features if field.name != ROW_ID
        ),
        has_row_id=types.get(ROW_ID) == "Int64",
        parts=_local_parquet(store, definition.batch_source),
        definition=definition,
        has_cold_rows=entity == USER and types.get(PROVENANCE) == "String",
        is_computed=TAG in definition.tags,
    )


def _feature(where: str, view: str, definition: Any, storage: VectorStorage | None) -> Feature:
    column = feature_column(view, definition.name)
    if storage is not None and storage.is_bytes and definition.name == EMBEDDING and str(definition.dtype) == "Bytes":
        return Feature(definition.name, column, Kind.VECTOR, storage.dim, storage)
    kind = _kind(definition)
    if kind is None:
        raise ServiceError(
            f"{where}: feature {definition.name}: expected {', '.join(SCALAR_TYPES)}, String or an Array of String, "
            f"Float32, Float64, Int32 or Int64, found {definition.dtype}; leave it out of the service. A compressed "
            f"{EMBEDDING}, of type Bytes, needs the view's tag {VECTOR_TAG!r} by recsys_llm.schema.vector_tag(...)"
        )
    dimension = definition.vector_length or None if kind is Kind.VECTOR else None
    return Feature(definition.name, column, kind, dimension)


def _kind(definition: Any) -> Kind | None:
    base = getattr(definition.dtype, "base_type", None)
    if base is None:
        name = str(definition.dtype)
        return Kind.STRING if name == "String" else Kind.SCALAR if name in SCALAR_TYPES else None
    if str(definition.dtype) != f"Array({base})":
        return None
    kind = LIST_KINDS.get(str(base))
    is_vector = definition.name in VECTORS or definition.vector_index
    return Kind.VECTOR if kind is Kind.FLOATS and is_vector else kind


def _local_parquet(store: feast.FeatureStore, source: Any) -> str | None:
    """Return where a view's parquet files are; None where only Feast can read them.

    Row ids pass unharmed through the DuckDB store alone: others hand back int64 with nulls as float64.
    """
    from feast import FileSource
    from feast.data_format import ParquetFormat

    if not isinstance(source, FileSource) or store.config.offline_store.type not in DUCKDB_TYPES:
        return None
    if source.field_mapping or "://" in source.path:
        return None
    if not (isinstance(source.file_format, ParquetFormat) or source.path.endswith(".parquet")):
        return None
    return str(Path(source.path))


def unmeasured(service: Service) -> list[tuple[View, Feature]]:
    """Return the vectors whose length is not known."""
    features = [(view, feature) for view in service.views for feature in view.features]
    return [(view, item) for view, item in features if item.kind is Kind.VECTOR and item.dimension is None]


def known_dimensions(service: Service, dimensions: Mapping[str, int]) -> Service:
    """Return the service with the lengths of vectors filled in, by full feature name."""
    views = []
    for view in service.views:
        features = tuple(replace(item, dimension=dimensions.get(item.column, item.dimension)) for item in view.features)
        views.append(replace(view, features=features))
    return replace(service, views=tuple(views))
