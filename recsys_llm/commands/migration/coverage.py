"""How many of the live keys of a view its new version holds: in the parts, and in the online store."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from recsys_llm.commands.migration.moves import Move
from recsys_llm.engine.engine import parts_directory
from recsys_llm.errors import ConfigError
from recsys_llm.producers.parts import part_files
from recsys_llm.retrieval.columns import Kind
from recsys_llm.retrieval.online import NO_ROW, Request, open_reader
from recsys_llm.retrieval.service import Feature, View, resolve_definition
from recsys_llm.schema import EVENT_TIMESTAMP, ROW_ID, feature_column
from recsys_llm.sources.connection import open_duckdb, quoted
from recsys_llm.timestamps import now, to_micros

if TYPE_CHECKING:
    import feast

COMPLETE = 100_000
"""Up to so many live keys, each is looked up online; beyond, as many drawn at random."""
_KEYS_PER_READ = 2_000
_EXAMPLES = 5
_SECOND = 1_000_000

Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Coverage:
    """How much of a view its new version holds.

    A key is live while its newest row is within the view's ttl. It is covered when the new version has a row of the
    same time or later, and the online store has that row or a later one.
    """

    live: int
    offline_missing: int
    """Live keys without a row in the new version's parts."""
    behind: int
    """Live keys whose row there is older than that of the old version."""
    checked: int
    """Live keys that were looked up online."""
    online_missing: int
    """Of these, keys that the parts hold and the online store doesn't, or holds in an older row."""
    share: float
    """Covered keys among those looked up, or (if less) those that the parts cover among all."""
    examples: tuple[str, ...]
    """Some keys that are not covered."""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {**asdict(self), "examples": list(self.examples)}

    def __str__(self) -> str:
        sample = "" if self.checked == self.live else f" (of {self.checked:,} looked up)"
        return (
            f"{self.share:.3%} of {self.live:,} live keys; missing in the parts {self.offline_missing:,}, older there "
            f"{self.behind:,}, missing online {self.online_missing:,}{sample}"
        )


def measure_coverage(store: feast.FeatureStore, move: Move, *, seed: int = 0) -> Coverage:
    """Compare both versions of a view.

    Raises
    ------
    ConfigError
        The old version holds no live row, so there is nothing to compare with.
    StoreError
        The online store can't be read.
    """
    keys, wanted, held = newest_times(move, Path(store.repo_path))
    missing, behind = held == NO_ROW, (held != NO_ROW) & (held < wanted)
    offline = ~(missing | behind)
    looked_up = np.arange(len(keys))
    if len(keys) > COMPLETE:
        looked_up = np.sort(np.random.default_rng(seed).choice(len(keys), COMPLETE, replace=False))
    online = np.ones(len(keys), np.bool_)
    present = looked_up[~missing[looked_up]]
    stamps = online_stamps(store, move.new, [keys[place] for place in present])
    # The sqlite store keeps whole seconds.
    online[present] = (stamps != NO_ROW) & (stamps >= held[present] // _SECOND * _SECOND)
    covered = offline & online
    return Coverage(
        live=len(keys),
        offline_missing=int(missing.sum()),
        behind=int(behind.sum()),
        checked=len(looked_up),
        online_missing=int((~online).sum()),
        share=min(float(covered[looked_up].mean()), float(offline.mean())),
        examples=tuple(keys[place] for place in np.flatnonzero(~covered)[:_EXAMPLES]),
    )


def newest_times(move: Move, root: Path) -> tuple[list[str], Ints, Ints]:
    """Return the live keys of the old version, the time of their newest row there, and that in the new version.

    Times are microseconds since the epoch; :data:`NO_ROW` where the new version has no row.
    """
    old, new = (part_files(parts_directory(view, root)) for view in (move.old, move.new))
    ttl = 0 if move.old.ttl is None else move.old.ttl.total_seconds() * _SECOND
    first = to_micros(now()) - int(ttl) if ttl else None
    key = quoted(move.join_key)
    newest = f"SELECT {key} AS key, max({EVENT_TIMESTAMP}) AS time FROM read_parquet(?) GROUP BY 1"
    empty = "SELECT NULL::VARCHAR AS key, NULL::TIMESTAMPTZ AS time WHERE false"
    query = f"""
        WITH old AS ({newest if old else empty}), new AS ({newest if new else empty})
        SELECT old.key, epoch_us(old.time), coalesce(epoch_us(new.time), {NO_ROW}) FROM old LEFT JOIN new USING (key)
        WHERE {"true" if first is None else f"epoch_us(old.time) >= {first}"} ORDER BY 1
    """
    with open_duckdb() as connection:
        rows = connection.execute(query, [[str(file) for file in files] for files in (old, new) if files]).fetchnumpy()
    keys, wanted, held = rows.values()
    if not len(keys):
        raise ConfigError(
            f"view {move.old.name}: holds no live row in {parts_directory(move.old, root)}; materialise it first, or "
            "name the view that services read"
        )
    return [str(key) for key in keys], np.asarray(wanted, np.int64), np.asarray(held, np.int64)


def online_stamps(store: feast.FeatureStore, view: feast.FeatureView, keys: list[str]) -> Ints:
    """Return the time of each key's row in the online store, in microseconds; :data:`NO_ROW` where there is none."""
    reader, light = open_reader(store), row_id_view(store, view)
    stamps = np.full(len(keys), NO_ROW, np.int64)
    try:
        for first in range(0, len(keys), _KEYS_PER_READ):
            some = tuple(keys[first : first + _KEYS_PER_READ])
            stamps[first : first + len(some)] = reader.read([Request(light.entity, (light,), some)])[0][0].timestamps
    finally:
        reader.close()
    return stamps


def row_id_view(store: feast.FeatureStore, view: feast.FeatureView) -> View:
    """Return a view that reads row ids alone where it has them: no vector travels."""
    from feast import FeatureService

    (resolved,) = resolve_definition(store, FeatureService(name=view.name, features=[view])).views
    if not resolved.has_row_id:
        return resolved
    return replace(resolved, features=(Feature(ROW_ID, feature_column(view.name, ROW_ID), Kind.SCALAR),))
