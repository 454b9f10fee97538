"""Whether a view is declared for the vectors that its model makes: length, and form in the store."""

from __future__ import annotations

from collections.abc import Mapping

from feast import FeatureView

from recsys_llm.errors import ConfigError
from recsys_llm.schema import EMBEDDING, VECTOR_TAG
from recsys_llm.storage import VectorStorage


def check_vectors(view: FeatureView, manifest: Mapping[str, str]) -> None:
    """Refuse a view that readers would decode in another way than it is written, before anything is computed.

    Parameters
    ----------
    manifest
        Of the view's producer; nothing is checked for one that makes no text vectors.

    Raises
    ------
    ConfigError
        Tag, type or length of the view's vectors are not those of the model; the message names both.
    """
    declared = VectorStorage.of(view.name, view.tags)
    if "vector" not in manifest:
        if declared is not None:
            raise ConfigError(f"view {view.name}: has the tag {VECTOR_TAG!r}, but its producer makes no text vectors")
        return
    made = VectorStorage.of(view.name, {VECTOR_TAG: manifest["vector"]})
    assert made is not None  # the tag is there
    if declared != made and (made.is_bytes or declared is not None):
        found = "no such tag" if declared is None else f"a tag for {declared}"
        remedy = f"give it tags=schema.producer_tag(...) | {tag_call(made)}" if made.is_bytes else "remove the tag"
        raise ConfigError(
            f"view {view.name}: its model makes {made}, expected a tag {VECTOR_TAG!r} that says so, found {found}; "
            f"{remedy} and run `feast apply`, or name the model that belongs to it"
        )
    for field in view.features:
        if field.name == EMBEDDING:
            _check_type(view.name, str(field.dtype), made)
            if field.vector_length not in (0, None, made.dim):
                raise ConfigError(
                    f"view {view.name}: its model makes vectors of length {made.dim}, {EMBEDDING} is declared with "
                    f"vector_length={field.vector_length}; correct it, or name the model that belongs to the view"
                )


def _check_type(view: str, found: str, made: VectorStorage) -> None:
    expected = "Bytes" if made.is_bytes else "Array(Float32)"
    if found != expected:
        raise ConfigError(
            f"view {view}: its model makes {made}, expected {EMBEDDING} of type {expected}, found {found}; correct "
            "feature_views.py and run `feast apply`"
        )


def tag_call(stored: VectorStorage) -> str:
    """Return the Python call that makes the tag."""
    scale = "" if stored.scale is None else f", scale={stored.scale!r}"
    return f'schema.vector_tag("{stored.storage}", dim={stored.dim}{scale})'
