"""What a model was trained on, feature by feature, and how a batch differs from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from recsys_llm.errors import did_you_mean
from recsys_llm.retrieval.blocks import EntityBlock, FeatureBatch
from recsys_llm.retrieval.columns import Columns

NUMBER, TEXT, VECTOR = "number", "text", "vector"


class Checked(Protocol):
    """A model that knows what it was trained on, such as :class:`recsys_llm.ranking.ranker.Ranker`."""

    @property
    def service(self) -> str:
        """Feature service that it was trained on."""

    def check(self, batch: FeatureBatch) -> None:
        """Refuse a batch that differs from it."""


def feature_types(batch: FeatureBatch) -> dict[str, str]:
    """Return the type of each feature in words, in the order of the service.

    ``number``, ``text``, ``list of string``, or ``vector of 384``; just ``vector`` where no length is known yet.
    """
    return {name: _type(_values(block, name)) for block in (batch.user, batch.item) for name in block.columns}


def type_differences(
    trained: Mapping[str, str], found: Mapping[str, str], stand_ins: Mapping[str, str] | None = None
) -> list[str]:
    """Return a sentence for each feature that is missing or of another type.

    Parameters
    ----------
    trained, found
        Full feature names to types, as of :func:`feature_types`.
    stand_ins
        View to the view that stands in for it.

    Examples
    --------
    >>> type_differences({"v1__embedding": "vector of 384"}, {"v2__embedding": "vector of 64"}, {"v1": "v2"})
    ['v2__embedding: expected vector of 384, found vector of 64']
    """
    differences = []
    for name, expected in trained.items():
        view, feature = name.split("__", 1)
        actual = f"{(stand_ins or {}).get(view, view)}__{feature}"
        if actual not in found:
            differences.append(f"{actual}: expected {expected}, found none; {did_you_mean(actual, found)}")
        elif not _same(expected, found[actual]):
            differences.append(f"{actual}: expected {expected}, found {found[actual]}")
    return differences


def _same(one: str, other: str) -> bool:
    """Whether two types are one; a vector of a length that isn't known yet may be of any."""
    return one == other or (VECTOR in (one, other) and one.startswith(VECTOR) and other.startswith(VECTOR))


def _type(values: Any) -> str:
    if isinstance(values, np.ndarray):
        if values.ndim == 1:
            return NUMBER
        return f"{VECTOR} of {values.shape[1]}" if values.shape[1] else VECTOR
    return TEXT if pa.types.is_string(values.type) else f"list of {values.type.value_type}"


def _values(block: EntityBlock, name: str) -> Any:
    """Return the stored values of a feature; nothing is gathered."""
    if isinstance(block.columns, Columns) and name in block.columns.shared:
        return block.columns.shared[name].values
    return block.columns[name]
