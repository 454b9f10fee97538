"""The reference ranker: a DCN-v2 over :class:`RankerInputs`, refused where it doesn't fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from recsys_llm.errors import (
    CheckpointError,
    FingerprintError,
    LeakageError,
    SchemaError,
    ServiceError,
    TrainingError,
    did_you_mean,
)
from recsys_llm.ranking.bundle import read_bundle, write_bundle
from recsys_llm.ranking.cooccurrence import CooccurrenceModel
from recsys_llm.ranking.events import Floats, Ints
from recsys_llm.ranking.examples import GROUP, LABEL, LOG_Q
from recsys_llm.ranking.inputs import RankerInputs
from recsys_llm.ranking.model import DCN, DCNConfig
from recsys_llm.ranking.training import Epoch, RankerConfig, Targets, best_epoch, fit_network
from recsys_llm.retrieval.blocks import FeatureBatch
from recsys_llm.retrieval.contract import feature_types, type_differences
from recsys_llm.retrieval.training import TrainingSet
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM_STATS, USER_STATS, family
from recsys_llm.timestamps import MICROSECOND, from_micros, to_micros

KIND = "ranker"
_ROWS = 262_144
"""Pairs whose columns are made at once: some 20 MB."""
_NETWORK_ROWS = 8_192
"""Pairs that go through the network at once: its activations stay in the cache."""


@dataclass(frozen=True, eq=False)
class Ranker:
    """Scores candidates from a :class:`FeatureBatch`.

    Attributes
    ----------
    service
        Feature service that it was trained on.
    columns
        Names of the input columns that the network reads, in order, all float32. Columns without values or without
        variation in training are left out.
    fingerprints
        View to model fingerprint (None: not known) of each view that it reads.
    manifest
        JSON values: ``columns``, ``defaults`` (what stands for a missing value, in the column's own unit), ``config``,
        ``groups``, ``examples_until`` (microseconds), ``losses`` (training and validation by epoch), ``best_epoch``.
    features
        Full name to type (:func:`recsys_llm.retrieval.contract.feature_types`) of the features in the views that it
        reads, in the order of the service.
    """

    service: str
    columns: tuple[str, ...]
    fingerprints: Mapping[str, str | None]
    inputs: RankerInputs
    network: DCN
    manifest: Mapping[str, Any]
    features: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        training: TrainingSet,
        cooccurrence: CooccurrenceModel,
        config: RankerConfig | None = None,
        *,
        learned: bool | None = None,
        progress: Callable[[Epoch], None] | None = None,
    ) -> Ranker:
        """Train on examples, a group of one positive and its negatives for each event.

        Parameters
        ----------
        training : n examples
            Features of examples from :func:`recsys_llm.ranking.examples.sample_examples`: ``label``, ``group``,
            ``event_timestamp`` and, if sampled unevenly, ``log_q``.
        cooccurrence
            Fitted strictly before the first example.
        config
            None: the defaults.
        learned
            Use the pairwise features and the next items' entropy; None: if the service has them.
        progress
            Called after each epoch.

        Raises
        ------
        SchemaError
            A column of the examples is missing.
        ServiceError
            The service lacks a feature.
        TrainingError
            There is nothing to learn from, or training went wrong.
        LeakageError
            The co-occurrence model has seen events at or after the first example.
        """
        config = config or RankerConfig()
        targets = _targets(training.examples)
        first = int(targets.micros.min())
        if to_micros(cooccurrence.until) > first:
            raise LeakageError(
                f"ranker: expected a co-occurrence model from before the first example at {from_micros(first)}, found "
                f"one from events up to {cooccurrence.until}; fit it earlier"
            )
        if learned and not training.pairwise_names:
            raise ServiceError(
                f"service {training.service}: expected learned features, found none; use another service"
            )
        inputs = RankerInputs(cooccurrence, () if learned is False else tuple(training.pairwise_names))
        table = _table(inputs, training)
        kept = _informative(table)
        if not len(kept):
            raise TrainingError("ranker: expected a column with two different values, found none; check the features")
        columns = tuple(inputs.names[column] for column in kept)
        views = _views(training, inputs)
        network, course = fit_network(np.ascontiguousarray(table[:, kept]), targets, config, progress=progress)
        return cls(
            service=training.service,
            columns=columns,
            fingerprints={view: training.fingerprints.get(view) for view in views},
            inputs=inputs,
            network=network,
            manifest=_manifest(network, columns, config, course, targets),
            features={name: kind for name, kind in feature_types(training).items() if name.split("__")[0] in views},
        )

    @property
    def learned_until(self) -> datetime:
        """Time of the latest event that the ranker can have learned from."""
        return max(from_micros(self.manifest["examples_until"]), self.inputs.cooccurrence.until - MICROSECOND)

    def refreshed(self, cooccurrence: CooccurrenceModel) -> Ranker:
        """Return the ranker with newer counts and the same weights, as a nightly count job would give it."""
        return dataclasses.replace(self, inputs=RankerInputs(cooccurrence, self.inputs.pairwise))

    def check(self, batch: FeatureBatch) -> None:
        """Refuse a batch whose features are not those that the ranker was trained on, naming each difference.

        A view that is bridged to the very view that the ranker was trained on stands in for it (``batch.bridges``). A
        fingerprint that is not known on one side (None) can't be compared and passes.

        Raises
        ------
        FingerprintError
            A view has another fingerprint; the message names both.
        ServiceError
            The batch lacks a view or a feature, or has a feature of another type.
        """
        found = self._differences(batch)
        if not found:
            return
        kinds = [type(error) for error in found]
        kind = FingerprintError if FingerprintError in kinds else ServiceError
        raise kind("; ".join(str(error) for error in found))

    def _differences(self, batch: FeatureBatch) -> list[FingerprintError | ServiceError]:
        views = {column.split("__")[0] for column in batch.columns}
        stand_ins: dict[str, str] = {}
        found: list[FingerprintError | ServiceError] = []
        for view, trained in self.fingerprints.items():
            actual = batch.fingerprints.get(view)
            bridged = [other for other in views if trained is not None and batch.bridges.get(other) == trained]
            if view in views:
                stand_ins[view] = view
                if trained is not None and actual is not None and trained != actual:
                    found.append(
                        FingerprintError(
                            f"view {view}: the ranker was trained on {trained}, the batch holds {actual}; train the "
                            "ranker again, or read the version of the view that it was trained on"
                        )
                    )
            elif bridged:
                stand_ins[view] = bridged[0]
            else:
                found.append(self._lacking(view, batch, views))
        compared = {name: kind for name, kind in self.features.items() if name.split("__")[0] in stand_ins}
        found += [ServiceError(text) for text in type_differences(compared, feature_types(batch), stand_ins)]
        return found

    def _lacking(self, view: str, batch: FeatureBatch, views: set[str]) -> FingerprintError | ServiceError:
        """Return the error for a view that the batch doesn't have: another version of it, or nothing like it."""
        versions = sorted(other for other in views if family(other) == family(view))
        if not versions:
            return ServiceError(
                f"ranker of service {self.service!r}: the batch of service {batch.service!r} lacks the view "
                f"{view!r}; {did_you_mean(view, views)}"
            )
        found = versions[0]
        return FingerprintError(
            f"ranker of service {self.service!r}: it was trained on {view} of fingerprint {self.fingerprints[view]}, "
            f"the batch of service {batch.service!r} holds {found} of fingerprint {batch.fingerprints.get(found)}; "
            f"train the ranker again, go back with `recsys-llm migrate rollback {view} {found}`, or let it live on "
            f"mapped vectors until it is trained: `recsys-llm migrate backfill {view} {found} --bridge`"
        )

    def score(self, batch: FeatureBatch) -> Floats:
        """Return float32 (n,), a score for each pair; only their order within one user and moment has a meaning.

        Raises
        ------
        FingerprintError, ServiceError
            As :meth:`check`.
        """
        self.check(batch)
        kept = [self.inputs.names.index(name) for name in self.columns]
        scores = np.empty(len(batch), np.float32)
        for first in range(0, len(batch), _ROWS):
            part = batch if len(batch) <= _ROWS else batch.take(np.arange(first, min(first + _ROWS, len(batch))))
            table = torch.from_numpy(np.ascontiguousarray(self.inputs.matrix(part)[:, kept]))
            with torch.inference_mode():
                for begin in range(0, len(table), _NETWORK_ROWS):
                    some = self.network(table[begin : begin + _NETWORK_ROWS]).numpy()
                    scores[first + begin : first + begin + len(some)] = some
        return scores

    def save(self, directory: Path | str) -> None:
        """Write the ranker as safetensors and JSON with SHA-256."""
        tensors, counted = self.inputs.cooccurrence.state()
        weights = {f"network.{name}": value.numpy() for name, value in self.network.state_dict().items()}
        facts = {
            "service": self.service,
            "columns": list(self.columns),
            "dtype": "float32",
            "pairwise": list(self.inputs.pairwise),
            "fingerprints": dict(self.fingerprints),
            "features": [list(pair) for pair in self.features.items()],
            "network": dataclasses.asdict(self.network.config),
            "manifest": dict(self.manifest),
            "cooccurrence": counted,
        }
        write_bundle(
            directory, KIND, weights | {f"cooccurrence.{name}": value for name, value in tensors.items()}, facts
        )

    @classmethod
    def load(cls, directory: Path | str) -> Ranker:
        """Read a ranker that :meth:`save` wrote.

        Raises
        ------
        CheckpointError
            A file is missing or altered, or its columns are not those that this version of the package makes.
        """
        tensors, facts = read_bundle(directory, KIND)
        try:
            counted = CooccurrenceModel.from_state(_below(tensors, "cooccurrence."), facts["cooccurrence"])
            inputs = RankerInputs(counted, tuple(facts["pairwise"]))
            columns = tuple(facts["columns"])
            unknown = [name for name in columns if name not in inputs.names]
            if unknown or facts["dtype"] != "float32":
                raise CheckpointError(
                    f"{directory}: expected float32 columns among {', '.join(inputs.names)}, found {facts['dtype']} "
                    f"and {', '.join(unknown) or 'no other'}; train the ranker with this version of the package"
                )
            weights = {name: torch.from_numpy(value.copy()) for name, value in _below(tensors, "network.").items()}
            shape = facts["network"] | {"deep": tuple(facts["network"]["deep"])}
            network = DCN(weights["mean"].numpy(), weights["std"].numpy(), DCNConfig(**shape))
            network.load_state_dict(weights)
            features = dict(facts.get("features", ()))  # rankers of earlier versions don't tell
            return cls(
                facts["service"], columns, facts["fingerprints"], inputs, network.eval(), facts["manifest"], features
            )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{directory}: expected a ranker, found {error!r}; train it again") from None


def _targets(examples: pd.DataFrame) -> Targets:
    for name in (LABEL, GROUP, EVENT_TIMESTAMP):
        if name not in examples.columns:
            raise SchemaError(f"examples: column {name!r} is missing; {did_you_mean(name, map(str, examples.columns))}")
    if not len(examples):
        raise TrainingError("ranker: expected at least one group of examples, found none")
    labels = np.asarray(examples[LABEL], np.float32)
    return Targets(
        labels=labels,
        groups=np.asarray(examples[GROUP], np.int64),
        micros=np.asarray(pd.DatetimeIndex(examples[EVENT_TIMESTAMP]).as_unit("us").asi8, np.int64),
        log_q=np.asarray(examples[LOG_Q], np.float32) if LOG_Q in examples.columns else np.zeros_like(labels),
    )


def _table(inputs: RankerInputs, training: TrainingSet) -> Floats:
    """Return all columns of all examples, a batch of the loader at a time: vectors are never there for all at once."""
    table = np.empty((len(training), len(inputs.names)), np.float32)
    for part in training.loader(_ROWS, columns=()):
        rows = part["rows"].numpy()
        table[rows] = inputs.matrix(training.take(rows), part["pairwise"].numpy())
    return table


def _informative(table: Floats) -> Ints:
    """Return the columns with at least two values, missing being one of them."""
    missing = np.isnan(table)
    kept = []
    for column in np.flatnonzero(~missing.all(axis=0)):
        known = table[~missing[:, column], column]
        if len(known) < len(table) or known.min() < known.max():
            kept.append(column)
    return np.array(kept, np.int64)


def _views(batch: FeatureBatch, inputs: RankerInputs) -> list[str]:
    """Return the views that the inputs read."""
    sources = [value for value in dataclasses.astuple(batch.pairwise_inputs) if value] if inputs.pairwise else []
    return sorted({ITEM_STATS, USER_STATS, *(column.split("__")[0] for column in sources)})


def _manifest(
    network: DCN, columns: tuple[str, ...], config: RankerConfig, course: list[Epoch], targets: Targets
) -> dict[str, Any]:
    defaults = (network.default.detach() * network.std + network.mean).tolist()
    return {
        "columns": list(columns),
        "defaults": dict(zip(columns, defaults, strict=True)),
        "config": dataclasses.asdict(config),
        "groups": len(np.unique(targets.groups)),
        "examples_until": int(targets.micros.max()),
        "losses": [[epoch.loss, epoch.validation_loss] for epoch in course],
        "best_epoch": best_epoch(course),
    }


def _below(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
