"""The one entry for models: features as of each example's time, and features now."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from recsys_llm import timestamps as clock
from recsys_llm.errors import SchemaError, ServiceError, did_you_mean
from recsys_llm.metrics import LookupMetrics
from recsys_llm.retrieval import parts
from recsys_llm.retrieval.blocks import EntityBlock
from recsys_llm.retrieval.caches import ItemCaches
from recsys_llm.retrieval.contract import Checked
from recsys_llm.retrieval.examples import Ids, check_examples, check_ids, check_timestamps, no_examples
from recsys_llm.retrieval.item_cache import CacheSettings, CacheStats
from recsys_llm.retrieval.joining import distinct_history, joined
from recsys_llm.retrieval.lookup import Lookup
from recsys_llm.retrieval.observer import LookupObserver
from recsys_llm.retrieval.online import OnlineReader
from recsys_llm.retrieval.online_client import OnlineClient
from recsys_llm.retrieval.online_emptied import checked_reader
from recsys_llm.retrieval.parts import Provenance, bridges_of, fingerprints_of
from recsys_llm.retrieval.service import Service, resolve
from recsys_llm.retrieval.slices import open_examples, time_slices
from recsys_llm.retrieval.store import open_store
from recsys_llm.retrieval.training import TrainingSet
from recsys_llm.schema import JOIN_KEYS

if TYPE_CHECKING:
    import feast


class FeatureClient(OnlineClient):
    """Reads the features of a Feast repository for training and for serving.

    Safe to use from several threads. A feature service is read from the registry once; call :meth:`refresh` after
    ``feast apply``.

    Parameters
    ----------
    repository
        Folder with ``feature_store.yaml``; opened at first use, from any working directory.
    store
        Instead of ``repository``: a Feast store that is open already.
    config_file
        Another file in the repository, such as ``feature_store.prod.yaml``.
    now
        The clock that ttl is measured with.
    item_cache
        Keep rows of items in this process between lookups; None: read them each time.
    observer
        Told of every lookup; None: the metrics of :mod:`recsys_llm.metrics`, in Prometheus' default registry.

    Examples
    --------
    ::

        client = FeatureClient("feature_repo")
        train = client.training_set(examples, service="ranker_v1")
        batch = client.lookup("42", ["7", "9"], service="ranker_v1")
    """

    def __init__(
        self,
        repository: Path | str | None = None,
        *,
        store: feast.FeatureStore | None = None,
        config_file: str | None = None,
        now: Callable[[], datetime] = clock.now,
        item_cache: CacheSettings | None = None,
        observer: LookupObserver | None = None,
    ) -> None:
        if (repository is None) == (store is None):
            raise SchemaError("FeatureClient: expected either a repository or store=, found both or none; give one")
        self._repository = repository
        self._config_file = config_file
        self._store = store
        self._now = now
        self._lock = threading.RLock()
        self._services: dict[str, Service] = {}
        self._provenance: dict[str, dict[str, Provenance]] = {}
        self._reader: OnlineReader | None = None
        self._lookups: dict[str, Lookup] = {}
        self._caches = ItemCaches(item_cache) if item_cache is not None else None
        self._confirmed: set[str] = set()
        """Services that the registry, read again, still has as they are."""
        self._observer: LookupObserver = observer if observer is not None else LookupMetrics()
        self._observer.watch(self)

    @property
    def store(self) -> feast.FeatureStore:
        """The Feast store; opened at first use."""
        with self._lock:
            if self._store is None:
                assert self._repository is not None  # by the constructor
                self._store = open_store(self._repository, config_file=self._config_file)
            return self._store

    def training_set(self, examples: pd.DataFrame, *, service: str) -> TrainingSet:
        """Join each example to the newest features stamped at or before its time.

        Row order and index are those of ``examples``, so labels stay aligned. Rows of users are stamped after the
        events they were computed from, so an example never sees its own event.

        Parameters
        ----------
        examples : n rows
            ``user_id``, ``item_id`` (str) and ``event_timestamp`` (tz-aware, microseconds). Other columns are carried
            through. Rows may repeat, in any order. A column ``segment`` (str or null) is the user's segment, for
            views with rows for cold users.
        service
            Feature service to read.

        Returns
        -------
        TrainingSet, n examples

        Raises
        ------
        SchemaError
            A column is missing, has another type, or has the name of a feature; the message names both.
        RowError
            An id or a time is null, or can't be used; the message names the row.
        ServiceError
            The service is unknown, or asks for what can't be read.
        FingerprintError
            The service mixes vectors of two models.
        RetrievalError
            The offline store and the parts contradict each other.
        """
        checked = check_examples(examples)
        resolved = self._measured_again(service)
        made = parts.provenance(resolved)
        return joined(
            self.store, resolved, examples, checked, fingerprints=fingerprints_of(made), bridges=bridges_of(made)
        )

    def training_slices(
        self, examples: pd.DataFrame | Path | str, *, service: str, rows: int = 200_000
    ) -> Iterator[TrainingSet]:
        """Yield :meth:`training_set` of slices of time, the earliest first, so that memory holds one at a time.

        Together they hold what one call gives: within a slice, examples keep their order and index.

        Parameters
        ----------
        examples
            As in :meth:`training_set`; or the path of a parquet file, or of a folder of them, that needn't fit in
            memory: the index of a slice are then the places of its rows in the files.
        rows
            Examples in a slice, 1 or more; the last one may be smaller.
        """
        if rows < 1:
            raise SchemaError(f"training_slices: expected rows of 1 or more, found {rows}")
        source = open_examples(examples)
        return (self.training_set(some, service=service) for some in time_slices(source, rows))

    def entity_history(
        self, entity: str, ids: Sequence[str] | Ids, timestamps: pd.DatetimeIndex | Sequence[datetime], *, service: str
    ) -> EntityBlock:
        """Return the features of one entity as of given times.

        Parameters
        ----------
        entity
            ``user`` or ``item``.
        ids
            Entity keys, n of them.
        timestamps
            tz-aware, n of them.
        service
            Feature service to read.

        Returns
        -------
        EntityBlock, n rows
            In the order of ``ids``.

        Raises
        ------
        SchemaError
            There are not as many times as ids, the entity is unknown, or the times are naive.
        RowError, ServiceError, RetrievalError
            As :meth:`training_set`.
        """
        if entity not in JOIN_KEYS:
            raise SchemaError(f"entity: expected user or item, found {entity!r}; {did_you_mean(entity, JOIN_KEYS)}")
        keys = check_ids(ids, name="ids")
        micros = check_timestamps(timestamps, name="timestamps")
        if len(keys) != len(micros):
            raise SchemaError(f"entity_history: expected as many times as ids, found {len(micros)} and {len(keys)}")
        block, rows = distinct_history(self.store, self._measured_again(service), entity, keys, micros)
        return block if len(block) == len(keys) else block.take(rows)

    def fingerprints(self, service: str) -> dict[str, str | None]:
        """Return the fingerprint of the model behind each view, read once from its parts; None where there are none.

        Raises
        ------
        FingerprintError
            The service mixes vectors of two models.
        """
        return fingerprints_of(self._made(service))

    def bridges(self, service: str) -> dict[str, str]:
        """Return the fingerprint that each bridged view stands in for; see :class:`FeatureBatch`.

        Raises
        ------
        FingerprintError
            The service mixes vectors of two models.
        """
        return bridges_of(self._made(service))

    def check(self, model: Checked, *, service: str | None = None) -> None:
        """Refuse a model, such as a ranker, that was trained on other features than a service has now; reads no row.

        ``service`` None: the one that the model was trained on.

        Raises
        ------
        FingerprintError, ServiceError
            A view has another fingerprint, or a feature is missing or of another type; the message names each.
        """
        model.check(self.training_set(no_examples(), service=service or model.service))

    def resolve(self, service: str | None) -> Service:
        """Return what a feature service asks for, read from the registry once; once more if it isn't there.

        Raises
        ------
        ServiceError
            The service is unknown, or asks for what can't be read.
        """
        if not isinstance(service, str):
            raise ServiceError(f"service: expected the name of a feature service, found {service!r}; pass its name")
        with self._lock:
            if service not in self._services:
                try:
                    found = resolve(self.store, service)
                except ServiceError:  # it may be newer than the registry's cache
                    self.store.refresh_registry()
                    found = resolve(self.store, service)
                self._services[service] = parts.measured(found)
            return self._services[service]

    def refresh(self) -> None:
        """Forget what was read from the registry and the parts."""
        with self._lock:
            self._confirmed.clear()
            self._forget()

    def close(self) -> None:
        """Close connections that the client opened itself."""
        with self._lock:
            self._lookups.clear()
            if self._caches is not None:
                self._caches.close()
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    def _made(self, service: str) -> dict[str, Provenance]:
        with self._lock:
            if service not in self._provenance:
                self._provenance[service] = parts.provenance(self.resolve(service))
            return self._provenance[service]

    def _measured_again(self, service: str) -> Service:
        """Resolve, and look for lengths of vectors that were not known the last time: parts may have come since."""
        with self._lock:
            self._services[service] = parts.measured(self.resolve(service))
            return self._services[service]

    def cache_stats(self, service: str) -> CacheStats:
        """Return hits, misses and sizes of the item cache of a service; zeros without one."""
        return self._caches.stats(service) if self._caches is not None else CacheStats()

    def cache_totals(self) -> tuple[int, int]:
        """Return hits and misses of the item caches of all services."""
        return self._caches.totals() if self._caches is not None else (0, 0)

    @property
    def project(self) -> str | None:
        """Of Feast; None before the repository is opened."""
        return None if self._store is None else str(self._store.project)

    @property
    def breaker_state(self) -> str:
        """Of our Redis store's circuit breaker: ``closed`` or ``open``; ``closed`` where there is none."""
        online = self._store.provider.online_store if self._store is not None else None
        return str(getattr(online, "breaker_state", "closed"))

    def _lookup(self, service: str | None) -> Lookup:
        with self._lock:  # a refresh in between would pair one version's columns with another's fingerprints
            resolved = self.resolve(service)
            if resolved.name not in self._lookups:
                made = self._made(resolved.name)
                fingerprints, reader = fingerprints_of(made), self._online()
                cache = self._caches.of(resolved, reader, fingerprints) if self._caches is not None else None
                self._lookups[resolved.name] = Lookup(
                    resolved, reader, self._now, fingerprints, bridges_of(made), self._learn, cache
                )
            return self._lookups[resolved.name]

    def _renewed(self, lookup: Lookup) -> Lookup | None:
        name = lookup.service.name
        with self._lock:
            if name in self._confirmed:
                return None
            self._forget()
            renewed = self._lookup(name)
            if renewed.service == lookup.service:
                self._confirmed.add(name)  # it is the store that is wrong: don't read the registry at every lookup
                return None
            return renewed

    def _forget(self) -> None:
        self._services.clear()
        self._provenance.clear()
        self._lookups.clear()
        if self._store is not None:
            self._store.refresh_registry()

    def _learn(self, service: Service) -> None:
        with self._lock:
            self._services[service.name] = service

    def _online(self) -> OnlineReader:
        if self._reader is None:
            self._reader = checked_reader(self.store)
        return self._reader
