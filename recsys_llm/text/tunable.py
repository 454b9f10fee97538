"""An encoder in fine-tuning: what lies below the trained layers is computed once per text, and remembered.

With the top 2 of 6 layers trained, an epoch costs a third of the forward passes and none of the backward ones below.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recsys_llm.errors import TrainingError
from recsys_llm.text.adapters import TopLayers
from recsys_llm.text.architectures import Architecture, read_architecture
from recsys_llm.text.batching import CPU_BUDGET, CUDA_BUDGETS
from recsys_llm.text.documents import clean_text
from recsys_llm.text.events import Ints
from recsys_llm.text.loading import check_fit, load_backbone, load_tokenizer
from recsys_llm.text.model_files import ModelFiles
from recsys_llm.text.packed import ACTIVATIONS, PackedModel
from recsys_llm.text.pooling import unit_length
from recsys_llm.text.tokens import Tokenizer, batch_slices, token_places

IN_MEMORY = 1 << 30
"""Bytes of remembered states held in memory; more lie in a temporary file without a name, which ends with the run."""


class RememberedStates:
    """Hidden states (float32) of the tokens of each text, in the order of the texts."""

    def __init__(self, lengths: Ints, hidden: int) -> None:
        self.lengths = lengths
        self._offsets = np.concatenate([[0], np.cumsum(lengths)])
        shape = (int(self._offsets[-1]), hidden)
        size = shape[0] * shape[1] * np.dtype(np.float32).itemsize
        if size <= IN_MEMORY:
            self._values = np.empty(shape, np.float32)
        else:
            with tempfile.TemporaryFile() as file:
                self._values = np.memmap(file, np.float32, "w+", shape=shape)

    def __len__(self) -> int:
        return len(self.lengths)

    def put(self, rows: Ints, values: npt.NDArray[np.float32]) -> None:
        """Keep the states of some texts, text after text."""
        self._values[token_places(self._offsets, rows)] = values

    def take(self, rows: Ints) -> npt.NDArray[np.float32]:
        """Return the states of some texts, float32 (N, H), text after text."""
        return np.asarray(self._values[token_places(self._offsets, rows)])


class TunableEncoder:
    """An encoder whose top layers can be trained on remembered texts; made by :meth:`load`.

    Attributes
    ----------
    model : nn.Module
        The transformers encoder. Call :meth:`merge` before saving it.
    top : TopLayers
        What is trained.
    dim : int
        Length of a vector.
    """

    def __init__(
        self,
        model: nn.Module,
        architecture: Architecture,
        tokenizer: Tokenizer,
        top: TopLayers,
        *,
        pooling: str,
        normalize: bool,
    ) -> None:
        self.model = model
        self.top = top
        self.device = architecture.words.device
        self._tokenize = tokenizer
        self._below = PackedModel(
            replace(architecture, layers=architecture.layers[: -len(top.layers)]), pooling=pooling
        )
        self.dim = architecture.words.shape[1]
        self._pool_first = pooling == "cls"
        self._normalize = normalize
        self._budget = CUDA_BUDGETS[0] if self.device.type == "cuda" else CPU_BUDGET
        self._states = RememberedStates(np.empty(0, np.int64), self.dim)

    @classmethod
    def load(
        cls,
        files: ModelFiles,
        *,
        train_layers: int,
        rank: int | None,
        alpha: float,
        dropout: float,
        max_tokens: int,
        pooling: str,
        normalize: bool,
        device: torch.device,
    ) -> Self:
        """Load an encoder, frozen but for what is trained.

        Raises
        ------
        TrainingError
            The architecture isn't BERT, DistilBERT, RoBERTa, XLM-R or MPNet, or has fewer layers.
        ConfigError
            The model can't read ``max_tokens``.
        ModelError
            The model can't be loaded.
        """
        tokenizer = load_tokenizer(files)
        model = load_backbone(files, device=device)
        check_fit(files, model, tokenizer, max_tokens=max_tokens)
        model.requires_grad_(False)
        architecture = read_architecture(model)
        if architecture is None or architecture.activation not in ACTIVATIONS:
            raise TrainingError(
                f"model {files.name!r}: expected BERT, DistilBERT, RoBERTa, XLM-R or MPNet with activation "
                f"{' or '.join(ACTIVATIONS)}, found {type(model).__name__}; fine-tune another encoder"
            )
        top = TopLayers(architecture, train_layers, rank=rank, alpha=alpha, dropout=dropout)
        tokens = Tokenizer(tokenizer.backend_tokenizer, max_tokens=max_tokens)
        return cls(model, architecture, tokens, top, pooling=pooling, normalize=normalize)

    def remember(self, texts: Sequence[str]) -> None:
        """Compute the states below the trained layers; from now on texts are named by their place in ``texts``."""
        ids = self._tokenize([clean_text(text) for text in texts])
        empty = [place for place, row in enumerate(ids) if not len(row)]
        if empty:
            raise TrainingError(f"text {empty[0]}: expected at least one token, found none; leave the text out")
        self._states = RememberedStates(np.array([len(row) for row in ids], np.int64), self.dim)
        for rows in self._batches(np.arange(len(ids))):
            found = self._below.states([ids[row] for row in rows.tolist()])
            self._states.put(rows, found.float().cpu().numpy())

    def encode(self, rows: Ints) -> Tensor:
        """Return the vectors of remembered texts, float32 (n, dim), with gradients."""
        order = np.argsort(-self._states.lengths[rows], kind="stable")
        lengths = self._states.lengths[rows[order]].tolist()
        states = torch.from_numpy(self._states.take(rows[order])).to(self.device)
        # On CUDA, products of a training step in bfloat16 with weights in float32; on a CPU float32 throughout.
        is_half = self.top.training and self.device.type == "cuda"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_half):
            hidden = self.top(states, lengths)
        pooled = self._pool(hidden.float(), lengths)
        back = torch.from_numpy(np.argsort(order, kind="stable")).to(self.device)
        vectors = pooled[back]
        return unit_length(vectors) if self._normalize else vectors

    @torch.no_grad()
    def vectors(self, rows: Ints | None = None) -> npt.NDArray[np.float32]:
        """Return the vectors of remembered texts as they are now, float32 (n, dim); None: of all."""
        rows = np.arange(len(self._states)) if rows is None else rows
        found = np.empty((len(rows), self.dim), np.float32)
        training = self.top.training
        self.top.eval()
        for part in self._batches(rows):
            found[part] = self.encode(rows[part]).cpu().numpy()
        self.top.train(training)
        return found

    def merge(self) -> None:
        """Add low-rank additions into the weights of :attr:`model`."""
        self.top.merge()

    def _batches(self, rows: Ints) -> list[Ints]:
        """Cut ``rows`` into batches of bounded tokens, longest text first; returns positions in ``rows``."""
        order = np.argsort(-self._states.lengths[rows], kind="stable")
        lengths = self._states.lengths[rows[order]]
        return [order[batch] for batch in batch_slices(lengths, budget=self._budget, is_padded=False)]

    def _pool(self, states: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return one vector a text, (n, H), as :class:`~recsys_llm.text.packed.PackedModel` pools."""
        counts = torch.tensor(lengths, device=states.device)
        if self._pool_first:
            return states[counts.cumsum(0) - counts]
        text = torch.repeat_interleave(torch.arange(len(lengths), device=states.device), counts)
        total = states.new_zeros(len(lengths), states.shape[1]).index_add(0, text, states)
        return total / counts[:, None]
