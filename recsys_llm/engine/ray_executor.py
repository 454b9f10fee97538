"""Producers on a Ray cluster: chunks go to a pool of workers, features come back, the driver stores them.

Plain actors, not Ray Data: only the driver knows which rows are due, since it asks the ledger, so it streams chunks
itself; and with actors a chunk is the unit of what is sent, retried and recorded. The driver alone writes parts,
publishes and records, as it does without Ray, so that all that holds for a killed run holds here too. Per worker two
chunks are under way, one computing and one waiting, which bounds the memory. A worker that dies is started again by
Ray, and its chunks are computed again.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from recsys_llm.errors import ConfigError, ExecutorError, FingerprintError, RecsysLLMError
from recsys_llm.producers.base import Due

CHUNKS_PER_WORKER = 2
RETRIES = 3
"""Of a chunk whose worker died. A chunk that kills every worker it meets ends the run."""


@dataclass(frozen=True)
class RayPool:
    """How many workers, and what each needs."""

    address: str | None = None
    """Such as ``auto`` or ``ray://head:10001``. None: ``$RAY_ADDRESS``, else a cluster on this machine."""
    min_workers: int = 1
    max_workers: int = 2
    """More than ``min_workers`` are started while chunks are waiting."""
    cpus_per_worker: float = 1.0
    gpus_per_worker: float = 0.0
    start_seconds: float = 300.0
    """How long to wait for a worker while there is none."""


@dataclass
class _Worker:
    actor: Any
    chunks: int = 0


@dataclass
class _Counts:
    """Rows of each chunk that was sent, and of each whose features came back."""

    sent: dict[int, int] = field(default_factory=dict)
    returned: dict[int, int] = field(default_factory=dict)

    def check(self, view: str) -> None:
        """Refuse to call a run done whose chunks are not all there, once each."""
        if self.sent != self.returned:
            wrong = sorted(set(self.sent.items()) ^ set(self.returned.items()))
            raise ExecutorError(
                f"view {view}: {len(self.sent)} chunks of {sum(self.sent.values())} rows were sent and "
                f"{len(self.returned)} of {sum(self.returned.values())} rows came back (such as chunk {wrong[0][0]}); "
                "nothing is lost, run the command again"
            )


class RayExecutor:
    """Computes chunks on the workers of a cluster.

    Parameters
    ----------
    view
        Whose rows are computed; for messages.
    pool
        Size and needs.
    worker
        Class of the workers: ``fingerprint()`` and ``compute(rows, events)``.
    arguments
        What each is made with.
    fingerprint
        Of the producer in this process; workers must have the same.
    """

    def __init__(
        self, view: str, pool: RayPool, worker: Callable[..., Any], arguments: tuple[Any, ...], fingerprint: str
    ) -> None:
        self._view = view
        self._settings = pool
        self._worker = worker
        self._arguments = arguments
        self._fingerprint = fingerprint
        self._starting: dict[Any, _Worker] = {}
        self._workers: list[_Worker] = []

    def __call__(self, chunks: Iterator[Due]) -> Iterator[tuple[Due, pa.RecordBatch]]:
        """Yield each chunk with its features, as they are ready.

        Raises
        ------
        ExecutorError
            No worker could be started, or all that were given a chunk died.
        FingerprintError
            A worker has another model.
        Exception
            Whatever a worker raised.
        """
        self._ray = _connected(self._settings)
        try:
            yield from self._computed(chunks)
        finally:
            self._stop()

    def _computed(self, chunks: Iterator[Due]) -> Iterator[tuple[Due, pa.RecordBatch]]:
        counts, waiting = _Counts(), _Chunks(chunks)
        under_way: dict[Any, tuple[_Worker, int, Due]] = {}
        events = _SharedEvents(self._ray.put)
        for _ in range(self._settings.min_workers if waiting.next is not None else 0):
            self._start()
        while under_way or waiting.next is not None:
            while waiting.next is not None and (worker := self._free()) is not None:
                number, due = waiting.take()
                counts.sent[number] = due.rows.num_rows
                worker.chunks += 1
                under_way[worker.actor.compute.remote(due.rows, events.of(due))] = (worker, number, due)
            if waiting.next is not None and not self._starting and self._size() < self._settings.max_workers:
                self._start()
            for ready in self._ready(list(under_way)):
                if ready in self._starting:
                    self._started(ready)
                    continue
                worker, number, due = under_way.pop(ready)
                worker.chunks -= 1
                features = self._get(ready)
                counts.returned[number] = features.num_rows
                yield due, features
        counts.check(self._view)

    def _start(self) -> None:
        needs = {"num_cpus": self._settings.cpus_per_worker, "num_gpus": self._settings.gpus_per_worker}
        remote = self._ray.remote(self._worker).options(max_restarts=-1, max_task_retries=RETRIES, **needs)
        actor = remote.remote(*self._arguments)
        self._starting[actor.fingerprint.remote()] = _Worker(actor)

    def _started(self, ready: Any) -> None:
        worker = self._starting.pop(ready)
        found = self._get(ready)
        if found != self._fingerprint:
            raise FingerprintError(
                f"view {self._view}: a worker computes with fingerprint {found}, this process with "
                f"{self._fingerprint}; install the same model, settings and package on all machines"
            )
        self._workers.append(worker)

    def _free(self) -> _Worker | None:
        """Return the worker with the fewest chunks; None if all have enough."""
        least = min(self._workers, key=lambda worker: worker.chunks, default=None)
        return least if least is not None and least.chunks < CHUNKS_PER_WORKER else None

    def _size(self) -> int:
        return len(self._workers) + len(self._starting)

    def _ready(self, under_way: list[Any]) -> list[Any]:
        limit = None if self._workers else self._settings.start_seconds
        ready, _ = self._ray.wait([*under_way, *self._starting], num_returns=1, timeout=limit)
        if not ready:
            needs = f"{self._settings.cpus_per_worker} CPUs and {self._settings.gpus_per_worker} GPUs"
            raise ExecutorError(
                f"view {self._view}: no worker started within {limit:.0f} s; each needs {needs}, the cluster has "
                f"{self._ray.cluster_resources()}; lower the needs under batch_engine, or add machines"
            )
        return list(ready)

    def _get(self, reference: Any) -> Any:
        """Return a worker's result, or raise what it raised."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RecsysLLMError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError as error:
            raise ExecutorError(
                f"view {self._view}: a worker died and did so again after {RETRIES} retries, or could not load its "
                f"model; look into the logs of Ray. {error}"
            ) from None

    def _stop(self) -> None:
        for worker in [*self._workers, *self._starting.values()]:
            self._ray.kill(worker.actor)
        self._workers, self._starting = [], {}


class _Chunks:
    """Chunks, numbered, and whether there is another one."""

    def __init__(self, chunks: Iterator[Due]) -> None:
        self._chunks = enumerate(chunks)
        self.next = next(self._chunks, None)

    def take(self) -> tuple[int, Due]:
        assert self.next is not None
        taken, self.next = self.next, next(self._chunks, None)
        return taken


class _SharedEvents:
    """Events of the newest due rows, handed to the cluster once for all chunks of them."""

    def __init__(self, put: Callable[[Any], Any]) -> None:
        self._put = put
        self._newest: tuple[pa.RecordBatch, Any] | None = None

    def of(self, due: Due) -> Any:
        if due.events is None:
            return None
        if self._newest is None or self._newest[0] is not due.events:
            self._newest = (due.events, self._put(due.events))
        return self._newest[1]


def _connected(pool: RayPool) -> Any:
    """Return Ray, connected to the cluster; one of this machine ends with the process."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.exceptions
    except ImportError:
        raise ConfigError(
            "batch_engine: executor: ray needs Ray; run `pip install 'recsys-llm[ray]'`, or set executor: local"
        ) from None
    if not ray.is_initialized():
        try:
            ray.init(address=pool.address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, TypeError, ValueError) as error:
            raise ExecutorError(f"batch_engine: ray_address {pool.address!r}: {error}") from None
    return ray
