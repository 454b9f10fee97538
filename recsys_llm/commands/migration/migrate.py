"""``recsys-llm migrate``: backfill, cutover, rollback.

A cutover changes two things, in this order: versions.yaml, which decides what ``feast apply`` writes, and the services
in the registry, all in one transaction. A run that is killed between the two leaves services as they were; run again,
it goes on from what the file and the registry hold, not from a memory of its own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_llm import schema
from recsys_llm.commands.migration import journal, services
from recsys_llm.commands.migration.bridging import BridgeResult, build_bridge, check_bridge
from recsys_llm.commands.migration.coverage import Coverage, measure_coverage
from recsys_llm.commands.migration.declared import declared_services
from recsys_llm.commands.migration.moves import Pairs, open_moves
from recsys_llm.commands.migration.planning import MovePlan, covered_time, plan_move
from recsys_llm.commands.migration.sequence_views import check_together
from recsys_llm.config import load_config
from recsys_llm.errors import ConfigError, MigrationError, did_you_mean
from recsys_llm.retrieval import open_store

if TYPE_CHECKING:
    import feast

MIN_COVERAGE = 0.999
_EDIT = """
    import feature_views
    from recsys_llm import schema

    features=schema.current_views([... the views that stand there now ...], among=vars(feature_views), beside=__file__)
"""


@dataclass(frozen=True)
class Switched:
    """What a cutover or a rollback did."""

    views: Pairs
    """View that services read before to the view that they read now."""
    services: tuple[str, ...]
    """Services that were switched; empty where a run before had done so."""
    coverage: dict[str, Coverage] = field(default_factory=dict)
    """By new view; empty for a rollback."""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        shares = {view: coverage.as_dict() for view, coverage in self.coverage.items()}
        return {"views": self.views, "services": list(self.services), "coverage": shares}


def plan_migration(repository: Path, pairs: Pairs, *, config_file: str | None = None) -> list[MovePlan]:
    """Say what it takes to put each new view in the place of the old one; nothing is changed.

    Raises
    ------
    ConfigError
        A view is not there, or can't take the other's place; the message says what to add.
    """
    store, config = open_store(repository, config_file=config_file), load_config(repository)
    moves = open_moves(store, pairs)
    versions = journal.read_versions(repository)
    return [plan_move(store, config, move, moves, versions) for move in moves]


def backfill(
    repository: Path, pairs: Pairs, *, bridge: bool = False, config_file: str | None = None
) -> tuple[dict[str, Coverage], BridgeResult | None]:
    """Materialise each new view over the time that the old one covers; with ``bridge``, then fit a map to the old one.

    What is computed already is skipped, so a killed run is simply run again.

    Returns
    -------
    tuple
        Coverage by new view, and the bridge of the first pair.

    Raises
    ------
    ConfigError, MigrationError, TrainingError
        A view can't be migrated, or not be bridged.
    """
    store, config = open_store(repository, config_file=config_file), load_config(repository)
    moves = open_moves(store, pairs)
    if bridge:
        check_bridge(moves[0], config)
    coverage = {}
    for move in moves:
        start, end = covered_time(store, move)
        store.materialize(start, end, feature_views=[move.new.name])
        coverage[move.new.name] = measure_coverage(store, move)
    return coverage, build_bridge(moves[0], config) if bridge else None


def cutover(
    repository: Path, pairs: Pairs, *, min_coverage: float = MIN_COVERAGE, config_file: str | None = None
) -> Switched:
    """Let all services that read the old views read the new ones, if these hold enough of the live keys.

    Raises
    ------
    MigrationError
        Rows are missing, a service could not be read afterwards, next items and states of one model would be parted, or
        the Python files would undo the switch. Nothing has been switched; rows may also be missing where ``feast
        apply`` has switched a registry after versions.yaml was written for another one.
    """
    store = open_store(repository, config_file=config_file)
    moves = open_moves(store, pairs)
    check_together(store, moves, journal.read_versions(repository))
    with journal.one_at_a_time(repository):
        versions = journal.read_versions(repository)
        target = _with_pairs(versions, pairs)
        changes = services.find_changes(store, declared_services(repository, target), pairs)
        if changes.kept:
            raise MigrationError(
                f"services {', '.join(changes.kept)} name {' and '.join(pairs)} in the Python files, so `feast apply` "
                f"would undo the switch; let them follow {schema.VERSIONS_FILE}, run `feast apply`, then the cutover:\n"
                f"{_EDIT}"
            )
        is_done = not changes.switched and target == versions
        unread = all(move.old_tag.producer == schema.SEQUENCE_STATES for move in moves)  # streams follow versions.yaml
        if not changes.switched and not is_done and not unread:
            raise MigrationError(f"no service reads {' or '.join(pairs)}, so there is nothing to switch")
        coverage = {move.new.name: measure_coverage(store, move) for move in moves}
        for view, found in coverage.items():
            _check_coverage(view, found, min_coverage, is_done=is_done)
        if is_done:
            return Switched(pairs, (), coverage)
        services.check_readable(store, changes)
        shares = {view: found.share for view, found in coverage.items()}
        names = _switch(store, repository, "cutover", pairs, target, changes, shares)
    return Switched(pairs, names, coverage)


def rollback(repository: Path, pairs: Pairs, *, config_file: str | None = None) -> Switched:
    """Let services read the old views again; all pairs of one cutover go back together.

    Raises
    ------
    MigrationError
        Services don't read the new view in the old one's place, or it was replaced in turn.
    """
    store = open_store(repository, config_file=config_file)
    for old, new in list(pairs.items()):
        pairs = {**journal.switched_together(repository, old, new), **pairs}
    known = [view.name for view in store.list_feature_views()]
    for old in pairs:
        if old not in known:
            raise ConfigError(f"feature view {old!r} is no longer in the registry; {did_you_mean(old, known)}")
    with journal.one_at_a_time(repository):
        versions = journal.read_versions(repository)
        target = {old: new for old, new in versions.items() if pairs.get(old) != new}
        back = {new: old for old, new in pairs.items()}
        for new in back:
            last = schema.current_version(new, versions)
            if last != new:
                raise MigrationError(f"services read {last} in place of {new}; roll that back first")
        changes = services.find_changes(store, declared_services(repository, target), back)
        if not changes.switched and target == versions:
            raise MigrationError(
                f"services don't read {' and '.join(back)} in place of {' and '.join(pairs)}"
                + (f" ({', '.join(changes.kept)} name it in the Python files)" if changes.kept else "")
                + "; there is nothing to roll back"
            )
        services.check_readable(store, changes)
        names = _switch(store, repository, "rollback", pairs, target, changes, {})
    return Switched(back, names)


def _switch(
    store: feast.FeatureStore,
    repository: Path,
    action: str,
    pairs: Pairs,
    target: Pairs,
    changes: services.Changes,
    shares: dict[str, float],
) -> tuple[str, ...]:
    """Write versions.yaml, then all services; the other way round, a kill in between would let ``apply`` undo it."""
    names = tuple(change.name for change in changes.switched)
    facts = {"action": action, "views": pairs, "services": list(names), "coverage": shares}
    journal.note(repository, state="begun", **facts)
    journal.write_versions(repository, target)
    services.apply_changes(store, changes)
    journal.note(repository, state="done", **facts)
    return names


def _with_pairs(versions: Pairs, pairs: Pairs) -> Pairs:
    for old, new in pairs.items():
        now_read = schema.current_version(old, versions)
        if now_read not in (old, new):
            raise MigrationError(
                f"services read {now_read} in place of {old}; name {now_read} as the VIEW to move from"
            )
        if new in versions:
            raise MigrationError(
                f"{schema.VERSIONS_FILE} puts {versions[new]} in the place of {new}; take that back first: "
                f"`recsys-llm migrate rollback {new} {versions[new]}`"
            )
    return {**versions, **pairs}


def _check_coverage(view: str, found: Coverage, least: float, *, is_done: bool) -> None:
    if found.share < least:
        state = "Services of this registry read it already" if is_done else "Nothing was switched"
        raise MigrationError(
            f"{view} covers {found}; expected at least {least:.3%}. Not covered, for example: "
            f"{', '.join(found.examples)}. {state}; run `recsys-llm migrate backfill` and try again, or lower "
            "--min-coverage"
        )
