"""What a generator of the synthetic test is measured by, always side by side: none of these figures means much alone.

A generator that always says the same likely thing has the best NLL_oracle. Its entropy shows it, and so do distinct
bigrams and self-BLEU.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recsys_llm.bench.oracle_world import Oracle, opening, sequence_nll
from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.policy import require_finite
from recsys_llm.seqgan.rollout import generate

BLEU_ORDER = 3
"""Longest n-gram of self-BLEU."""
BLEU_SEQUENCES = 200
"""Samples that self-BLEU compares with each other."""
UNMATCHED = 0.1
"""Matches of an n-gram order that has none, so that BLEU is not 0 (Chen and Cherry 2014, method 1)."""


@dataclass(frozen=True)
class Figures:
    """Of one generator; nats are per item."""

    nll_oracle: float
    """``-log p_oracle`` of its own samples: are they likely?"""
    nll_test: float
    """``-log q`` of the oracle's held-out sequences: does it cover them?"""
    entropy: float
    """H(G), of its own next-item distributions along its own samples."""
    distinct_2: float
    """Share of distinct bigrams among those of its samples."""
    self_bleu: float
    """Mean BLEU-3 of a sample against other samples; 1: all alike."""


def measure(generator: Generator, oracle: Oracle, test: Tensor, *, samples: int, seed: int) -> Figures:
    """Return a generator's figures on ``samples`` of its own; the same ``seed`` draws with the same numbers.

    Raises
    ------
    TrainingError
        Its weights are not finite.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        position = opening(generator, samples)
        require_finite(position, "measurement")
        items, entropy = generate(generator, position.table, position.first, position.states, test.shape[1], rng)
    return Figures(
        nll_oracle=sequence_nll(oracle, items),
        nll_test=sequence_nll(generator, test),
        entropy=float(entropy.mean()),
        distinct_2=distinct_bigrams(items),
        self_bleu=self_bleu(items[:BLEU_SEQUENCES].tolist()),
    )


def tempered(generator: Generator, temperature: float) -> Generator:
    """Return a copy whose logits are divided by ``temperature``."""
    copied = copy.deepcopy(generator)
    with torch.no_grad():
        for parameter in (
            copied.output.weight,
            copied.output.bias,
            copied.skip,
            copied.popularity_scale,
            copied.bias,
        ):
            parameter.div_(temperature)
    return copied


def at_entropy(sweep: Sequence[Figures], entropy: float, name: str) -> float | None:
    """Return a figure of a temperature sweep at an entropy, interpolated linearly; None outside the sweep.

    Examples
    --------
    >>> sweep = [Figures(1.0, 9.0, 1.0, 0.5, 0.5), Figures(2.0, 5.0, 3.0, 0.5, 0.5)]
    >>> at_entropy(sweep, 1.5, "nll_oracle")
    1.25
    """
    ordered = sorted(sweep, key=lambda figures: figures.entropy)
    entropies = [figures.entropy for figures in ordered]
    if not entropies[0] <= entropy <= entropies[-1]:
        return None
    return float(np.interp(entropy, entropies, [getattr(figures, name) for figures in ordered]))


def distinct_bigrams(items: Tensor) -> float:
    """Return the share of distinct bigrams among all of sequences (n, L).

    Examples
    --------
    >>> distinct_bigrams(torch.tensor([[1, 2, 1], [1, 2, 3]]))
    0.75
    """
    pairs = np.stack([items[:, :-1].flatten().numpy(), items[:, 1:].flatten().numpy()], 1)
    return len(np.unique(pairs, axis=0)) / max(1, len(pairs))


def self_bleu(sequences: Sequence[Sequence[int]]) -> float:
    """Return the mean BLEU-3 of each sequence against all others; of equal lengths, so without a brevity penalty.

    Zhu et al. 2018 (Texygen). An n-gram counts as often as the sequence has it, at most as often as some other has it.

    Examples
    --------
    >>> self_bleu([[1, 2, 3, 4], [1, 2, 3, 4], [5, 6, 7, 8]]) > self_bleu([[1, 2, 3, 4], [1, 3, 2, 4], [5, 6, 7, 8]])
    True
    >>> round(self_bleu([[1, 2, 3]] * 3), 6)
    1.0
    """
    logs = np.zeros(len(sequences))
    for order in range(1, BLEU_ORDER + 1):
        counted = [
            Counter(tuple(sequence[at : at + order]) for at in range(len(sequence) - order + 1))
            for sequence in sequences
        ]
        largest: dict[tuple[int, ...], list[int]] = {}
        for counts in counted:
            for gram, count in counts.items():
                largest[gram] = sorted([*largest.get(gram, [0, 0]), count])[-2:]
        for row, counts in enumerate(counted):
            matched = 0
            for gram, count in counts.items():
                second, first = largest[gram]
                matched += min(count, second if count == first else first)  # the most that any other has
            logs[row] += math.log((matched or UNMATCHED) / max(1, counts.total())) / BLEU_ORDER
    return float(np.exp(logs).mean())
