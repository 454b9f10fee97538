"""Predicted next items: one-step logits of a trained generator after any group of any history."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from recsys_llm.errors import CheckpointError, FingerprintError
from recsys_llm.seqgan.checkpoint import Checkpoint
from recsys_llm.seqgan.devices import resolve_device
from recsys_llm.seqgan.generator import Generator, ItemTable
from recsys_llm.seqgan.histories import Histories, Ints
from recsys_llm.seqgan.ranking import rank
from recsys_llm.seqgan.reading import queries_after
from recsys_llm.seqgan.sequences import Sequences
from recsys_llm.seqgan.vocabulary import UNKNOWN, ItemVectors

Which = Literal["chosen", "mle", "adversarial"]
ROWS = 4096
"""Predictions that are made together."""


@dataclass(frozen=True, eq=False)
class NextItems:
    """The most likely next items of n positions, best first."""

    item_ids: npt.NDArray[np.object_]
    """(n, k) str; None past the last candidate. k is ``top_n`` or the size of the vocabulary, if that is smaller."""
    log_probs: npt.NDArray[np.float32]
    """(n, k) nats, over the whole vocabulary; NaN past the last candidate."""
    lengths: Ints
    """(n,) candidates in each row: less than k where the seen filter left fewer."""
    entropy: npt.NDArray[np.float32]
    """(n,) of the next-item distribution over the whole vocabulary, nats."""
    centroid: npt.NDArray[np.float32] | None
    """(n, dim) mean text vector of the row's items, scaled to length 1 (zero if none has text); None without text."""
    queries: npt.NDArray[np.float32]
    """(n, E + 2): the dot product with an item's row of :func:`scoring_vectors` is its log-probability."""

    def item_lists(self) -> pa.Array:
        """Return the rows as list<string>, without what is past the last candidate."""
        return self._lists(pa.array(self.item_ids[self._present()], pa.string()))

    def log_prob_lists(self) -> pa.Array:
        """Return the rows as list<float>, without what is past the last candidate."""
        return self._lists(pa.array(self.log_probs[self._present()], pa.float32()))

    def take(self, rows: Ints) -> NextItems:
        """Return some rows."""
        centroid = None if self.centroid is None else self.centroid[rows]
        lists = self.item_ids[rows], self.log_probs[rows], self.lengths[rows]
        return NextItems(*lists, self.entropy[rows], centroid, self.queries[rows])

    def _present(self) -> npt.NDArray[np.bool_]:
        return np.asarray(np.arange(self.item_ids.shape[1]) < self.lengths[:, None])

    def _lists(self, values: pa.Array) -> pa.Array:
        offsets = np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(offsets), values)


def next_items(
    checkpoint: Checkpoint,
    histories: Histories,
    positions: Ints,
    top_n: int,
    *,
    filter_seen: bool | None = None,
    generator: Which = "chosen",
    item_vectors: ItemVectors | None = None,
    device: str = "auto",
) -> NextItems:
    """Predict the next items after groups of histories.

    Each history is read once, however many of its positions are asked for. A row depends on the groups up to and
    including its position, and on nothing else.

    Parameters
    ----------
    histories
        Any users; items that the model doesn't know are read by their text vector, or passed over.
    positions : int64 (n,)
        Flat group indexes: predict what follows that group.
    top_n
        Items per row.
    filter_seen
        Leave out what the user has had up to the position. None: as the training data suggests.
    generator
        "chosen" is the better of the two on the validation slice.
    item_vectors
        Text vectors of items outside the vocabulary, to read them in histories; they are not predicted.

    Raises
    ------
    FingerprintError
        ``item_vectors`` are of another encoder than the checkpoint's.
    CheckpointError
        The checkpoint has no such generator, or no text vectors to go with ``item_vectors``.
    IndexError
        A position is no group of ``histories``.
    """
    positions = np.asarray(positions, np.int64)
    if len(positions) and not 0 <= positions.min() <= positions.max() < histories.groups:
        found = f"{positions.min()} to {positions.max()}"
        raise IndexError(f"positions: expected 0 to {histories.groups - 1}, found {found}")
    model = checkpoint.generator(generator).to(resolve_device(device)).eval()
    users = np.searchsorted(histories.user_offsets, positions, side="right") - 1
    read = positions - histories.user_offsets[users] + 1
    order = np.lexsort((read, users))
    with torch.no_grad():
        table = checkpoint.table(model)
        sequences, vectors = reading_side(checkpoint, model, table, histories, item_vectors)
        queries = queries_after(model, vectors, sequences, users[order], read[order])
    rows = users[order], read[order]
    predicted = predict(checkpoint, model, queries, sequences, *rows, top_n, filter_seen=filter_seen)
    return predicted.take(np.argsort(order))


@torch.no_grad()
def predict(
    checkpoint: Checkpoint,
    model: Generator,
    queries: Tensor,
    sequences: Sequences,
    users: Ints,
    read: Ints,
    top_n: int,
    *,
    filter_seen: bool | None = None,
) -> NextItems:
    """Return the next items after the first ``read[i]`` groups of ``users[i]``, in ascending order of users.

    Parameters
    ----------
    model
        A generator of the checkpoint.
    queries : (n, E)
        The model's, after those groups.
    sequences
        What the users have had.
    top_n, filter_seen
        As for :func:`next_items`.
    """
    table = checkpoint.table(model)
    keep = checkpoint.filter_seen if filter_seen is None else filter_seen
    ranked = rank(queries, table, sequences, users, read, k=top_n, filter_seen=keep, rebuy=model.rebuy)
    items = ranked.items.cpu().numpy()
    return NextItems(
        item_ids=checkpoint.vocabulary.names[items],
        log_probs=ranked.log_probs.cpu().numpy(),
        lengths=(items != UNKNOWN).sum(1),
        entropy=ranked.entropy.cpu().numpy(),
        centroid=None if checkpoint.padded_text is None else centroids(checkpoint.padded_text, items),
        queries=_with_columns(queries, torch.ones_like(ranked.log_totals), -ranked.log_totals),
    )


@torch.no_grad()
def scoring_vectors(checkpoint: Checkpoint, *, generator: Which = "chosen") -> npt.NDArray[np.float32]:
    """Return a vector of each item of the vocabulary that scores it for any user, (V, E + 2).

    Its dot product with a user's row of :attr:`NextItems.queries` is the log-probability (nats) that the item comes
    next: the generator's item vector is followed by its bias, which meets a one, and by a one, which meets the negative
    log of the sum over all items.

    Raises
    ------
    CheckpointError
        The checkpoint has no such generator.
    """
    table = checkpoint.table(checkpoint.generator(generator))
    return _with_columns(table.vectors, table.bias, torch.ones_like(table.bias))


def _with_columns(matrix: Tensor, *columns: Tensor) -> npt.NDArray[np.float32]:
    found: npt.NDArray[np.float32] = torch.cat([matrix, *(column.unsqueeze(1) for column in columns)], 1).cpu().numpy()
    return found


def reading_side(
    checkpoint: Checkpoint, model: Generator, table: ItemTable, histories: Histories, item_vectors: ItemVectors | None
) -> tuple[Sequences, Tensor]:
    """Return histories as numbers and the vectors those point to: the vocabulary's, then of unknown items with text."""
    sequences = Sequences.encode(histories, checkpoint.vocabulary)
    if item_vectors is None:
        return sequences, table.vectors
    if checkpoint.text is None:
        raise CheckpointError("item_vectors were given, but the model was trained on ids alone; leave them out")
    if item_vectors.fingerprint != checkpoint.encoder_fingerprint:
        found = item_vectors.fingerprint
        raise FingerprintError(
            f"item_vectors: expected encoder {checkpoint.encoder_fingerprint}, found {found}; "
            "encode with the checkpoint's encoder, or train a new model version"
        )
    known = checkpoint.vocabulary.encode(pa.array(item_vectors.item_ids, pa.string())) != UNKNOWN
    more = [item for item, is_known in zip(item_vectors.item_ids, known, strict=True) if not is_known]
    place = pa.compute.fill_null(
        pa.compute.index_in(histories.item_ids, value_set=pa.array(more, pa.string())), UNKNOWN
    )
    extra = place.to_numpy(zero_copy_only=False).astype(np.int64)
    items = np.where((sequences.items == UNKNOWN) & (extra >= 0), extra + len(checkpoint.vocabulary), sequences.items)
    added = model.mapped(torch.from_numpy(item_vectors.vectors[~known]).to(table.vectors.device))
    sequences = Sequences(items, sequences.group_offsets, sequences.user_offsets, sequences.timestamps)
    return sequences, torch.cat([table.vectors, added])


def centroids(padded_text: npt.NDArray[np.float32], items: Ints) -> npt.NDArray[np.float32]:
    """Return the mean text vector of each row's items (-1: none), scaled to length 1; zero if none has text."""
    out = np.empty((len(items), padded_text.shape[1]), np.float32)
    for start in range(0, len(items), ROWS):
        rows = slice(start, start + ROWS)
        total = padded_text[items[rows]].sum(1)
        norm = np.linalg.norm(total, axis=1, keepdims=True)
        out[rows] = np.divide(total, norm, out=np.zeros_like(total), where=norm > 0)
    return out
