"""Switching feature services from one view to another: all of them or none.

``feast apply`` writes what the Python files declare, so the files decide: a service is only switched to what they
declare under the new versions.yaml. Feast itself applies service by service; here all go in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from recsys_llm.commands.migration.declared import Reads, reads_of, same_reads
from recsys_llm.commands.migration.moves import Pairs
from recsys_llm.errors import FingerprintError, MigrationError, ServiceError
from recsys_llm.retrieval import parts
from recsys_llm.retrieval.service import resolve_definition

if TYPE_CHECKING:
    import feast


@dataclass(frozen=True, eq=False)
class Change:
    """One service, before and after."""

    name: str
    before: Reads
    after: feast.FeatureService


@dataclass(frozen=True)
class Changes:
    """What a switch does to the registry."""

    switched: list[Change] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    """Services that read a view of the switch because the files name it themselves."""


def readers(store: feast.FeatureStore, views: Iterable[str]) -> list[str]:
    """Return the names of the services that read any of ``views``, sorted."""
    wanted = set(views)
    services = store.list_feature_services()
    return sorted(service.name for service in services if wanted & {view for view, _ in reads_of(service)})


def find_changes(store: feast.FeatureStore, declared: dict[str, Reads], pairs: Pairs) -> Changes:
    """Return the services to switch so that the registry is what the files declare.

    Parameters
    ----------
    declared
        From :func:`~recsys_llm.commands.migration.declared.declared_services`, under the new versions.
    pairs
        View to the view that is read in its place from now on.

    Raises
    ------
    MigrationError
        The files declare something else, so the next ``feast apply`` would undo or change the switch.
    """
    found = Changes()
    for service in sorted(store.list_feature_services(), key=lambda each: str(each.name)):
        before = reads_of(service)
        if not any(view in pairs for view, _ in before):
            continue
        if service.name not in declared:
            raise MigrationError(
                f"service {service.name} is in the registry but not in the repository's Python files; add it to them, "
                "or remove it with `feast delete`"
            )
        after = _substituted(store, service, pairs)
        if same_reads(before, declared[service.name]):
            found.kept.append(service.name)
        elif same_reads(reads_of(after), declared[service.name]):
            found.switched.append(Change(service.name, before, after))
        else:
            views = [[view for view, _ in reads] for reads in (before, declared[service.name])]
            raise MigrationError(
                f"service {service.name} reads {', '.join(views[0])}; the repository's Python files make it "
                f"{', '.join(views[1])}: run `feast apply` first, so that the switch changes nothing else"
            )
    return found


def check_readable(store: feast.FeatureStore, changes: Changes) -> None:
    """Refuse a switch after which a service could not be read: vectors of two encoders, or two versions of a view.

    Raises
    ------
    MigrationError
        Names the service and the reason.
    """
    for change in changes.switched:
        try:
            parts.provenance(resolve_definition(store, change.after))
        except (FingerprintError, ServiceError) as error:
            raise MigrationError(
                f"after the switch, service {change.name} could not be read: {error}\n"
                "Move all views of one encoder together: add `--with VIEW=NEW_VERSION` for each of the others; or move "
                "to a bridged view, whose vectors live beside the old ones (`recsys-llm migrate backfill --bridge`)"
            ) from None


def apply_changes(store: feast.FeatureStore, changes: Changes) -> None:
    """Write all services to the registry, or none.

    Raises
    ------
    MigrationError
        A service was changed by somebody else in between.
    """
    from feast.infra.registry.sql import SqlRegistry

    registry = store.registry
    if isinstance(registry, SqlRegistry):
        _in_one_transaction(registry, store.project, changes.switched)
    else:
        # A registry in a file is written whole by commit().
        for change in changes.switched:
            registry.apply_feature_service(change.after, store.project, commit=False)
        registry.commit()
    store.refresh_registry()


def _in_one_transaction(registry: Any, project: str, changes: list[Change]) -> None:
    # Private to Feast: SqlRegistry's table and its note of the last change. Its own apply_feature_service commits each
    # service by itself.
    from feast import FeatureService
    from feast.infra.registry.sql import FeatureServiceProto, feature_services

    columns, now = feature_services.c, datetime.now(UTC)
    with registry.write_engine.begin() as connection:
        for change in changes:
            row = (columns.feature_service_name == change.name) & (columns.project_id == project)
            stored = connection.scalar(sa.select(columns.feature_service_proto).where(row))
            known = stored and reads_of(FeatureService.from_proto(FeatureServiceProto.FromString(stored)))
            change.after.last_updated_timestamp = now
            values = {
                "feature_service_proto": change.after.to_proto().SerializeToString(),
                "last_updated_timestamp": int(now.timestamp()),
            }
            # Compared once more by the update itself: sqlite takes its lock only then.
            unchanged = row & (columns.feature_service_proto == stored)
            if (
                known != change.before
                or connection.execute(sa.update(feature_services).where(unchanged).values(values)).rowcount != 1
            ):
                raise MigrationError(f"service {change.name} was changed while it was being switched; run it again")
        if not registry.purge_feast_metadata:
            registry._set_last_updated_metadata(now, project, connection)


def _substituted(store: feast.FeatureStore, service: feast.FeatureService, pairs: Pairs) -> feast.FeatureService:
    """Return a copy of a service with the same features of other views."""
    from feast import FeatureService

    copy = FeatureService.from_proto(service.to_proto())
    for place, projection in enumerate(copy.feature_view_projections):
        if projection.name in pairs:
            view = store.get_feature_view(pairs[projection.name])
            names = {field.name for field in projection.features}
            selected = [field.name for field in view.features if field.name in names]
            whole = len(names) == len(store.get_feature_view(projection.name).features)
            chosen = (view if whole else view[selected]).projection
            chosen.name_alias, chosen.join_key_map = projection.name_alias, projection.join_key_map
            copy.feature_view_projections[place] = chosen
    return copy
