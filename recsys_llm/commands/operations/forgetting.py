"""``recsys-llm forget``: a person's rows removed wherever recsys_llm keeps them, and looked for again afterwards.

What stays: counts over many people (item statistics, segments and everyone), and models trained on them. Source tables
are the user's own; rows that are left there would be computed again, so they count as not forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_llm.commands.migration.coverage import online_stamps
from recsys_llm.commands.operations.online_rows import delete_online
from recsys_llm.commands.operations.opening import parts_in
from recsys_llm.config import Config, load_config
from recsys_llm.engine.engine import parts_directory
from recsys_llm.errors import DataError
from recsys_llm.producers import Ledger, Parts, ProducerTag, open_ledger
from recsys_llm.producers.maintenance import forget
from recsys_llm.producers.parts import part_files
from recsys_llm.retrieval import open_store
from recsys_llm.retrieval.online import NO_ROW
from recsys_llm.schema import GLOBAL_USER, SEGMENT_USER, USER_ID
from recsys_llm.sources import tables

if TYPE_CHECKING:
    import feast


@dataclass(frozen=True)
class Forgotten:
    """What was removed, and what was found afterwards."""

    user: str
    removed_rows: dict[str, int]
    """View to the rows that its parts no longer hold."""
    left: dict[str, int]
    """Where rows of the user are found after all, and how many; empty: nowhere."""
    not_searched: list[str]
    """What may hold the user and isn't read here: other programs write it."""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        total = sum(self.removed_rows.values())
        told = f"user {self.user!r}: removed {total:,} rows of {len(self.removed_rows)} views, online and in the ledger"
        if self.left:
            left = ", ".join(f"{place} ({rows:,} rows)" for place, rows in self.left.items())
            told += f"; still found in {left}: remove them there, then run the command again"
        else:
            told += "; looked again: nothing is left"
        return told + (f"; not searched: {', '.join(self.not_searched)}" if self.not_searched else "")


def forget_user(repository: Path, user: str, *, config_file: str | None = None) -> Forgotten:
    """Remove all rows of a user.

    Parameters
    ----------
    config_file
        Names the online store; where several files name several, each wants a run of its own.

    Raises
    ------
    DataError
        The id stands for no person.
    LedgerError
        A view is being materialised, or has to be once, to finish a killed run.
    StoreError
        The online store can't be reached.
    """
    if user == GLOBAL_USER or user.startswith(SEGMENT_USER):
        raise DataError(f"user {user!r}: stands for a segment or for everyone, not for a person; name a user's id")
    removed: dict[str, int] = {}
    config, store = load_config(repository), open_store(repository, config_file=config_file)
    views, ledger = store.list_feature_views(), open_ledger(config)
    registered = {view.name for view in views}
    try:
        stored = dict(_personal_parts(config.root, views, ledger))
        for view, parts in stored.items():
            # A folder that neither knows is not ours to rewrite: rows in it are found below.
            if view in registered or ledger.parts(view):
                removed[view] = forget(view, USER_ID, user, ledger, parts).removed
        delete_online(store, USER_ID, user)
        left = {**dict(_in_parts(ledger, stored, user)), **dict(_online(store, views, user))}
        unknown = sorted(ledger.views() - registered - stored.keys())
    finally:
        ledger.close()
    not_searched = list(_other_sources(views, stored))
    not_searched += [f"view {view}, which the ledger has and this registry has not" for view in unknown]
    not_searched += [f"saved dataset {dataset.name}" for dataset in store.list_saved_datasets()]
    return Forgotten(user, removed, left | dict(_in_sources(config, user)), not_searched)


def _personal_parts(root: Path, views: Sequence[feast.FeatureView], ledger: Ledger) -> Iterator[tuple[str, Parts]]:
    """Yield views of users with their parts; those that are registered no more too, if their folders lie beside."""
    computed = [view for view in views if ProducerTag.of(view.name, view.tags) is not None]
    folders = {parts_directory(view, root): view for view in computed}
    beside = {folder for parent in {folder.parent for folder in folders} for folder in parent.iterdir()}
    for folder in sorted(folders.keys() | beside):
        view = folders.get(folder)
        if view is None and not any(USER_ID in pq.read_schema(file).names for file in part_files(folder)):
            continue
        if view is None or view.join_keys == [USER_ID]:
            name = folder.name if view is None else view.name
            yield name, parts_in(folder, name, ledger)


def _in_parts(ledger: Ledger, stored: Mapping[str, Parts], user: str) -> Iterator[tuple[str, int]]:
    for view, parts in stored.items():
        in_parts = sum(pc.sum(pc.equal(parts.read(n, [USER_ID]).column(0), user)).as_py() or 0 for n in parts.names())
        counts = {"parts": in_parts, "ledger": ledger.count_key(view, user)}
        yield from ((f"{view} {place}", count) for place, count in counts.items() if count)


def _online(store: feast.FeatureStore, views: Sequence[feast.FeatureView], user: str) -> Iterator[tuple[str, int]]:
    for view in views:
        if view.online and view.join_keys == [USER_ID]:
            count = int((online_stamps(store, view, [user]) != NO_ROW).sum())
            if count:
                yield f"{view.name} online", count


def _other_sources(views: Sequence[feast.FeatureView], stored: Mapping[str, Parts]) -> Iterator[str]:
    for view in views:
        if USER_ID in view.join_keys and view.name not in stored:
            yield f"the source of view {view.name}, which recsys_llm doesn't compute"


def _in_sources(config: Config, user: str) -> Iterator[tuple[str, int]]:
    readers = {"interactions": tables.interactions, "users": tables.users, "user_words": tables.user_words}
    for name, read in readers.items():
        count = sum(pc.sum(pc.equal(batch.column(USER_ID), user)).as_py() or 0 for batch in read(config))
        if count:
            yield f"source {name}", count
