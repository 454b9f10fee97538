"""``recsys-llm forget``: a person's rows removed wherever recsys_llm keeps them, and looked for again afterwards.

What stays: counts over many people (item statistics, segments and everyone), and models trained on them. Source tables
are the user's own; rows that are left there would be computed again, so they count as not forgotten.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from recsys_llm.commands.migration.coverage import online_stamps
from recsys_llm.commands.operations.online_rows import delete_online
from recsys_llm.commands.operations.opening import StoredView, stored_views
from recsys_llm.config import Config, load_config
from recsys_llm.errors import DataError
from recsys_llm.producers.maintenance import forget
from recsys_llm.retrieval.online import NO_ROW
from recsys_llm.schema import GLOBAL_USER, SEGMENT_USER, USER_ID
from recsys_llm.sources import tables


@dataclass(frozen=True)
class Forgotten:
    """What was removed, and what was found afterwards."""

    user: str
    removed_rows: dict[str, int]
    """View to the rows that its parts no longer hold."""
    left: dict[str, int]
    """Where rows of the user are found after all, and how many; empty: nowhere."""

    def as_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        total = sum(self.removed_rows.values())
        head = f"user {self.user!r}: removed {total:,} rows of {len(self.removed_rows)} views, online and in the ledger"
        if not self.left:
            return f"{head}; looked again: nothing is left"
        left = ", ".join(f"{place} ({rows:,} rows)" for place, rows in self.left.items())
        return f"{head}; still found in {left}: remove them there, then run the command again"


def forget_user(repository: Path, user: str, *, config_file: str | None = None) -> Forgotten:
    """Remove all rows of a user.

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
    with stored_views(repository, config_file) as views:
        personal = [view for view in views if view.join_key == USER_ID]
        for view in personal:
            removed[view.name] = forget(view.name, USER_ID, user, view.ledger, view.parts).removed
        if personal:
            delete_online(personal[0].store, [view.definition for view in personal], user)
        left = dict(_found(personal, user))
    left |= dict(_in_sources(load_config(repository), user))
    return Forgotten(user, removed, left)


def _found(views: list[StoredView], user: str) -> Iterator[tuple[str, int]]:
    """Yield where a user's rows are, in all that recsys_llm writes."""
    for view in views:
        parts = view.parts
        in_parts = sum(pc.sum(pc.equal(parts.read(n, [USER_ID]).column(0), user)).as_py() or 0 for n in parts.names())
        online = int((online_stamps(view.store, view.definition, [user]) != NO_ROW).sum())
        counts = {"parts": in_parts, "online": online, "ledger": view.ledger.count_key(view.name, user)}
        yield from ((f"{view.name} {place}", count) for place, count in counts.items() if count)


def _in_sources(config: Config, user: str) -> Iterator[tuple[str, int]]:
    readers = {"interactions": tables.interactions, "users": tables.users, "user_words": tables.user_words}
    for name, read in readers.items():
        count = sum(pc.sum(pc.equal(batch.column(USER_ID), user)).as_py() or 0 for batch in read(config))
        if count:
            yield f"source {name}", count
