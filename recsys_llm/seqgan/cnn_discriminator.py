"""The paper's discriminator: a CNN with a highway layer over the item vectors of a sequence.

Yu et al. 2017, section 3.3 and appendix C: windows of several widths, max-over-time pooling, one highway layer
(Srivastava et al. 2015). What is judged here continues a history, so that the windows run over the last groups of the
history and the continuation as one sequence, and see whether one fits the other.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys_llm.seqgan.discriminator import HistoryReader, ItemEmbedding

PAPER_LENGTH = 20
"""Length of the sequences that the paper's windows are for."""
PAPER_DIM = 64
"""Width of its item vectors."""
PAPER_WINDOWS = {
    1: 100,
    2: 200,
    3: 200,
    4: 200,
    5: 200,
    6: 100,
    7: 100,
    8: 100,
    9: 100,
    10: 100,
    15: 160,
    20: 160,
}
"""Window -> filters."""
HIGHWAY_BIAS = -2.0
"""Of the transform gate: the layer begins as near the identity (Srivastava et al. 2015, section 2.2)."""


def scaled_windows(length: int, dim: int) -> dict[int, int]:
    """Return the paper's windows for sequences of ``length`` and its filters for item vectors of width ``dim``.

    Windows that fall together are one window, with the filters of the first.

    Examples
    --------
    >>> scaled_windows(20, 64) == PAPER_WINDOWS
    True
    >>> scaled_windows(6, 32)
    {1: 50, 2: 100, 3: 50, 4: 80, 6: 80}
    """
    scaled: dict[int, int] = {}
    for window, filters in PAPER_WINDOWS.items():
        width = max(1, round(window * length / PAPER_LENGTH))
        scaled.setdefault(width, max(1, round(filters * dim / PAPER_DIM)))
    return scaled


class CNNDiscriminator(ItemEmbedding):
    """Convolutions over history and continuation, max over time, highway layer, one linear head.

    Parameters
    ----------
    items, text
        As for :class:`ItemEmbedding`.
    dim
        Width of item vectors; scales the number of filters.
    length
        Longest continuation; scales the windows.
    context
        Groups of the history before the continuation that the windows see; 0: none.
    dropout
        Before the head, in training mode only.
    """

    def __init__(self, items: int, text: Tensor | None, *, dim: int, length: int, context: int, dropout: float) -> None:
        super().__init__(items, text, dim)
        self.dim, self.length, self.context = dim, length, context
        windows = scaled_windows(length, dim)
        self.convolutions = nn.ModuleList(nn.Conv1d(dim, filters, window) for window, filters in windows.items())
        features = sum(windows.values())
        self.transform, self.gate = nn.Linear(features, features), nn.Linear(features, features)
        nn.init.constant_(self.gate.bias, HIGHWAY_BIAS)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(features, 1)

    def read(self, histories: HistoryReader) -> Tensor:
        """Return the vectors of each history's last ``context`` groups, flat: (B, context * dim)."""
        grid = self.group_grid(histories.recent_groups())
        missing = max(0, self.context - grid.shape[1])
        padded = F.pad(grid, (0, 0, missing, 0))
        return padded[:, padded.shape[1] - self.context :].flatten(1)

    def forward(self, history: Tensor, items: Tensor, lengths: Tensor) -> Tensor:
        """Return the logit that each continuation is real, (n,), as :class:`Discriminator` says."""
        short = self.length - items.shape[1]
        valid = torch.arange(self.length, device=items.device) < lengths.unsqueeze(1)  # (n, length)
        steps = F.embedding(F.pad(items, (0, short)), self.vectors()) * valid.unsqueeze(2)
        sequence = torch.cat([history.view(len(items), self.context, self.dim), steps], 1).transpose(1, 2)
        pooled = [F.relu(convolution(sequence)).amax(2) for convolution in self.convolutions]
        features = torch.cat(pooled, 1)
        gate = torch.sigmoid(self.gate(features))
        features = gate * F.relu(self.transform(features)) + (1 - gate) * features
        logit: Tensor = self.head(self.dropout(features)).squeeze(1)
        return logit
