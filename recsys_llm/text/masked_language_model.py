"""An encoder with a head that guesses hidden words, and the batches that it learns from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_llm.errors import ModelError
from recsys_llm.text.masked_word_head import MaskedWordHead, word_embeddings
from recsys_llm.text.masking import SPECIAL, Vocabulary, mask_words
from recsys_llm.text.training_texts import Ints, TokenTexts

_SMOOTHING = 0.1
"""Added to each word's count."""
_LARGEST_LOSS = 700.0
"""exp of more is no float."""


@dataclass(frozen=True, eq=False)
class MaskedBatch:
    """Texts with hidden words, on the device; B texts, T tokens in the longest, M chosen tokens."""

    ids: Tensor
    """int64 (B, T)"""
    attention: Tensor | None
    """int64 (B, T), 1 for a token, 0 for padding; None where nothing is padded."""
    places: Tensor
    """int64 (M,) of the chosen tokens in the (B * T,) flat batch."""
    targets: Tensor
    """int64 (M,) their true ids."""
    tokens: int
    """Without padding."""


class MaskedLanguageModel(nn.Module):
    """An encoder and its head.

    Parameters
    ----------
    backbone
        A transformers encoder.
    head
        Tied to the encoder's word embeddings.
    """

    def __init__(self, backbone: nn.Module, head: MaskedWordHead) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, batch: MaskedBatch) -> Tensor:
        """Return the logits at the chosen places, (M, V); those of all B * T places are never computed."""
        return self.scores(self.states(batch), word_embeddings(self.backbone).weight)

    def states(self, batch: MaskedBatch) -> Tensor:
        """Return the encoder's last hidden states at the chosen places, (M, H)."""
        with self._precision():
            hidden = self.backbone(input_ids=batch.ids, attention_mask=batch.attention)[0]  # (B, T, H)
        chosen: Tensor = hidden.flatten(0, 1)[batch.places]
        return chosen

    def scores(self, states: Tensor, words: Tensor) -> Tensor:
        """Return the logits of states, (M, V), given the word embeddings (V, E)."""
        with self._precision():
            logits: Tensor = self.head(states, words)
        return logits.float()

    def loss(self, batch: MaskedBatch) -> Tensor:
        """Return the mean cross-entropy of the chosen tokens, nats."""
        return functional.cross_entropy(self(batch), batch.targets)

    def _precision(self) -> torch.autocast:
        # On CUDA, products in bfloat16 with weights in float32; on a CPU float32 throughout.
        kind = self.head.bias.device.type
        return torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda")


def make_batch(
    texts: TokenTexts, rows: Ints, vocabulary: Vocabulary, rng: np.random.Generator, *, pad: int, device: torch.device
) -> MaskedBatch:
    """Mask some texts and lay them out, padded on the right.

    Parameters
    ----------
    rows : int (B,)
        Texts of the batch.
    pad
        Token id of the padding.
    """
    ids, words, lengths = texts.take(rows)
    masked = mask_words(ids, words, lengths, vocabulary, rng)
    row = np.repeat(np.arange(len(rows)), lengths)
    column = np.arange(len(ids)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    width = int(lengths.max())
    matrix = np.full((len(rows), width), pad, np.int64)
    matrix[row, column] = masked.ids
    ones = np.zeros((len(rows), width), np.int64)
    ones[row, column] = 1
    places = row[masked.places] * width + column[masked.places]
    on_device = [torch.from_numpy(array).to(device) for array in (matrix, places, masked.targets)]
    # Without padding no mask is needed, and attention is faster without one.
    attention = None if ones.all() else torch.from_numpy(ones).to(device)
    return MaskedBatch(on_device[0], attention, on_device[1], on_device[2], len(ids))


def held_out_loss(model: MaskedLanguageModel, batches: Sequence[MaskedBatch]) -> float:
    """Return the mean cross-entropy over all chosen tokens of ``batches``, nats, without dropout."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        total = sum(float(model.loss(batch)) * len(batch.targets) for batch in batches)
    model.train(was_training)
    return total / sum(len(batch.targets) for batch in batches)


def perplexity(loss: float) -> float:
    """Return exp of a loss in nats.

    Examples
    --------
    >>> round(perplexity(math.log(8)), 6)
    8.0
    """
    return math.exp(min(loss, _LARGEST_LOSS))


def vocabulary_of(tokenizer: Any, *, name: str) -> Vocabulary:
    """Return what a tokenizer offers in place of a hidden token.

    Parameters
    ----------
    tokenizer
        A fast tokenizer of transformers.
    name
        Of the model, for messages.

    Raises
    ------
    ModelError
        It has no mask token.
    """
    if tokenizer.mask_token_id is None:
        raise ModelError(
            f"model {name!r}: its tokenizer has no mask token, so it was never a masked language model; "
            "choose a BERT-family encoder"
        )
    known = np.array(sorted(tokenizer.get_vocab().values()), np.int64)
    return Vocabulary(int(tokenizer.mask_token_id), np.setdiff1d(known, np.array(tokenizer.all_special_ids, np.int64)))


def start_from_frequencies(head: MaskedWordHead, texts: TokenTexts) -> None:
    """Set a fresh head's bias to the logarithm of each token's frequency, so that it needn't be learned first."""
    seen: npt.NDArray[np.int32] = texts.ids[texts.words != SPECIAL]
    counts = np.bincount(seen, minlength=len(head.bias)) + _SMOOTHING
    with torch.no_grad():
        head.bias.copy_(torch.from_numpy(np.log(counts / counts.sum())))
