"""DCN-v2 (Wang et al. 2021, arXiv 2008.13535): explicit feature crosses beside a deep part, on standardised columns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recsys_llm.errors import ConfigError


@dataclass(frozen=True)
class DCNConfig:
    """Shape of the network."""

    cross_layers: int = 2
    """Degree of the crosses minus one; 0 to 8."""
    cross_rank: int | None = None
    """Rank of each cross matrix (the paper's equation 2); None: full."""
    deep: tuple[int, ...] = (64, 32)
    """Width of each hidden layer."""
    dropout: float = 0.1
    """In the deep part, 0 to below 1."""
    clip: float = 5.0
    """Standardised values are cut to this many standard deviations, above 0."""

    def __post_init__(self) -> None:
        if not 0 <= self.cross_layers <= 8 or not 0 <= self.dropout < 1 or self.clip <= 0:
            raise ConfigError(f"ranker: expected cross_layers 0-8, dropout 0 to below 1 and clip > 0, found {self}")
        if (self.cross_rank is not None and self.cross_rank < 1) or any(width < 1 for width in self.deep):
            raise ConfigError(f"ranker: expected cross_rank and widths of 1 or more, found {self}")


class DCN(nn.Module):
    """Score of each row. The input is raw columns; NaN becomes a learned default, and a flag says so.

    Parameters
    ----------
    mean, std : float32 (F,)
        Of each column over the training rows that have it.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: npt.NDArray[np.float32], std: npt.NDArray[np.float32], config: DCNConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("mean", torch.from_numpy(mean.copy()))
        self.register_buffer("std", torch.from_numpy(std.copy()))
        self.default = nn.Parameter(torch.zeros(len(mean)))
        width = 2 * len(mean)
        self.cross = nn.ModuleList(_cross(width, config.cross_rank) for _ in range(config.cross_layers))
        layers: list[nn.Module] = []
        before = width
        for after in config.deep:
            layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(config.dropout)]
            before = after
        self.deep = nn.Sequential(*layers)
        self.head = nn.Linear(width + before if config.deep else width, 1)

    def forward(self, columns: Tensor) -> Tensor:
        """Return float32 (n,) scores of float32 (n, F) columns, NaN where not known."""
        missing = torch.isnan(columns)
        x = ((columns - self.mean) / self.std).clamp(-self.config.clip, self.config.clip)
        x = torch.where(missing, self.default, x)
        first = torch.cat([x, missing.to(x.dtype)], dim=1)  # (n, 2F)
        crossed = first
        for layer in self.cross:
            crossed = first * layer(crossed) + crossed  # equation 1
        both = [crossed, self.deep(first)] if self.config.deep else [crossed]
        scores: Tensor = self.head(torch.cat(both, dim=1)).squeeze(1)
        return scores


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work on one thread inside: on layers this small, several ones wait for each other.

    It sets the whole process's number, so it is for training and evaluation, not for a server's requests.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cross(width: int, rank: int | None) -> nn.Module:
    if rank is None:
        return nn.Linear(width, width)
    return nn.Sequential(nn.Linear(width, rank, bias=False), nn.Linear(rank, width))


def column_statistics(columns: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return mean and standard deviation of each column over the rows that have it, float32 (F,) each.

    A column without values gets mean 0; one that doesn't vary gets deviation 1.
    """
    known = ~np.isnan(columns)
    count = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, columns, 0).sum(axis=0, dtype=np.float64) / count
    variance = np.where(known, columns - mean, 0.0)
    std = np.sqrt((variance**2).sum(axis=0) / count)
    return mean.astype(np.float32), np.where(std > 1e-6, std, 1.0).astype(np.float32)
