"""Sorted texts to batches of about equal cost, and what to do when a batch doesn't fit into a device's memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from recsys_llm.errors import ModelError
from recsys_llm.text.tokens import batch_end

CPU_BUDGET = 1024
"""Tokens in a batch on a CPU. On 1 core MiniLM was fastest at 1,024; from 4,096 on, activations leave the cache."""
CUDA_BUDGETS = tuple(2**power for power in range(13, 19))
"""Tried in turn when a model is loaded on CUDA: 8,192 to 262,144 tokens."""
_WORTHWHILE = 1.03
_TUNING_LENGTH = 64

_logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int32]


class Backbone(Protocol):
    """Token ids to one vector a text."""

    device: torch.device

    def pooled(self, ids: Sequence[Ints]) -> Tensor:
        """Return float32 (texts, hidden) on :attr:`device`; no text is empty."""


class Batches:
    """Runs texts through a backbone in batches of a bounded number of tokens.

    Parameters
    ----------
    budget
        Tokens of a batch at most; halved for good when a batch doesn't fit into the device's memory.
    is_padded
        Whether every text of a batch costs as much as its longest.
    """

    def __init__(self, backbone: Backbone, *, budget: int, is_padded: bool) -> None:
        self.backbone = backbone
        self.budget = budget
        self.is_padded = is_padded

    def run(self, ids: Sequence[Ints], done: Callable[[npt.NDArray[np.int64]], None]) -> tuple[Tensor, list[int]]:
        """Encode the texts that have tokens.

        Parameters
        ----------
        done
            Called after each batch with the positions of its texts. On CUDA the device may still be computing them.

        Returns
        -------
        float32 (texts, hidden), positions in ``ids``
            On the device; nothing waits for it in between.

        Raises
        ------
        ModelError
            A single text doesn't fit into the device's memory.
        """
        lengths = np.array([len(row) for row in ids], np.int64)
        order = np.argsort(-lengths, kind="stable")
        order = order[lengths[order] > 0]
        found: list[Tensor] = []
        start = 0
        while start < len(order):
            stop = batch_end(lengths[order], start, budget=self.budget, is_padded=self.is_padded)
            batch = order[start:stop]
            try:
                found.append(self.backbone.pooled([ids[row] for row in batch]))
            except torch.OutOfMemoryError as error:
                self._shrink(int(lengths[batch[0]]), len(batch), error)
                continue
            done(batch)
            start = stop
        return torch.cat(found) if found else torch.empty(0, 0), order.tolist()

    def _shrink(self, longest: int, texts: int, error: torch.OutOfMemoryError) -> None:
        if texts == 1:
            raise ModelError(
                f"device {self.backbone.device}: one text of {longest} tokens doesn't fit into its memory; lower "
                "max_tokens (in a new view version), free the device, or use device: cpu"
            ) from error
        self.budget = max(longest, self.budget // 2)
        if self.backbone.device.type == "cuda":
            torch.cuda.empty_cache()
        _logger.warning("device %s: out of memory, going on with %d tokens a batch", self.backbone.device, self.budget)


def open_batches(backbone: Backbone, *, is_padded: bool) -> Batches:
    """Return batches of the size that suits the backbone's device."""
    if backbone.device.type != "cuda":
        return Batches(backbone, budget=CPU_BUDGET, is_padded=is_padded)
    budget = best_budget(CUDA_BUDGETS, lambda tokens: _cuda_rate(backbone, tokens))
    return Batches(backbone, budget=budget, is_padded=is_padded)


def best_budget(budgets: Sequence[int], rate: Callable[[int], float]) -> int:
    """Return the budget after which ``rate`` (tokens per second) no longer grows by 3%, or memory ends.

    Half of the first where even that doesn't fit; batches that still don't are halved as they come.

    Examples
    --------
    >>> best_budget([1, 2, 4, 8], {1: 10.0, 2: 18.0, 4: 18.1, 8: 40.0}.__getitem__)
    2
    """
    best, fastest = budgets[0] // 2, 0.0
    for budget in budgets:
        try:
            found = rate(budget)
        except torch.OutOfMemoryError:
            break
        if found < fastest * _WORTHWHILE:
            break
        best, fastest = budget, found
    return best


def _cuda_rate(backbone: Backbone, tokens: int) -> float:
    ids = [np.ones(_TUNING_LENGTH, np.int32)] * (tokens // _TUNING_LENGTH)
    backbone.pooled(ids)  # kernels are chosen and memory is reserved on the first call
    torch.cuda.synchronize(backbone.device)
    started = time.perf_counter()
    backbone.pooled(ids)
    torch.cuda.synchronize(backbone.device)
    return tokens / (time.perf_counter() - started)
