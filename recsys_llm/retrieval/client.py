"""The one entry for models: features as of each example's time, and features now."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd

from recsys_llm import timestamps as clock
from recsys_llm.errors import SchemaError, ServiceError, did_you_mean
from recsys_llm.retrieval import parts
from recsys_llm.retrieval.blocks import EntityBlock, FeatureBatch
from recsys_llm.retrieval.cold_start import cold_views, filled_now
from recsys_llm.retrieval.contract import Checked
from recsys_llm.retrieval.examples import Ids, check_examples, check_id, check_ids, check_timestamps, no_examples
from recsys_llm.retrieval.joining import distinct_history, joined
from recsys_llm.retrieval.parts import Provenance, bridges_of, fingerprints_of
from recsys_llm.retrieval.service import Service, known_dimensions, resolve
from recsys_llm.retrieval.slices import open_examples, time_slices
from recsys_llm.retrieval.store import open_store
from recsys_llm.retrieval.training import TrainingSet
from recsys_llm.schema import ITEM, JOIN_KEYS, SEGMENT, USER, USER_ID
from recsys_llm.timestamps import to_micros

if TYPE_CHECKING:
    import feast

    from recsys_llm.retrieval.online import OnlineReader


class FeatureClient:
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

    def lookup(
        self, user_id: str, candidate_ids: Iterable[str], *, service: str, segment: str | None = None
    ) -> FeatureBatch:
        """Read the features of one user and N candidates from the online store.

        Parameters
        ----------
        user_id
            An unknown user has the row of the segment or of everyone where the view has such rows (the feature
            ``provenance`` says so), and misses all else.
        candidate_ids
            N of them; none, unknown ones and repeated ones are fine.
        service
            Feature service to read.
        segment
            The user's, such as a country, as the source has it.

        Returns
        -------
        FeatureBatch, N pairs
            In the order of ``candidate_ids``; each distinct candidate is read once.

        Raises
        ------
        RowError, SchemaError
            An id is null or no string; or the candidates are a single string.
        ServiceError
            The service is unknown, or asks for what can't be read.
        FingerprintError
            The service mixes vectors of two models.
        StoreError
            The online store failed, or holds bytes that are no value of the feature.
        """
        from recsys_llm.retrieval.online import Request, block

        check_id(user_id, name=USER_ID)
        if segment is not None:
            check_id(segment, name=SEGMENT)
        candidates = check_ids(candidate_ids, name="candidate_ids")
        codes, distinct = pd.factorize(candidates)
        with self._lock:  # a refresh in between would pair one version's columns with another's fingerprints
            resolved, made = self.resolve(service), self._made(service)
        requests = [
            Request(USER, resolved.of(USER), (user_id,)),
            Request(ITEM, resolved.of(ITEM), tuple(distinct)),
        ]
        rows = self._online().read(requests)
        now = to_micros(self._now())
        user, item = (block(request, stored, now) for request, stored in zip(requests, rows, strict=True))
        cold = cold_views(resolved.of(USER))

        def standing_in(ids: tuple[str, ...]) -> EntityBlock:
            request = Request(USER, cold, ids)
            return block(request, self._online().read([request])[0], now)

        user = filled_now(user, cold, segment, standing_in)
        self._learn(resolved, user, item)
        rows_of_user = np.zeros(len(candidates), dtype=np.int64)
        return FeatureBatch(
            service, user, item, rows_of_user, codes.astype(np.int64), fingerprints_of(made), bridges_of(made)
        )

    async def lookup_async(
        self, user_id: str, candidate_ids: Iterable[str], *, service: str, segment: str | None = None
    ) -> FeatureBatch:
        """Do what :meth:`lookup` does in a thread, so that the event loop stays free."""
        return await asyncio.to_thread(self.lookup, user_id, candidate_ids, service=service, segment=segment)

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

    def resolve(self, service: str) -> Service:
        """Return what a feature service asks for, read from the registry once.

        Raises
        ------
        ServiceError
            The service is unknown, or asks for what can't be read.
        """
        if not isinstance(service, str):
            raise ServiceError(f"service: expected the name of a feature service, found {service!r}; pass its name")
        with self._lock:
            if service not in self._services:
                self._services[service] = parts.measured(resolve(self.store, service))
            return self._services[service]

    def refresh(self) -> None:
        """Forget what was read from the registry and the parts."""
        with self._lock:
            self._services.clear()
            self._provenance.clear()
            if self._store is not None:
                self._store.refresh_registry()

    def close(self) -> None:
        """Close connections that the client opened itself."""
        with self._lock:
            if self._reader is not None:
                self._reader.close()
                self._reader = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

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

    def _learn(self, service: Service, *blocks: EntityBlock) -> None:
        """Remember the lengths of vectors that were read and that no part tells."""
        unknown = {feature.column for _, feature in parts.unmeasured(service)}
        found = {name: block.columns[name].shape[1] for block in blocks for name in unknown if name in block.columns}
        found = {name: length for name, length in found.items() if length}
        if found:
            with self._lock:
                self._services[service.name] = known_dimensions(service, found)

    def _online(self) -> OnlineReader:
        from recsys_llm.retrieval.online import open_reader

        with self._lock:
            if self._reader is None:
                self._reader = open_reader(self.store)
            return self._reader
