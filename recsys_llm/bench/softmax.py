"""``recsys-llm bench softmax``: a gradient step of teacher forcing over a large vocabulary, full against sampled."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from recsys_llm.bench.memory import in_own_process
from recsys_llm.bench.report import report
from recsys_llm.bench.timing import interleaved
from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.pretraining import make_optimiser, states_before, teacher_forcing_loss, update
from recsys_llm.seqgan.sequences import Sequences, Windows, make_batch
from recsys_llm.seqgan.settings import SAMPLED_ABOVE, SeqGANConfig

ITEMS = 100_000
USERS, GROUPS = 64, 20
"""Histories of as many groups of one item each."""
TEXT_DIM = 384
SIDES = ("full", "sampled")


def bench_softmax(*, runs: int) -> dict[str, Any]:
    """Time gradient steps of a generator with text vectors in turns, in CPU seconds; memory is a process's peak.

    Parameters
    ----------
    runs
        Steps of each side.
    """
    steps = {name: _Training(name).step for name in SIDES}
    for step in steps.values():
        step()  # what is made at first use
    times = interleaved(steps, runs, clock=time.process_time)
    seconds = {name: float(np.median(values)) for name, values in times.items()}
    memory = {name: in_own_process(_one_step, name)[1] for name in SIDES}
    results = [
        {"name": name, "median": seconds[name], "runs": runs, "targets_per_s": USERS * GROUPS / seconds[name]}
        | {"peak_mib": memory[name]}
        for name in SIDES
    ]
    speedup = seconds["full"] / seconds["sampled"]
    saved = memory["full"] / memory["sampled"]
    settings = {"items": ITEMS, "targets": USERS * GROUPS, "text_dim": TEXT_DIM, "sampled_above": SAMPLED_ABOVE}
    settings |= {"negatives": _settings("sampled").softmax_negatives, "threads": torch.get_num_threads()}
    targets = [
        {"name": "full_to_sampled_seconds", "target": "> 1", "value": speedup, "met": speedup > 1},
        {"name": "full_to_sampled_memory", "target": ">= 1", "value": saved, "met": saved >= 1},
    ]
    return report("bench softmax", settings=settings, results=results, targets=targets)


def _settings(softmax: str) -> SeqGANConfig:
    return replace(SeqGANConfig(), softmax=softmax)  # type: ignore[arg-type]  # of SIDES


class _Training:
    """A generator, a batch and an optimiser."""

    def __init__(self, softmax: str) -> None:
        rng = np.random.default_rng(0)
        share = 1.0 / np.arange(1, ITEMS + 1)
        items = rng.choice(ITEMS, USERS * GROUPS, p=share / share.sum())
        offsets, times = np.arange(len(items) + 1), np.tile(np.arange(GROUPS), USERS)
        sequences = Sequences(items.astype(np.int64), offsets, np.arange(USERS + 1) * GROUPS, times.astype(np.int64))
        self.config = _settings(softmax)
        torch.manual_seed(0)
        text = torch.randn(ITEMS, TEXT_DIM)
        sizes = {"embedding_dim": self.config.embedding_dim, "hidden_dim": self.config.hidden_dim}
        self.generator = Generator(torch.ones(ITEMS, dtype=torch.int64), text, **sizes)
        self.optimiser = make_optimiser(self.generator, self.config.learning_rate, self.config.weight_decay)
        windows = Windows.cut(sequences, self.config.max_groups)
        self.states = states_before(self.generator, sequences, windows)
        self.batch = make_batch(sequences, windows, np.arange(len(windows)), torch.device("cpu"))

    def step(self) -> None:
        """Take a gradient step."""
        loss = teacher_forcing_loss(self.generator, self.batch, self.states, self.config)
        update(self.generator, self.optimiser, loss, "bench softmax")


def _one_step(softmax: str) -> None:
    _Training(softmax).step()
