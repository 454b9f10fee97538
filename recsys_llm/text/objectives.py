"""What a fine-tuning is asked for: a loss on a batch, and figures on what was held back."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from recsys_llm.text.contrastive import contrastive_loss, false_negatives, log_frequencies
from recsys_llm.text.evaluation import NextItemPairs, RetrievalScores, evaluate_vectors
from recsys_llm.text.events import Ints
from recsys_llm.text.finetuning_settings import FinetuningConfig
from recsys_llm.text.pairs import TextPairs
from recsys_llm.text.tunable import TunableEncoder
from recsys_llm.training_state import data_digest

RECALL = "recall_at_20"


class Objective(Protocol):
    """A task for the encoder."""

    metric: str
    """The figure of :meth:`validate` that decides, the higher the better."""
    texts: list[str]
    """Distinct; remembered by the encoder before anything else."""
    head: nn.Module
    """What is trained beside the encoder, and left behind."""

    def __len__(self) -> int:
        """Return the number of examples in an epoch."""

    def prepare(self, encoder: TunableEncoder, *, fit: bool) -> None:
        """Make the head; with ``fit``, fit it to the encoder as it is, which has remembered the texts."""

    def loss(self, encoder: TunableEncoder, rows: Ints) -> Tensor:
        """Return the mean loss of some examples."""

    def validate(self, encoder: TunableEncoder) -> dict[str, float]:
        """Return figures on what was held back."""

    def digest(self) -> str:
        """Return a hash of the data, so that a run isn't resumed with other data."""


class Contrastive:
    """The next item's text shall be the nearest."""

    metric = RECALL

    def __init__(self, pairs: TextPairs, settings: FinetuningConfig) -> None:
        self.texts = pairs.texts
        self.head: nn.Module = nn.Identity()
        self._pairs = pairs
        self._settings = settings
        self._target_text = pairs.item_text[pairs.target]
        self._log_q = log_frequencies(self._target_text)
        self._query_log_q = log_frequencies(pairs.query_text)
        self._validation = NextItemValidation(pairs.validation, pairs.item_text, settings)

    def __len__(self) -> int:
        return len(self._pairs)

    def prepare(self, encoder: TunableEncoder, *, fit: bool) -> None:
        """Do nothing: there is no head."""

    def loss(self, encoder: TunableEncoder, rows: Ints) -> Tensor:
        """Return the contrastive loss; each text of the batch is encoded once."""
        query, target = self._pairs.query_text[rows], self._target_text[rows]
        texts, place = np.unique(np.concatenate([query, target]), return_inverse=True)
        vectors = encoder.encode(texts)
        at = torch.from_numpy(place).to(vectors.device)
        correct, both = self._settings.correct_popularity, self._settings.both_directions
        return contrastive_loss(
            vectors[at[: len(rows)]],
            vectors[at[len(rows) :]],
            temperature=self._settings.temperature,
            log_q=_on(self._log_q[rows], vectors) if correct else None,
            masked=_on(self._false_negatives(rows), vectors),
            query_log_q=_on(self._query_log_q[rows], vectors) if correct and both else None,
            both_directions=both,
        )

    def validate(self, encoder: TunableEncoder) -> dict[str, float]:
        """Return recall@20 and NDCG@10 of the next item."""
        return self._validation.scores(encoder)

    def digest(self) -> str:
        """Return a hash of texts and pairs."""
        pairs = self._pairs
        return data_digest(self.texts, pairs.query_text, pairs.target, pairs.validation.query, pairs.validation.target)

    def _false_negatives(self, rows: Ints) -> npt.NDArray[np.bool_]:
        pairs = self._pairs
        return false_negatives(
            user=pairs.user[rows],
            query_item=pairs.query_item[rows],
            target=pairs.target[rows],
            target_text=self._target_text[rows],
            items=len(pairs.item_text),
            seen=pairs.seen,
            positives=pairs.positives,
        )


class NextItemValidation:
    """Recall of the next item among a bounded part of the catalogue, since all of it is encoded after each epoch.

    The part holds the items of as many pairs as fit, and others drawn at random. Figures are for comparing epochs:
    among fewer items a target is easier to find (Krichene and Rendle 2020).
    """

    def __init__(self, pairs: NextItemPairs, item_text: Ints, settings: FinetuningConfig) -> None:
        rng = np.random.default_rng(settings.seed)
        pairs = pairs.take(_rows_that_fit(pairs, settings.validation_items, rng))
        needed = np.union1d(pairs.query, pairs.target)
        others = rng.permutation(np.setdiff1d(np.arange(len(item_text)), needed))
        items = np.union1d(needed, others[: max(0, settings.validation_items - len(needed))])
        self._pairs = pairs.among(items)
        self._texts, self._place = np.unique(item_text[items], return_inverse=True)

    def scores(self, encoder: TunableEncoder) -> dict[str, float]:
        """Return the means over users."""
        found: RetrievalScores = evaluate_vectors(encoder.vectors(self._texts)[self._place], self._pairs)
        return {found.name(metric): round(found.mean(metric) or 0.0, 6) for metric in ("recall", "ndcg")}


def _rows_that_fit(pairs: NextItemPairs, most: int, rng: np.random.Generator) -> Ints:
    """Return the sorted rows of pairs, drawn until their items would be more than ``most``; at least one."""
    order = rng.permutation(len(pairs))
    items = np.stack([pairs.query[order], pairs.target[order]], axis=1).ravel()
    _, first = np.unique(items, return_index=True)
    excess = np.sort(first)[most:]
    count = len(order) if not len(excess) else max(1, int(excess[0]) // 2)
    return np.sort(order[:count])


def _on(array: npt.NDArray[np.generic], like: Tensor) -> Tensor:
    return torch.from_numpy(array).to(like.device)
