"""What a user's history comes to, and how it goes on with each new group without reading the history again.

What a list of next items needs of the past is the generator's state, and a memory of items: each distinct item that the
user has had where those are left out, the last groups where a re-buy term moves them up, and nothing otherwise. Both go
on from a state to the next as reading the whole history again would.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from recsys_llm.seqgan.checkpoint import Checkpoint
from recsys_llm.seqgan.devices import resolve_device
from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.histories import Histories, Ints
from recsys_llm.seqgan.prediction import NextItems, predict
from recsys_llm.seqgan.ranking import Rebuy
from recsys_llm.seqgan.reading import opening_state, read_on
from recsys_llm.seqgan.sequences import Sequences, ranges


@dataclass(frozen=True, eq=False)
class UserStates:
    """Where n users are."""

    vectors: npt.NDArray[np.float32]
    """(n, state_dim) of the generator."""
    memory: Sequences
    """n users: items (vocabulary indexes) that they have had."""
    newest: Ints
    """(n,) time of the newest group read, microseconds since the epoch."""

    def take(self, rows: Ints) -> UserStates:
        """Return some of the users."""
        memory, counts = self.memory, np.diff(self.memory.user_offsets)[rows]
        groups = ranges(memory.user_offsets[rows], counts)
        sizes = memory.group_sizes()[groups]
        kept = Sequences(
            memory.items[ranges(memory.group_offsets[groups], sizes)],
            np.concatenate([[0], np.cumsum(sizes)]),
            np.concatenate([[0], np.cumsum(counts)]),
            memory.timestamps[groups],
        )
        return UserStates(self.vectors[rows], kept, self.newest[rows])


def opening_states(checkpoint: Checkpoint, users: int) -> UserStates:
    """Return the states of users who have had nothing."""
    state = opening_state(checkpoint.generator("chosen")).cpu().numpy()
    never = np.full(users, np.iinfo(np.int64).min)
    return UserStates(np.tile(state, (users, 1)), _nothing(users), never)


@torch.no_grad()
def advance(
    checkpoint: Checkpoint,
    states: UserStates,
    histories: Histories,
    *,
    filter_seen: bool | None = None,
    device: str = "auto",
) -> UserStates:
    """Read new groups of every user.

    Parameters
    ----------
    states
        Of n users; from the same checkpoint and ``filter_seen``.
    histories
        New groups of the same users, in their order: one or more of each, later than what they have read. Items that
        the model doesn't know are passed over.
    filter_seen
        As for :func:`recsys_llm.seqgan.next_items`.

    Returns
    -------
    UserStates, n users

    Raises
    ------
    IndexError
        The users of ``states`` and ``histories`` differ in number, or one has no new group.
    """
    counts = np.diff(histories.user_offsets)
    if len(counts) != len(states.newest) or not counts.all():
        found = f"{len(counts)} users, {int((counts == 0).sum())} of them without"
        raise IndexError(f"histories: expected groups of {len(states.newest)} users, found {found}")
    model = checkpoint.generator("chosen").to(resolve_device(device)).eval()
    vectors = checkpoint.table(model).vectors
    sequences = Sequences.encode(histories, checkpoint.vocabulary)
    after = read_on(model, vectors, sequences, torch.from_numpy(states.vectors).to(vectors.device))
    memory = _remembered(_joined(states.memory, sequences), _span(checkpoint, model, filter_seen))
    return UserStates(after.cpu().numpy(), memory, histories.timestamps[histories.user_offsets[1:] - 1])


@torch.no_grad()
def next_items_of(
    checkpoint: Checkpoint, states: UserStates, top_n: int, *, filter_seen: bool | None = None, device: str = "auto"
) -> NextItems:
    """Predict the next items of n users from their states, as :func:`recsys_llm.seqgan.next_items` does from histories.

    Parameters
    ----------
    top_n
        Items per row.
    filter_seen
        As the states were made with.
    """
    model = checkpoint.generator("chosen").to(resolve_device(device)).eval()
    queries = model.queries_of(torch.from_numpy(states.vectors).to(model.start.device))
    users, read = np.arange(len(states.newest)), np.diff(states.memory.user_offsets)
    return predict(checkpoint, model, queries, states.memory, users, read, top_n, filter_seen=filter_seen)


def states_after(
    checkpoint: Checkpoint,
    histories: Histories,
    positions: Ints,
    *,
    filter_seen: bool | None = None,
    device: str = "auto",
) -> UserStates:
    """Return the states after groups of histories, by reading each from its start.

    Parameters
    ----------
    positions : int64 (n,)
        Flat group indexes, at most one of each user.

    Raises
    ------
    IndexError
        Two positions are of one user.
    """
    users = np.searchsorted(histories.user_offsets, positions, side="right") - 1
    if len(np.unique(users)) < len(users):
        raise IndexError("positions: expected at most one of each user, found several")
    first = histories.user_offsets[users]
    read = positions - first + 1
    groups = ranges(first, read)
    sizes = np.diff(histories.group_offsets)[groups]
    part = replace(
        histories,
        user_ids=histories.user_ids.take(users),
        item_ids=histories.item_ids.take(ranges(histories.group_offsets[groups], sizes)),
        group_offsets=np.concatenate([[0], np.cumsum(sizes)]),
        user_offsets=np.concatenate([[0], np.cumsum(read)]),
        timestamps=histories.timestamps[groups],
    )
    opened = opening_states(checkpoint, len(users))
    return advance(checkpoint, opened, part, filter_seen=filter_seen, device=device)


def _span(checkpoint: Checkpoint, model: Generator, filter_seen: bool | None) -> int | None:
    """Return how many of the last groups are remembered; None: all items, without their order."""
    if checkpoint.filter_seen if filter_seen is None else filter_seen:
        return None
    setting = Rebuy(*model.rebuy.tolist())
    return setting.horizon if setting.weight else 0


def _nothing(users: int) -> Sequences:
    none = np.zeros(0, np.int64)
    return Sequences(none, np.zeros(1, np.int64), np.zeros(users + 1, np.int64), none)


def _joined(before: Sequences, after: Sequences) -> Sequences:
    """Return the groups of two sequences of the same users, one after the other."""
    counts, more = np.diff(before.user_offsets), np.diff(after.user_offsets)
    shift = len(before.timestamps)
    firsts = np.stack([before.user_offsets[:-1], after.user_offsets[:-1] + shift], 1).ravel()
    groups = ranges(firsts, np.stack([counts, more], 1).ravel())
    starts = np.concatenate([before.group_offsets[:-1], after.group_offsets[:-1] + len(before.items)])[groups]
    sizes = np.concatenate([before.group_sizes(), after.group_sizes()])[groups]
    return Sequences(
        np.concatenate([before.items, after.items])[ranges(starts, sizes)],
        np.concatenate([[0], np.cumsum(sizes)]),
        np.concatenate([[0], np.cumsum(counts + more)]),
        np.concatenate([before.timestamps, after.timestamps])[groups],
    )


def _remembered(sequences: Sequences, span: int | None) -> Sequences:
    """Return the known items of the last ``span`` groups of each user; None: all of them, each once, in one group."""
    users = len(sequences.user_offsets) - 1
    counts = np.diff(sequences.user_offsets)
    if span is None:
        owner = np.repeat(np.repeat(np.arange(users), counts), sequences.group_sizes())
        known = sequences.items >= 0
        pairs = np.unique(np.stack([owner[known], sequences.items[known]]), axis=1)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(pairs[0], minlength=users))])
        return Sequences(pairs[1], offsets, np.arange(users + 1), np.zeros(users, np.int64))
    kept = np.minimum(counts, span)
    groups = ranges(sequences.user_offsets[1:] - kept, kept)
    items = sequences.items[ranges(sequences.group_offsets[groups], sequences.group_sizes()[groups])]
    owner = np.repeat(np.arange(len(groups)), sequences.group_sizes()[groups])
    sizes = np.bincount(owner[items >= 0], minlength=len(groups))
    return Sequences(
        items[items >= 0],
        np.concatenate([[0], np.cumsum(sizes)]),
        np.concatenate([[0], np.cumsum(kept)]),
        sequences.timestamps[groups],
    )
