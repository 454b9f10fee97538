"""Categories as a task for an encoder: a linear layer on a text's vector says which categories the item has.

The layer is fitted to the frozen encoder first, so that epoch 0 is what the encoder knows already, and so that its
first, random gradients don't wreck the encoder (Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features").
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_llm.errors import TrainingError
from recsys_llm.text.evaluation import NextItemPairs
from recsys_llm.text.events import Ints
from recsys_llm.text.finetuning_settings import FinetuningConfig
from recsys_llm.text.objectives import NextItemValidation
from recsys_llm.text.pairs import ItemTexts, distinct_texts
from recsys_llm.text.tunable import TunableEncoder
from recsys_llm.training_state import data_digest

LEAST_ITEMS = 20
"""With a category, to train on and to validate on."""
_LEAST_OF_CATEGORY = 5
"""Items to train on; a rarer category is left out."""
_HEAD_STEPS, _HEAD_RATE = 300, 0.05

Flags = npt.NDArray[np.bool_]


class Categories:
    """The comma-separated categories of an item can be read off its vector.

    Parameters
    ----------
    items
        As known before the cut-off. Those whose texts came last are for validation.
    next_items
        Also report recall of the next item on these pairs; None: don't.

    Raises
    ------
    TrainingError
        There are fewer than :data:`LEAST_ITEMS` items with a category on either side, or fewer than two categories.
    """

    metric = "micro_f1"

    def __init__(self, items: ItemTexts, settings: FinetuningConfig, next_items: NextItemPairs | None = None) -> None:
        self.texts, item_text = distinct_texts(items.texts)
        rows = np.array([place for place, text in enumerate(items.texts) if text and items.categories[place]], np.int64)
        train, validation = _split(items.times[rows], settings)
        names = _common([items.categories[place] for place in rows[train].tolist()])
        if min(len(train), len(validation)) < LEAST_ITEMS or len(names) < 2:
            raise TrainingError(
                f"expected at least {LEAST_ITEMS} items with a text and a category to train on, {LEAST_ITEMS} newer "
                f"ones to validate on, and two categories of {_LEAST_OF_CATEGORY} items or more; found {len(train)}, "
                f"{len(validation)} and {len(names)}; check sources.items.category, or use --objective contrastive"
            )
        targets = _targets([items.categories[place] for place in rows.tolist()], names)
        self.names = names
        self._text, self._targets = item_text[rows[train]], targets[train]
        self._validation_text, self._validation_targets = item_text[rows[validation]], targets[validation]
        self._next_items = None if next_items is None else NextItemValidation(next_items, item_text, settings)
        self.head: nn.Module = nn.Identity()

    def __len__(self) -> int:
        return len(self._text)

    def prepare(self, encoder: TunableEncoder, *, fit: bool) -> None:
        """Make the linear layer, and fit it to the encoder as it is, on all training items at once."""
        # A convex problem needs no random start.
        self.head = head = nn.Linear(encoder.dim, len(self.names), device=encoder.device)
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        if not fit:
            return
        vectors = torch.from_numpy(encoder.vectors(self._text)).to(encoder.device)
        targets = self._tensor(self._targets, vectors)
        optimiser = torch.optim.Adam(head.parameters(), lr=_HEAD_RATE)
        for _ in range(_HEAD_STEPS):
            optimiser.zero_grad()
            loss = functional.binary_cross_entropy_with_logits(head(vectors), targets)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()

    def loss(self, encoder: TunableEncoder, rows: Ints) -> Tensor:
        """Return the mean binary cross-entropy over all categories."""
        texts, place = np.unique(self._text[rows], return_inverse=True)
        vectors = encoder.encode(texts)
        logits = self.head(vectors[torch.from_numpy(place).to(vectors.device)])
        return functional.binary_cross_entropy_with_logits(logits, self._tensor(self._targets[rows], logits))

    @torch.no_grad()
    def validate(self, encoder: TunableEncoder) -> dict[str, float]:
        """Return micro and macro F1 at probability 0.5 and, where asked for, recall and NDCG of the next item."""
        vectors = torch.from_numpy(encoder.vectors(self._validation_text)).to(encoder.device)
        scores = f1_scores(self._validation_targets, (self.head(vectors) > 0).cpu().numpy())
        return scores if self._next_items is None else scores | self._next_items.scores(encoder)

    def digest(self) -> str:
        """Return a hash of texts and categories."""
        return data_digest([*self.texts, *self.names], self._text, self._targets, self._validation_text)

    @staticmethod
    def _tensor(flags: Flags, like: Tensor) -> Tensor:
        return torch.from_numpy(flags).to(like.device, like.dtype)


def f1_scores(targets: Flags, predicted: Flags) -> dict[str, float]:
    """Return the F1 of all decisions together (micro), and the mean F1 of the categories (macro).

    Parameters
    ----------
    targets, predicted : bool (items, categories)
        A category that no item has and none is predicted to have doesn't count for the mean.

    Examples
    --------
    >>> targets = np.array([[True, False], [True, True]])
    >>> f1_scores(targets, np.array([[True, False], [True, False]]))
    {'micro_f1': 0.8, 'macro_f1': 0.5}
    """
    right = (targets & predicted).sum(axis=0)
    either = targets.sum(axis=0) + predicted.sum(axis=0)
    counted = either > 0
    macro = float((2 * right[counted] / either[counted]).mean()) if counted.any() else 0.0
    return {"micro_f1": round(float(2 * right.sum() / max(either.sum(), 1)), 6), "macro_f1": round(macro, 6)}


def _split(times: Ints, settings: FinetuningConfig) -> tuple[Ints, Ints]:
    """Return the rows to train on and to validate on: the newest; rows of one time in random order."""
    shuffled = np.random.default_rng(settings.seed).permutation(len(times))
    order = shuffled[np.argsort(times[shuffled], kind="stable")]
    cut = int(len(order) * (1 - settings.validation_share))
    return np.sort(order[:cut]), np.sort(order[cut:])


def _parts(categories: str) -> list[str]:
    return [name for part in categories.split(",") if (name := part.strip())]


def _common(categories: list[str]) -> list[str]:
    counts = Counter(name for row in categories for name in set(_parts(row)))
    return sorted(name for name, count in counts.items() if count >= _LEAST_OF_CATEGORY)


def _targets(categories: list[str], names: list[str]) -> Flags:
    places = {name: place for place, name in enumerate(names)}
    found = np.zeros((len(categories), len(names)), np.bool_)
    for row, text in enumerate(categories):
        for name in _parts(text):
            if name in places:
                found[row, places[name]] = True
    return found
