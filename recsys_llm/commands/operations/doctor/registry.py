"""Is this the right registry, does it name what is there, and is it up to date."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from recsys_llm.commands.operations.doctor.findings import Finding, Limits, at_most
from recsys_llm.commands.operations.opening import StoredView
from recsys_llm.config import Config
from recsys_llm.errors import ConfigError, RecsysLLMError
from recsys_llm.metrics import write_run
from recsys_llm.producers import ProducerTag
from recsys_llm.producers.parts import part_files, read_manifest
from recsys_llm.retrieval.parts import provenance
from recsys_llm.retrieval.service import resolve

if TYPE_CHECKING:
    import feast


def check_registry(config: Config, views: list[StoredView]) -> Iterator[Finding]:
    """Find a registry of another repository: no computed views, parts elsewhere, models that are not configured."""
    yield Finding("registry", "all views", bool(views), f"{len(views)} computed views are registered")
    models = {*config.text_encoders, *config.sequence_models}
    for view in views:
        tag, wrong = ProducerTag.of(view.name, view.definition.tags), misplaced(view)
        yield Finding("registry", view.name, wrong is None, wrong or "its parts lie in this repository")
        if tag is not None and tag.model is not None and tag.model not in models:
            yield Finding("registry", view.name, False, f"names the model {tag.model}, which recsys_llm.yaml lacks")


def misplaced(view: StoredView) -> str | None:
    """Return why a view's parts can't be used; None where they lie in this repository."""
    try:
        view.directory  # noqa: B018  it is what raises
    except ConfigError as error:
        return str(error)
    return None


def check_services(store: feast.FeatureStore) -> Iterator[Finding]:
    """Find services whose vectors come from two models; the error of :func:`provenance` is the finding."""
    for service in store.list_feature_services():
        try:
            provenance(resolve(store, service.name))
        except RecsysLLMError as error:
            yield Finding("fingerprints", service.name, False, str(error))
        else:
            yield Finding(
                "fingerprints", service.name, True, "its vectors come from one encoder and one sequence model"
            )


def check_freshness(view: StoredView, limits: Limits, at: datetime) -> Iterator[Finding]:
    """Find a view that nobody has materialised for too long, or ahead of time."""
    end = view.definition.most_recent_end_time
    if end is None:
        yield Finding("freshness", view.name, False, "never materialised in this registry; run `feast materialize`")
        return
    end = end if end.tzinfo else end.replace(tzinfo=UTC)
    lag = (at - end).total_seconds() / 3600
    yield at_most(
        "freshness", view.name, lag, limits.max_lag_hours, f"materialised up to {end.isoformat()}, {lag:.1f} h ago"
    )


def note_end(view: StoredView, config: Config) -> Iterator[Finding]:
    """Write up to when the view is materialised to its metrics file, if there is one; a finding if that fails."""
    end, tag = view.definition.most_recent_end_time, ProducerTag.of(view.name, view.definition.tags)
    if end is None or tag is None or config.metrics.textfile is None:
        return
    directory = config.path(config.metrics.textfile)
    try:
        write_run(
            directory, view.store.project, view.name, tag.producer, {}, end if end.tzinfo else end.replace(tzinfo=UTC)
        )
    except (OSError, ValueError) as error:
        yield Finding("metrics", view.name, False, f"its file in {directory} can't be written: {error}")


def check_parts(view: StoredView) -> Iterator[Finding]:
    """Find parts that are lost, altered, or of another model than the ledger says."""
    parts = view.parts
    recorded, present = view.ledger.parts(view.name), set(parts.names())
    for names, what in (
        (recorded - present, "recorded and not on disk"),
        (present - recorded, "on disk, not recorded"),
    ):
        if names:
            yield Finding("parts", view.name, False, f"{len(names)} parts are {what}, such as {min(names)}")
    bound = view.ledger.fingerprint(view.name)
    found = {read_manifest(file).get("fingerprint") for file in part_files(parts.directory)}
    if bound is not None and found - {bound}:
        others = sorted(str(name) for name in found - {bound})
        yield Finding("fingerprints", view.name, False, f"bound to {bound}, parts hold rows of {', '.join(others)}")
    rows = sum(parts.read(name).num_rows for name in sorted(present))
    yield Finding("parts", view.name, True, f"{len(present)} parts, {rows:,} rows, all checksums right")
