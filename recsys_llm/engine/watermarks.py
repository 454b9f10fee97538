"""Feast's watermark when several processes materialise one view.

Feast reads a view from its registry, appends an interval, and writes the view back; a run that does so at the same
time, or that marks its view as being materialised, writes an older list over it. What is lost is only the note that an
interval is done. So each run notes its interval in the ledger first, then, one at a time, adds to the registry whatever
has ended lately and is missing there.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any

from feast import FeatureView
from feast.infra.registry.base_registry import BaseRegistry

from recsys_llm.producers import Ledger
from recsys_llm.producers.hashing import HASH_BYTES
from recsys_llm.timestamps import from_micros, now, to_micros

_LOCK = "registry_intervals"
_WAIT_SECONDS = 60.0
_LONGEST_RUN = timedelta(days=1)
"""Feast reads all views of a run at its beginning: what ended since then may be written over."""


def keep_intervals(registry: BaseRegistry, path: str, view: FeatureView, open_ledger: Callable[[], Ledger]) -> None:
    """Let the next ``apply_materialization`` of ``registry`` lose no interval of ``view``.

    Parameters
    ----------
    path
        Where the registry is; only a hash of it is noted.
    """
    original = registry.apply_materialization
    since = to_micros(now() - _LONGEST_RUN)
    identity = blake2b(path.encode(), digest_size=HASH_BYTES).hexdigest()

    def apply(feature_view: FeatureView, project: str, start: datetime, end: datetime, commit: bool = True) -> None:
        del registry.apply_materialization  # the class's own is there again
        if feature_view.name != view.name:
            original(feature_view, project, start, end, commit)
            return
        ledger = open_ledger()
        try:
            key = (view.name, identity)
            ledger.note_interval(*key, to_micros(start), to_micros(end), to_micros(now()))
            with ledger.lock(_LOCK, wait=_WAIT_SECONDS):
                original(feature_view, project, start, end, commit)
                for lost in sorted(ledger.intervals(*key, since) - _known(registry, view.name, project)):
                    original(feature_view, project, *map(from_micros, lost), commit)
        finally:
            ledger.close()

    registry.apply_materialization = apply


def _known(registry: BaseRegistry, name: str, project: str) -> set[tuple[int, int]]:
    view: Any = registry.get_feature_view(name, project, allow_cache=False)
    return {(to_micros(start), to_micros(end)) for start, end in view.materialization_intervals}
