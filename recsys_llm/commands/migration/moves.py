"""Which view takes the place of which, checked against the registry; and what to write where one isn't there yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recsys_llm.engine.vectors import tag_call
from recsys_llm.errors import ConfigError, did_you_mean
from recsys_llm.producers import ProducerTag
from recsys_llm.schema import EMBEDDING, TEXT_EMBEDDING, VECTOR_TAG, family
from recsys_llm.storage import VectorStorage

if TYPE_CHECKING:
    import feast

_IMPORT_BYTES = " and `from feast.types import Bytes`"

Pairs = dict[str, str]
"""View to the view that takes its place."""


@dataclass(frozen=True, eq=False)
class Move:
    """One view that takes the place of another; both are registered and computed by recsys_llm."""

    old: feast.FeatureView
    new: feast.FeatureView
    old_tag: ProducerTag
    new_tag: ProducerTag

    @property
    def join_key(self) -> str:
        """Column of the entity's key."""
        return str(self.old.join_keys[0])


def open_moves(store: feast.FeatureStore, pairs: Pairs) -> list[Move]:
    """Read both views of each pair from the registry.

    Raises
    ------
    ConfigError
        A view is missing, is not computed by recsys_llm, or can't take the other's place; the message says what to add.
    """
    views = {view.name: view for view in store.list_feature_views()}
    return [_open(views, old, new) for old, new in pairs.items()]


def _open(views: dict[str, feast.FeatureView], old: str, new: str) -> Move:
    if old == new:
        raise ConfigError(f"expected two views, found {old!r} twice; name the new version of it")
    if old not in views:
        raise ConfigError(f"unknown feature view {old!r}; {did_you_mean(old, views)}")
    old_tag = view_tag(views[old])
    if new not in views:
        raise ConfigError(
            f"feature view {new!r} is not in the registry ({did_you_mean(new, views)}). For a new model of {old}, "
            "add\n\n"
            f"{encoder_snippet(old_tag, new)}{view_snippet(views[old], new, new_model(old_tag, new))}\n"
            "then run `feast apply`"
        )
    move = Move(views[old], views[new], old_tag, view_tag(views[new]))
    _check(move)
    return move


def view_tag(view: feast.FeatureView) -> ProducerTag:
    """Return the tag of a view that recsys_llm computes.

    Raises
    ------
    ConfigError
        The view has none.
    """
    tag = ProducerTag.of(view.name, view.tags)
    if tag is None:
        raise ConfigError(
            f"view {view.name}: carries no recsys_llm tag, so Feast itself materialises it; name one that recsys_llm "
            "computes"
        )
    return tag


def _check(move: Move) -> None:
    """Refuse a pair that rankers and readers could not take for versions of one thing."""
    old, new = move.old, move.new
    for what, one, other in (
        ("entity", old.entities, new.entities),
        ("producer", move.old_tag.producer, move.new_tag.producer),
        ("source", move.old_tag.source, move.new_tag.source),
    ):
        if one != other:
            raise ConfigError(f"view {new.name}: expected the {what} of {old.name}, {one!r}, found {other!r}")
    if new.ttl and (not old.ttl or new.ttl < old.ttl):
        raise ConfigError(
            f"view {new.name}: expected a ttl of at least {old.name}'s, {old.ttl or 'none'}, found {new.ttl}: rows "
            "that are live there would be expired here; correct feature_views.py and run `feast apply`"
        )
    types = {field.name: str(field.dtype) for field in new.features}
    compressed = VECTOR_TAG in old.tags or VECTOR_TAG in new.tags
    for field in old.features:
        found = types.get(field.name)
        # Readers see the same float32 vectors, however a view stores them.
        same_to_readers = compressed and field.name == EMBEDDING and found is not None
        if found != str(field.dtype) and not same_to_readers:
            raise ConfigError(
                f"view {new.name}: expected the feature {field.name} of type {field.dtype} that {old.name} has, found "
                f"{found or 'none'}; declare it in feature_views.py and run `feast apply`"
            )


def new_model(tag: ProducerTag, view: str) -> str | None:
    """Return a name for the new view's model: the old model's, with the view's version."""
    if tag.model is None:
        return None
    return family(tag.model) + (view.removeprefix(family(view)) or "_v2")


def encoder_snippet(tag: ProducerTag, view: str) -> str:
    """Return what recsys_llm.yaml needs for a new model; nothing for a view without one."""
    name = new_model(tag, view)
    if name is None:
        return ""
    if tag.producer == TEXT_EMBEDDING:
        section, body = "text_encoders", f'{name}: {{model: DIRECTORY_OR_ID, template: "{{title}}. {{text}}"}}'
    else:
        section, body = "sequence_models", f"{name}: {{checkpoint: data/models/{name}}}"
    return f"# recsys_llm.yaml\n{section}:\n  {body}\n\n"


def view_snippet(
    view: feast.FeatureView,
    name: str,
    model: str | None,
    *,
    stored: VectorStorage | None = None,
    bridges: str | None = None,
) -> str:
    """Return the Python code that declares another version of ``view``.

    Parameters
    ----------
    stored
        How the new version keeps its vectors; None: as an encoder without compression makes them.
    bridges
        Fingerprint of the view that the new version stands in for.
    """
    tag = view_tag(view)
    key = view.entity_columns[0]
    types = {field.name: str(field.dtype) for field in (key, *view.features)}
    is_bytes = stored is not None and stored.is_bytes
    if VECTOR_TAG in view.tags or is_bytes:
        types[EMBEDDING] = "Bytes" if is_bytes else "Array(Float32)"
    fields = "".join(f'        Field(name="{name}", dtype={dtype}),\n' for name, dtype in types.items())
    seconds = 0 if view.ttl is None else int(view.ttl.total_seconds())
    of_model = "" if model is None else f', model="{model}"'
    of_vectors = f" | {tag_call(stored)}" if stored is not None and is_bytes else ""
    of_bridge = "" if bridges is None else f' | {{schema.BRIDGES_TAG: "{bridges}"}}'
    return (
        f"# feature_views.py, with `from data_sources import parts`{_IMPORT_BYTES if is_bytes else ''}\n"
        f"{name} = FeatureView(\n"
        f'    name="{name}",\n'
        f"    entities=[{', '.join(view.entities)}],\n"
        f"    ttl=timedelta(seconds={seconds}),\n"
        f"    schema=[\n{fields}    ],\n"
        f'    source=parts("{name}"),\n'
        f'    tags=schema.producer_tag("{tag.producer}", source="{tag.source}"{of_model}){of_vectors}{of_bridge},\n'
        ")\n"
    )
