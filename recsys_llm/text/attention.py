"""Attention over texts that lie one after another, without padding and without a mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Group(NamedTuple):
    """Neighbouring texts of equal length."""

    start: int
    """Position of the first token."""
    texts: int
    length: int
    """Tokens of each text."""

    @property
    def stop(self) -> int:
        """One past the position of the last token."""
        return self.start + self.texts * self.length


def equal_lengths(lengths: Sequence[int]) -> list[Group]:
    """Group neighbouring texts of equal length.

    Examples
    --------
    >>> equal_lengths([5, 5, 2])
    [Group(start=0, texts=2, length=5), Group(start=10, texts=1, length=2)]
    """
    groups: list[Group] = []
    for length in lengths:
        if groups and groups[-1].length == length:
            groups[-1] = groups[-1]._replace(texts=groups[-1].texts + 1)
        else:
            groups.append(Group(groups[-1].stop if groups else 0, 1, length))
    return groups


def grouped_attention(
    projected: Tensor, groups: Sequence[Group], heads: int, bias: Callable[[int], Tensor] | None = None
) -> Tensor:
    """Return softmax(q k' / sqrt(d) + bias) v of each text, group by group.

    Parameters
    ----------
    projected : float (N, 3 * H)
        Query, key and value of each token.
    bias
        From a length L to what is added to the scores, (heads, L, L).

    Returns
    -------
    float (N, H)
    """
    tokens, width = projected.shape
    dim = width // 3 // heads
    found = projected.new_empty(tokens, heads * dim)
    found[groups[-1].stop :] = 0  # rows of no text
    for group in groups:
        target = found[group.start : group.stop].view(group.texts, group.length, heads, dim)
        target.copy_(group_attention(projected, group, heads, bias))
    return found


def group_attention(projected: Tensor, group: Group, heads: int, bias: Callable[[int], Tensor] | None = None) -> Tensor:
    """Return the attention of one group's texts, float (texts, L, heads, d); arguments as of the whole."""
    dim = projected.shape[1] // 3 // heads
    part = projected[group.start : group.stop].view(group.texts, group.length, 3, heads, dim)
    query, key, value = part.permute(2, 0, 3, 1, 4)  # each (texts, heads, L, d)
    added = None if bias is None else bias(group.length)
    attended: Tensor = functional.scaled_dot_product_attention(query, key, value, attn_mask=added)
    return attended.transpose(1, 2)


def has_flash_attention(device: torch.device) -> bool:
    """Return whether a CUDA device can run :func:`varlen_attention`: Ampere (compute capability 8.0) or newer."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def varlen_attention(projected: Tensor, offsets: Tensor, longest: int, heads: int) -> Tensor:
    """Return the same from one Flash-Attention kernel over all texts (Dao 2023); CUDA, half precision.

    Parameters
    ----------
    projected : bfloat16 (N, 3 * H)
    offsets : int32 (texts + 1,)
        Position of each text's first token, then N.
    """
    from torch.nn.attention.varlen import varlen_attn

    tokens, width = projected.shape
    query, key, value = projected.view(tokens, 3, heads, width // 3 // heads).unbind(1)
    found = varlen_attn(query, key, value, offsets, offsets, longest, longest)
    assert isinstance(found, torch.Tensor)  # a tuple only where the log-sum-exp is asked for
    return found.reshape(tokens, width // 3)
