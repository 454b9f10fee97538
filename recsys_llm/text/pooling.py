"""From the vectors of a text's tokens to the vector of the text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

_SMALLEST_NORM = 1e-12


def mean_pooling(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean over the tokens of each text, special tokens included.

    Reimers and Gurevych 2019, Sentence-BERT, section 3.

    Parameters
    ----------
    hidden : float (B, T, H)
        Last hidden states.
    mask : bool or int (B, T)
        1 for a token, 0 for padding. A text without any token gets a vector of zeros.

    Examples
    --------
    >>> mean_pooling(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])).tolist()
    [[2.0]]
    """
    weights = mask.to(hidden.dtype)  # (B, T)
    total = torch.bmm(weights[:, None, :], hidden)[:, 0]  # (B, H)
    return total / weights.sum(dim=1, keepdim=True).clamp(min=1)


def cls_pooling(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the first token's vector ([CLS] of BERT, <s> of RoBERTa), (B, H)."""
    return hidden[:, 0]


POOLINGS: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {"mean": mean_pooling, "cls": cls_pooling}


def unit_length(vectors: Tensor) -> Tensor:
    """Return each row divided by its Euclidean norm; a row of zeros stays as it is.

    Examples
    --------
    >>> unit_length(torch.tensor([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]
    """
    norms: Tensor = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / norms.clamp(min=_SMALLEST_NORM)
