"""What runs in a worker process of a Ray cluster: one producer with its model, loaded once, asked chunk by chunk."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from recsys_llm.config import Config
from recsys_llm.producers import ProducerTag, open_producer

_UNUSED_URL = "sqlite://"


class ComputeWorker:
    """One process's producer.

    Parameters
    ----------
    view
        Name of the view.
    tag
        The view's tag.
    config
        From :func:`worker_config`; its paths must exist on the worker's machine too.
    device
        As in ``batch_engine``.
    """

    def __init__(self, view: str, tag: ProducerTag, config: dict[str, Any], device: str) -> None:
        self._producer = open_producer(view, tag, Config.model_validate(config), device=device)

    def fingerprint(self) -> str:
        """Return the fingerprint of what this worker computes with."""
        return self._producer.manifest["fingerprint"]

    def compute(self, rows: pa.RecordBatch, events: pa.RecordBatch | None) -> pa.RecordBatch:
        """Return the features of a chunk."""
        return self._producer.compute(rows, events)


def worker_config(config: Config) -> dict[str, Any]:
    """Return a configuration for workers as plain data, without the addresses of databases: workers need none.

    Examples
    --------
    >>> interactions = {"sql": "postgresql://me:secret@db/shop", "query": "select 1"}
    >>> given = {"sources": {"items": {"parquet": "i.parquet"}, "interactions": interactions}, "root": "/repo"}
    >>> made = worker_config(Config.model_validate(given))
    >>> "secret" in str(made), made["sources"]["interactions"]["query"]
    (False, 'select 1')
    """
    made: dict[str, Any] = _without_urls(config.model_dump(mode="json"))
    return made | {"ledger": _UNUSED_URL}


def _without_urls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _UNUSED_URL if k == "sql" and v is not None else _without_urls(v) for k, v in value.items()}
    return [_without_urls(item) for item in value] if isinstance(value, list) else value
