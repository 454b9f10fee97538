"""``recsys-llm repair`` and ``compact``: an online store filled from the parts, and fewer parts."""

from __future__ import annotations

from pathlib import Path

from recsys_llm.commands.operations.opening import stored_view
from recsys_llm.engine.publish import OnlinePublisher
from recsys_llm.engine.runs import online_run
from recsys_llm.errors import LedgerError
from recsys_llm.producers.maintenance import Rewritten, compact, settled
from recsys_llm.producers.pipeline import republish


def repair_view(repository: Path, name: str, *, config_file: str | None = None) -> int:
    """Publish all stored rows of a view again, without computing any, and return how many were read.

    Raises
    ------
    ConfigError
        There is no such view.
    LedgerError
        The view is being materialised, holds no rows, or parts and ledger differ.
    StoreError
        The online store can't be written to.
    """
    with stored_view(repository, name, config_file) as view:
        store = view.store
        online = store.provider.online_store
        with view.ledger.lock(name), online_run(online, store.config, name) as identity:
            if not settled(name, view.ledger, view.parts):
                raise LedgerError(f"view {name}: holds no rows to publish; materialise it")
            publish = OnlinePublisher(store.config, online, view.definition)
            rows = republish(name, view.join_key, view.ledger, view.parts, publish)
            view.ledger.mark_published(name, identity)
        return rows


def compact_view(repository: Path, name: str, *, rows_per_part: int, config_file: str | None = None) -> Rewritten:
    """Merge the small parts of a view; its rows stay what they are.

    Raises
    ------
    ConfigError
        There is no such view.
    LedgerError
        The view is being materialised, or parts and ledger differ.
    """
    with stored_view(repository, name, config_file) as view:
        return compact(name, view.ledger, view.parts, rows_per_part=rows_per_part)
