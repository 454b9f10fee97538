"""Buying again: what a user has had lately is likelier than its vector says.

A vector of 64 numbers can't hold which of some hundred items a user has had, so that a generator alone is poor at
repeats. Where they are common, lists are ordered by ``logit + weight * log(1 + scale * sum of decay ** age)`` over the
groups that held the item; the age of the last group is 0 (cf. the copy mode of RepeatNet, Ren et al. 2019, which gates
between repeating and exploring). The three numbers are chosen on the validation slice and saved with the generator.
Probabilities stay the generator's own: only the order, and who is in the list, changes.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import torch

from recsys_llm.seqgan.evaluation import hits_and_relevant
from recsys_llm.seqgan.generator import Generator, logits
from recsys_llm.seqgan.histories import Ints
from recsys_llm.seqgan.losses import block_rows
from recsys_llm.seqgan.metrics import ndcg_and_hit_rate
from recsys_llm.seqgan.ranking import Rebuy, add_rebuy, best_first, rebuy_entries
from recsys_llm.seqgan.reading import queries_after
from recsys_llm.seqgan.sequences import Sequences

WEIGHTS, SCALES, DECAYS = (0.5, 1.0, 2.0, 4.0, 8.0), (5.0, 20.0, 80.0), (0.7, 0.85, 0.93, 0.97)
LEAST_GAIN = 0.02
"""Relative gain in NDCG@10 below which the term stays off: the best of 60 settings is a little better by chance."""
K = 10


@torch.no_grad()
def fit_rebuy(generator: Generator, sequences: Sequences, groups: Ints) -> float:
    """Choose the re-buy term of a trained generator, in place; all zeros where it doesn't help.

    Parameters
    ----------
    sequences, groups
        The groups (flat indexes, ascending) of the validation slice, and all that is before them.

    Returns
    -------
    float
        NDCG@10 on those groups with the chosen term.
    """
    generator.rebuy.zero_()
    users, read = sequences.read_before(groups)
    table = generator.item_table()
    queries = queries_after(generator, table.vectors, sequences, users, read)
    settings = [Rebuy(), *(Rebuy(*each) for each in product(WEIGHTS, SCALES, DECAYS))]
    totals = np.zeros(len(settings))
    step = block_rows(len(table.bias))
    for start in range(0, len(groups), step):
        rows = slice(start, start + step)
        scores = logits(queries[rows], table)
        strengths = {  # the same for every weight
            setting[1:]: rebuy_entries(sequences, users[rows], read[rows], len(table.bias), setting)
            for setting in settings[: 1 + len(SCALES) * len(DECAYS)]
        }
        for number, setting in enumerate(settings):
            changed = add_rebuy(scores.clone(), strengths[setting[1:]], setting.weight)
            _, items = best_first(changed, min(K, len(table.bias)))
            hits, relevant = hits_and_relevant(items.cpu().numpy(), sequences, groups[rows])
            totals[number] += ndcg_and_hit_rate(hits, relevant)[0].sum()
    best = int(np.argmax(totals))
    if totals[best] <= totals[0] * (1.0 + LEAST_GAIN):
        best = 0
    generator.rebuy.copy_(torch.tensor(settings[best]))
    return float(totals[best] / max(1, len(groups)))
