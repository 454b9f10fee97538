"""From examples to a training set: what is asked of Feast, and what is put together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from recsys_llm.errors import SchemaError
from recsys_llm.retrieval.blocks import EntityBlock
from recsys_llm.retrieval.cold_start import segments_of, user_history
from recsys_llm.retrieval.columns import Rows
from recsys_llm.retrieval.examples import Ids, Micros
from recsys_llm.retrieval.history import distinct_pairs, history
from recsys_llm.retrieval.service import Service
from recsys_llm.retrieval.training import TrainingSet
from recsys_llm.schema import ITEM, USER
from recsys_llm.timestamps import as_utc

if TYPE_CHECKING:
    import feast


def joined(
    store: feast.FeatureStore, service: Service, examples: pd.DataFrame, checked: tuple[Ids, Ids, Micros], **known: Any
) -> TrainingSet:
    """Join each example to the newest features at or before its time.

    Parameters
    ----------
    examples : n rows
        See :meth:`recsys_llm.retrieval.client.FeatureClient.training_set`.
    checked
        User ids, item ids and times of the examples.
    **known
        ``fingerprints`` and ``bridges`` of the service's views.

    Raises
    ------
    SchemaError, RowError, RetrievalError
        See :meth:`recsys_llm.retrieval.client.FeatureClient.training_set`.
    """
    user_ids, item_ids, micros = checked
    taken = {feature.column for view in service.views for feature in view.features}
    for column in examples.columns:
        if column in taken:
            raise SchemaError(f"examples: column {column!r} has the name of a feature of {service.name}; rename it")
    segments = segments_of(examples, service.views)
    user, user_rows = distinct_history(store, service, USER, user_ids, micros, segments)
    item, item_rows = distinct_history(store, service, ITEM, item_ids, micros)
    return TrainingSet(
        service=service.name,
        user=user,
        item=item,
        user_rows=user_rows,
        item_rows=item_rows,
        examples=examples,
        references=service.references,
        intervals=_intervals(store, service),
        **known,
    )


def distinct_history(
    store: feast.FeatureStore, service: Service, entity: str, ids: Ids, micros: Micros, segments: Ids | None = None
) -> tuple[EntityBlock, Rows]:
    """Return the features of distinct entities at distinct times, and which of them each of n rows is."""
    if entity == USER:
        return user_history(store, service.of(USER), ids, micros, segments)
    first, rows = distinct_pairs(ids, micros)
    return history(store, service.of(entity), entity, ids[first], micros[first]), rows


def _intervals(store: feast.FeatureStore, service: Service) -> dict[str, list[tuple[str, str]]]:
    """Return what Feast's registry says now; the service was resolved earlier."""
    found = {}
    for view in service.views:
        definition = store.get_feature_view(view.name)
        pairs = sorted(definition.materialization_intervals)
        found[view.name] = [(as_utc(start).isoformat(), as_utc(end).isoformat()) for start, end in pairs]
    return found
