"""``recsys-llm migrate plan``: what a new version costs, who reads the old one, and what would break."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from recsys_llm.commands.migration.moves import Move
from recsys_llm.commands.migration.sequence_views import left_behind
from recsys_llm.commands.migration.services import readers
from recsys_llm.config import Config
from recsys_llm.engine.engine import parts_directory
from recsys_llm.errors import ConfigError
from recsys_llm.producers import open_ledger, open_producer, plan
from recsys_llm.producers.parts import part_files, read_manifest
from recsys_llm.retrieval import parts
from recsys_llm.retrieval.service import resolve
from recsys_llm.timestamps import as_utc, now

if TYPE_CHECKING:
    import feast

FINGERPRINT, ENCODER, BRIDGES, BRIDGED = "fingerprint", "encoder_fingerprint", "bridges", "bridged_encoder"
VECTOR = "vector"


@dataclass(frozen=True)
class MovePlan:
    """What it takes to put one view in the place of another."""

    old: str
    new: str
    old_fingerprint: str
    new_fingerprint: str
    rows_due: int
    rows_to_compute: int
    cost: int
    """Work of the rows to compute, in ``unit``."""
    unit: str
    services: tuple[str, ...]
    """Services that read the old view now."""
    consequences: tuple[str, ...]
    """What the switch breaks or changes, a sentence each."""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "services": list(self.services), "consequences": list(self.consequences)}

    def __str__(self) -> str:
        lines = [
            f"{self.old} (fingerprint {self.old_fingerprint}) -> {self.new} (fingerprint {self.new_fingerprint})",
            f"  to compute  {self.rows_to_compute:,} of {self.rows_due:,} rows"
            + ("" if self.unit == "rows" else f", {self.cost:,} {self.unit}"),
            f"  services    {', '.join(self.services) or 'none reads ' + self.old}",
            *(f"  note        {sentence}" for sentence in self.consequences),
        ]
        return "\n".join(lines)


def covered_time(store: feast.FeatureStore, move: Move) -> tuple[datetime, datetime]:
    """Return the interval (start, end] that the old view was materialised over.

    The new view ends where the old one does, so that ``feast materialize-incremental`` takes both on from there.

    Raises
    ------
    ConfigError
        The old view was never materialised.
    """
    intervals = store.get_feature_view(move.old.name).materialization_intervals
    if not intervals:
        raise ConfigError(
            f"view {move.old.name}: was never materialised, so there is nothing to migrate; materialise it"
        )
    start = min(as_utc(first) for first, _ in intervals)
    return start, min(max(as_utc(last) for _, last in intervals), now())


def plan_move(
    store: feast.FeatureStore, config: Config, move: Move, moves: list[Move], versions: Mapping[str, str]
) -> MovePlan:
    """Say what a migration would compute, read and break, without changing anything.

    Parameters
    ----------
    moves
        All views that would be switched together; ``move`` is one of them.
    versions
        View to the view that is read in its place now.

    Raises
    ------
    ConfigError
        The old view was never materialised, or the new one's model can't be found.
    """
    start, end = covered_time(store, move)
    files = part_files(parts_directory(move.old, config.root))
    old = read_manifest(files[0]) if files else {}
    producer = open_producer(move.new.name, move.new_tag, config)
    ledger = open_ledger(config)
    try:
        summary = plan(move.new.name, producer, ledger, start, end)
    finally:
        ledger.close()
    return MovePlan(
        old=move.old.name,
        new=move.new.name,
        old_fingerprint=old.get(FINGERPRINT, "not known"),
        new_fingerprint=producer.manifest[FINGERPRINT],
        rows_due=summary.due,
        rows_to_compute=summary.computed,
        cost=summary.cost,
        unit=summary.unit,
        services=tuple(readers(store, [move.old.name])),
        consequences=(*_consequences(store, move, moves, old, producer.manifest), *_parted(store, moves, versions)),
    )


def _parted(store: feast.FeatureStore, moves: list[Move], versions: Mapping[str, str]) -> list[str]:
    return [f"{sentence} (else the cutover is refused)" for sentence in left_behind(store, moves, versions)]


def _consequences(
    store: feast.FeatureStore, move: Move, moves: list[Move], old: Mapping[str, str], new: Mapping[str, str]
) -> list[str]:
    found = [
        f"features are called {move.new.name}__... after the switch; code that reads {move.old.name}__... by name must "
        "follow"
    ]
    if old.get(FINGERPRINT) == new[FINGERPRINT]:
        found.append("both have the same fingerprint: the model is the same, and rankers need only the new name")
    elif new.get(BRIDGES) is not None and new.get(BRIDGES) == old.get(FINGERPRINT):
        found.append(f"{move.new.name} is bridged to {move.old.name}: rankers that were trained on it go on")
    else:
        found.append(
            f"every ranker trained on {move.old.name} is refused on {move.new.name}: train it again, or let it live on "
            f"mapped vectors first (`recsys-llm migrate backfill {move.old.name} {move.new.name} --bridge`)"
        )
    if old.get("dim") != new.get("dim"):
        found.append(f"vectors have {new.get('dim')} numbers instead of {old.get('dim')}")
    if old.get(VECTOR, new.get(VECTOR)) != new.get(VECTOR):
        found.append(f"vectors are stored as {new.get(VECTOR)} instead of {old.get(VECTOR)}")
    companions = _companions(store, move, moves, old, new)
    if companions:
        also = " ".join(f"--with {view}=NEW_VERSION" for view in companions)
        found.append(
            f"the services also read {', '.join(companions)}, whose vectors come from the old encoder; move them too "
            f"({also}), or the cutover is refused"
        )
    return found


def _companions(
    store: feast.FeatureStore, move: Move, moves: list[Move], old: Mapping[str, str], new: Mapping[str, str]
) -> list[str]:
    """Return the views that share services and the encoder with the old view and would be left behind."""
    encoder = new.get(BRIDGED, new.get(ENCODER))
    if encoder is None or encoder == old.get(BRIDGED, old.get(ENCODER)):
        return []
    moved = {each.old.name for each in moves}
    found = set()
    for service in readers(store, [move.old.name]):
        made = parts.provenance(resolve(store, service))
        beside = {view: each.bridged_encoder or each.encoder for view, each in made.items() if view not in moved}
        found |= {view for view, other in beside.items() if other not in (None, encoder)}
    return sorted(found)
