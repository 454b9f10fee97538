"""Next items and states of one sequence model move together: a state says something to its own model's weights only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from recsys_llm.commands.migration.moves import Move
from recsys_llm.errors import MigrationError
from recsys_llm.producers import ProducerTag
from recsys_llm.schema import NEXT_ITEMS, SEQUENCE_STATES

if TYPE_CHECKING:
    import feast

_BESIDE = {NEXT_ITEMS: SEQUENCE_STATES, SEQUENCE_STATES: NEXT_ITEMS}


def left_behind(store: feast.FeatureStore, moves: Sequence[Move], versions: Mapping[str, str]) -> list[str]:
    """Return a sentence for each view that a switch would part from the views of its model.

    States that were never materialised are nobody's, and may stay; so may views that another is read in place of.

    Parameters
    ----------
    versions
        View to the view that is read in its place, before the switch.
    """
    found = []
    beside = {move.old.name: move for move in moves}
    new = {move.new.name for move in moves}
    views = [(view, ProducerTag.of(view.name, view.tags)) for view in store.list_feature_views()]
    for move in moves:
        old_tag, model = move.old_tag, move.new_tag.model
        if old_tag.producer not in _BESIDE or old_tag.model == model:
            continue
        for view, tag in views:
            if tag is None or tag.producer != _BESIDE[old_tag.producer] or tag.model != old_tag.model:
                continue
            if view.name in new or not view.materialization_intervals or view.name in versions:
                continue
            other = beside.get(view.name)
            if other is None:
                found.append(
                    f"{view.name} is of the model {tag.model}, as {move.old.name} is; move it to a view of {model} too "
                    f"(--with {view.name}=NEW_VERSION): streams go on from states with their own model only"
                )
            elif other.new_tag.model != model:
                found.append(
                    f"{other.new.name} is of the model {other.new_tag.model}, {move.new.name} of {model}; next items "
                    "and states must be of one model"
                )
    return found


def check_together(store: feast.FeatureStore, moves: Sequence[Move], versions: Mapping[str, str]) -> None:
    """Refuse a switch that parts next items from the states of their model.

    Raises
    ------
    MigrationError
        Names the views and what to add.
    """
    found = left_behind(store, moves, versions)
    if found:
        raise MigrationError("; ".join(found))
