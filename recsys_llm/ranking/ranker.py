"""The reference ranker: a DCN-v2 over :class:`RankerInputs`, refused where it doesn't fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from recsys_llm.errors import CheckpointError, FingerprintError, SchemaError, ServiceError, TrainingError, did_you_mean
from recsys_llm.ranking.bundle import read_bundle, write_bundle
from recsys_llm.ranking.cooccurrence import CooccurrenceModel
from recsys_llm.ranking.events import Floats, Ints
from recsys_llm.ranking.examples import GROUP, LABEL
from recsys_llm.ranking.inputs import RankerInputs
from recsys_llm.ranking.model import DCN, DCNConfig
from recsys_llm.ranking.training import Epoch, RankerConfig, best_epoch, fit_network
from recsys_llm.retrieval.blocks import FeatureBatch
from recsys_llm.schema import EVENT_TIMESTAMP, ITEM_STATS, USER_STATS
from recsys_llm.timestamps import TIMESTAMP

KIND = "ranker"
_ROWS = 65_536
"""Pairs whose columns are made at once."""


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
        ``losses`` and ``best_epoch``.
    """

    service: str
    columns: tuple[str, ...]
    fingerprints: Mapping[str, str | None]
    inputs: RankerInputs
    network: DCN
    manifest: Mapping[str, Any]

    @classmethod
    def fit(
        cls,
        batch: FeatureBatch,
        examples: pd.DataFrame,
        cooccurrence: CooccurrenceModel,
        config: RankerConfig | None = None,
        *,
        learned: bool | None = None,
        progress: Callable[[Epoch], None] | None = None,
    ) -> Ranker:
        """Train on examples, a group of one positive and its negatives for each event.

        Parameters
        ----------
        batch : n pairs
            Features of the examples, in their order.
        examples : n rows
            ``label``, ``group`` and ``event_timestamp``, from :func:`recsys_llm.ranking.examples.sample_examples`.
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
            A column of ``examples`` is missing, or there are not as many examples as pairs.
        ServiceError
            The service lacks a feature.
        TrainingError
            There is nothing to learn from, the co-occurrence model has seen the examples, or training went wrong.
        """
        config = config or RankerConfig()
        labels, groups, micros = _targets(examples, len(batch))
        if cooccurrence.until > examples[EVENT_TIMESTAMP].min():
            raise TrainingError(
                f"ranker: expected a co-occurrence model from before the first example at "
                f"{examples[EVENT_TIMESTAMP].min()}, found one from events up to {cooccurrence.until}; fit it earlier"
            )
        if learned and not batch.pairwise_names:
            raise ServiceError(f"service {batch.service}: expected learned features, found none; use another service")
        inputs = RankerInputs(cooccurrence, () if learned is False else tuple(batch.pairwise_names))
        table = _matrix(inputs, batch)
        kept = _informative(table)
        if not len(kept):
            raise TrainingError("ranker: expected a column with two different values, found none; check the features")
        table = np.ascontiguousarray(table[:, kept])
        columns = tuple(inputs.names[column] for column in kept)
        network, course = fit_network(table, labels, groups, micros, config, progress=progress)
        return cls(
            service=batch.service,
            columns=columns,
            fingerprints={view: batch.fingerprints.get(view) for view in _views(batch, inputs)},
            inputs=inputs,
            network=network,
            manifest=_manifest(network, columns, config, course, len(np.unique(groups))),
        )

    def check(self, batch: FeatureBatch) -> None:
        """Refuse a batch whose features don't come from the models that the ranker was trained on.

        A fingerprint that is not known on one side (None) can't be compared and passes.

        Raises
        ------
        FingerprintError
            A view has another fingerprint; the message names both.
        ServiceError
            The batch lacks a view or a feature.
        """
        have = {*batch.user.columns, *batch.item.columns}
        for view, trained in self.fingerprints.items():
            if not any(column.startswith(f"{view}__") for column in have):
                views = {column.split("__")[0] for column in have}
                raise ServiceError(
                    f"ranker of service {self.service!r}: the batch of service {batch.service!r} lacks the view {view!r}; "
                    f"{did_you_mean(view, views)}"
                )
            found = batch.fingerprints.get(view)
            if trained is not None and found is not None and trained != found:
                raise FingerprintError(
                    f"view {view}: the ranker was trained on {trained}, the batch holds {found}; train the ranker again, "
                    "or read the version of the view that it was trained on"
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
        with torch.inference_mode():
            for rows, part in _parts(batch):
                table = np.ascontiguousarray(self.inputs.matrix(part)[:, kept])
                scores[rows] = self.network(torch.from_numpy(table)).numpy()
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
            "network": dataclasses.asdict(self.network.config),
            "manifest": dict(self.manifest),
            "cooccurrence": counted,
        }
        write_bundle(directory, KIND, weights | {f"cooccurrence.{name}": value for name, value in tensors.items()}, facts)

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
            return cls(facts["service"], columns, facts["fingerprints"], inputs, network.eval(), facts["manifest"])
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{directory}: expected a ranker, found {error!r}; train it again") from None


def _targets(examples: pd.DataFrame, count: int) -> tuple[Floats, Ints, Ints]:
    """Return label, group and microseconds of each example."""
    for name in (LABEL, GROUP, EVENT_TIMESTAMP):
        if name not in examples.columns:
            raise SchemaError(f"examples: column {name!r} is missing; {did_you_mean(name, map(str, examples.columns))}")
    if len(examples) != count or not count:
        raise SchemaError(f"examples: expected one row for each of {count} pairs, found {len(examples)} rows")
    micros = examples[EVENT_TIMESTAMP].astype("datetime64[us, UTC]").astype("int64").to_numpy()
    return examples[LABEL].to_numpy(np.float32), examples[GROUP].to_numpy(np.int64), micros


def _parts(batch: FeatureBatch) -> Iterable[tuple[slice, FeatureBatch]]:
    if len(batch) <= _ROWS:
        return [(slice(None), batch)]
    bounds = range(0, len(batch), _ROWS)
    return (
        (slice(first, first + _ROWS), batch.take(np.arange(first, min(first + _ROWS, len(batch))))) for first in bounds
    )


def _matrix(inputs: RankerInputs, batch: FeatureBatch) -> Floats:
    table = np.empty((len(batch), len(inputs.names)), np.float32)
    for rows, part in _parts(batch):
        table[rows] = inputs.matrix(part)
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
    network: DCN, columns: tuple[str, ...], config: RankerConfig, course: list[Epoch], groups: int
) -> dict[str, Any]:
    defaults = (network.default.detach() * network.std + network.mean).tolist()
    return {
        "columns": list(columns),
        "defaults": dict(zip(columns, defaults, strict=True)),
        "config": dataclasses.asdict(config),
        "groups": groups,
        "losses": [[epoch.loss, epoch.validation_loss] for epoch in course],
        "best_epoch": best_epoch(course),
    }


def _below(tensors: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
