"""Rows to texts (:mod:`~recsys_llm.text.documents`), texts to vectors (:class:`TextEncoder`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recsys_llm.text.documents import clean_text, item_documents, one_line, template_columns, user_document
from recsys_llm.text.fingerprint import encoder_fingerprint
from recsys_llm.text.model_files import ModelFiles, resolve_model

if TYPE_CHECKING:
    from recsys_llm.text.encoder import TextEncoder

__all__ = [
    "ModelFiles",
    "TextEncoder",
    "clean_text",
    "encoder_fingerprint",
    "item_documents",
    "one_line",
    "resolve_model",
    "template_columns",
    "user_document",
]


def __getattr__(name: str) -> Any:
    # Making texts and asking for a fingerprint need no torch, and importing torch takes over a second.
    if name == "TextEncoder":
        from recsys_llm.text.encoder import TextEncoder

        return TextEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
