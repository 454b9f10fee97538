"""Producers on a Ray cluster: chunks go to a pool of workers, features come back, the driver stores them.

Plain actors, not Ray Data: only the driver knows which rows are due, since it asks the ledger, so it streams chunks
itself; and with actors a chunk is the unit of what is sent, retried and recorded. The driver alone writes parts,
publishes and records, as it does without Ray, so that all that holds for a killed run holds here too. Per worker two
chunks are under way, one computing and one waiting, which bounds the memory. A worker that dies, alone or with its
machine, is dropped: its chunks are given to others, and a new one is started in its place. Ray's own restarts are off,
since they wait for a machine that may not come back while others are idle.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from recsys_llm.errors import ConfigError, ExecutorError, FingerprintError, RecsysLLMError
from recsys_llm.producers.base import Due

CHUNKS_PER_WORKER = 2
RETRIES = 3
"""Of a chunk whose worker died, and of workers that die one after the other before they are ready. A chunk that kills
every worker it meets ends the run."""


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


@dataclass(frozen=True)
class _Chunk:
    due: Due
    deaths: int = 0
    """Of workers that had it."""


class _Worker:
    """An actor and what is under way there: the reference of each result, to its chunk."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor
        self.under_way: dict[Any, _Chunk] = {}


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
        self._failed_starts = 0

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

    def _computed(self, due: Iterator[Due]) -> Iterator[tuple[Due, pa.RecordBatch]]:
        chunks, events = _Chunks(due), _SharedEvents(self._ray.put)
        for _ in range(self._settings.min_workers if chunks.are_left else 0):
            self._start()
        while chunks.are_left or any(worker.under_way for worker in self._workers):
            while chunks.are_left and (worker := self._free()) is not None:
                chunk = chunks.take()
                reference = worker.actor.compute.remote(chunk.due.rows, events.of(chunk.due))
                worker.under_way[reference] = chunk
            if chunks.are_left and not self._starting and len(self._workers) < self._settings.max_workers:
                self._start()
            for ready in self._ready():
                if ready in self._starting:
                    self._started(ready)
                    continue
                worker = next(worker for worker in self._workers if ready in worker.under_way)
                result = self._result(ready)
                if isinstance(result, self._ray.exceptions.RayError):
                    chunks.give_back(self._dropped(worker, result))
                else:
                    yield worker.under_way.pop(ready).due, result

    def _start(self) -> None:
        needs = {"num_cpus": self._settings.cpus_per_worker, "num_gpus": self._settings.gpus_per_worker}
        actor = self._ray.remote(self._worker).options(**needs).remote(*self._arguments)
        self._starting[actor.fingerprint.remote()] = _Worker(actor)

    def _started(self, ready: Any) -> None:
        worker = self._starting.pop(ready)
        found = self._result(ready)
        if isinstance(found, self._ray.exceptions.RayError):
            self._ray.kill(worker.actor)
            self._failed_starts += 1
            if self._failed_starts > RETRIES or getattr(found, "actor_init_failed", False):
                raise self._given_up(found)
            return
        self._failed_starts = 0
        if found != self._fingerprint:
            raise FingerprintError(
                f"view {self._view}: a worker computes with fingerprint {found}, this process with "
                f"{self._fingerprint}; install the same model, settings and package on all machines"
            )
        self._workers.append(worker)

    def _free(self) -> _Worker | None:
        """Return the worker with the fewest chunks; None if all have enough."""
        least = min(self._workers, key=lambda worker: len(worker.under_way), default=None)
        return least if least is not None and len(least.under_way) < CHUNKS_PER_WORKER else None

    def _dropped(self, worker: _Worker, error: Exception) -> list[_Chunk]:
        """Drop a worker that died or whose machine is gone, and return its chunks, which others are to compute."""
        self._workers.remove(worker)
        self._ray.kill(worker.actor)  # it may be alive behind a broken connection, and holds its CPUs
        chunks = [replace(chunk, deaths=chunk.deaths + 1) for chunk in worker.under_way.values()]
        if any(chunk.deaths > RETRIES for chunk in chunks):
            raise self._given_up(error)
        return chunks

    def _ready(self) -> list[Any]:
        limit = None if self._workers else self._settings.start_seconds
        under_way = [reference for worker in self._workers for reference in worker.under_way]
        ready, _ = self._ray.wait([*under_way, *self._starting], num_returns=1, timeout=limit)
        if not ready:
            needs = f"{self._settings.cpus_per_worker} CPUs and {self._settings.gpus_per_worker} GPUs"
            raise ExecutorError(
                f"view {self._view}: no worker started within {limit:.0f} s; each needs {needs}, the cluster has "
                f"{self._ray.cluster_resources()}; lower the needs under batch_engine, or add machines"
            )
        return list(ready)

    def _result(self, reference: Any) -> Any:
        """Return a worker's result, or the RayError that says why there is none; raise what its code raised."""
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, RecsysLLMError):
                raise error.cause from None
            raise
        except self._ray.exceptions.RayError as error:
            return error

    def _given_up(self, error: Exception) -> ExecutorError:
        return ExecutorError(
            f"view {self._view}: a worker died and did so again after {RETRIES} retries, or could not load its "
            f"model; look into the logs of Ray. {error}"
        )

    def _stop(self) -> None:
        for worker in [*self._workers, *self._starting.values()]:
            self._ray.kill(worker.actor)
        self._workers, self._starting = [], {}


class _Chunks:
    """Chunks to be sent: those that come back from workers that died, then new ones, drawn one ahead."""

    def __init__(self, due: Iterator[Due]) -> None:
        self._due = due
        self._next = next(due, None)
        self._again: deque[_Chunk] = deque()

    @property
    def are_left(self) -> bool:
        return bool(self._again) or self._next is not None

    def take(self) -> _Chunk:
        if self._again:
            return self._again.popleft()
        assert self._next is not None
        taken, self._next = self._next, next(self._due, None)
        return _Chunk(taken)

    def give_back(self, chunks: list[_Chunk]) -> None:
        self._again.extend(chunks)


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
