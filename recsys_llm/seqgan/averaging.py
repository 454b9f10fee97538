"""A running mean of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class WeightAverage:
    """A running mean of a module's parameters: it validates better, and less by chance, than where a step ends."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = list(module.parameters())
        self.mean = [parameter.detach().clone() for parameter in self.parameters]
        self.count = 0

    @torch.no_grad()
    def follow(self, share: float) -> None:
        """Move the mean towards the parameters by ``share``; a plain mean until 1 / share steps were taken."""
        self.count += 1
        for mean, parameter in zip(self.mean, self.parameters, strict=True):
            mean.lerp_(parameter, max(share, 1.0 / self.count))

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Let the module have the mean as its parameters."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for mean, parameter in zip(self.mean, self.parameters, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(mean)
            mean.copy_(kept)
