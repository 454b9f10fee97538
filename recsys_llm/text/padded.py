"""Encoders that :mod:`~recsys_llm.text.packed` doesn't know: transformers' own model, texts padded to the longest."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recsys_llm.text.pooling import POOLINGS


class PaddedModel:
    """The last hidden states of texts, pooled.

    Parameters
    ----------
    model
        A transformers encoder in evaluation mode, on the device to run on.
    pad
        Token id of the padding.
    pooling
        ``mean`` or ``cls``.
    """

    def __init__(self, model: nn.Module, *, pad: int, pooling: str) -> None:
        self.device = next(model.parameters()).device
        self._model = model
        self._pad = pad
        self._pool = POOLINGS[pooling]

    def pooled(self, ids: Sequence[npt.NDArray[np.int32]]) -> Tensor:
        """Encode the token ids of some texts, none empty, to float32 (B, H) on :attr:`device`."""
        matrix, ones = padded(ids, pad=self._pad)
        with torch.inference_mode():
            tokens, mask = torch.from_numpy(matrix).to(self.device), torch.from_numpy(ones).to(self.device)  # (B, T)
            # Without padding no mask is needed, and attention is faster without one.
            hidden = self._model(input_ids=tokens, attention_mask=None if ones.all() else mask)[0]  # (B, T, H)
            return self._pool(hidden, mask)


def padded(ids: Sequence[npt.NDArray[np.int32]], *, pad: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return ids padded on the right and their mask, both int64 (rows, longest).

    Examples
    --------
    >>> ids, mask = padded([np.array([5, 6, 7], np.int32), np.array([5], np.int32)], pad=0)
    >>> ids.tolist(), mask.tolist()
    ([[5, 6, 7], [5, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    """
    longest = max(len(row) for row in ids)
    matrix = np.full((len(ids), longest), pad, np.int64)
    mask = np.zeros((len(ids), longest), np.int64)
    for place, row in enumerate(ids):
        matrix[place, : len(row)] = row
        mask[place, : len(row)] = 1
    return matrix, mask
