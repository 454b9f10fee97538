"""One forward pass over whole histories: the generator's query after any number of groups of any user.

Histories are read in segments with the state carried on, so that memory doesn't grow with their length. What is read
later goes on from the state.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from recsys_llm.seqgan.generator import Generator
from recsys_llm.seqgan.histories import Ints
from recsys_llm.seqgan.sequences import Sequences, ranges

LANES = 64
"""Users that are read side by side."""
SEGMENT = 128
"""Steps between two carries of the state."""


@torch.no_grad()
def queries_after(generator: Generator, vectors: Tensor, sequences: Sequences, users: Ints, read: Ints) -> Tensor:
    """Return the generator's query for user ``users[i]`` once the first ``read[i]`` groups are read.

    Parameters
    ----------
    vectors : (V or more, E)
        Item vectors that ``sequences.items`` points into.
    users, read : int64 (n,)
        ``read`` 0: nothing but the start vector.

    Returns
    -------
    Tensor (n, E)
        Row i depends on the groups that it has read only.
    """
    out = vectors.new_empty(len(users), vectors.shape[1])
    if not len(users):
        return out
    order = np.lexsort((read, users))
    distinct, first = np.unique(users[order], return_index=True)
    last = np.append(first[1:], len(order)) - 1
    longest = read[order][last]
    by_length = np.argsort(longest, kind="stable")
    for lane in range(0, len(by_length), LANES):
        chosen = by_length[lane : lane + LANES]
        rows = [order[first[user] : last[user] + 1] for user in chosen]
        wanted = [(read[row], row) for row in rows]
        state: Tensor | None = None
        for start, inputs in _segments(generator, vectors, sequences, distinct[chosen], wanted):
            queries, state = generator(inputs, state)
            _hand_out(queries, start, wanted, out)
    return out


def _segments(
    generator: Generator, vectors: Tensor, sequences: Sequences, users: Ints, wanted: list[tuple[Ints, Ints]]
) -> Iterator[tuple[int, Tensor]]:
    """Yield the first step and the inputs of each segment of the histories of ``users``, up to the last wanted step."""
    steps = np.array([read[-1] + 1 for read, _ in wanted])  # the start vector is step 0
    for start in range(0, int(steps.max()), SEGMENT):
        width = int(min(SEGMENT, steps.max() - start))
        yield start, segment_inputs(generator, vectors, sequences, users, steps, start, width)


def _hand_out(values: Tensor, start: int, wanted: list[tuple[Ints, Ints]], out: Tensor) -> None:
    """Write the values (lanes, width, d) of a segment to each lane's wanted (steps, rows of out)."""
    for lane, (read, rows) in enumerate(wanted):
        low, high = np.searchsorted(read, [start, start + values.shape[1]])
        if high > low:
            out[torch.from_numpy(rows[low:high])] = values[lane, torch.from_numpy(read[low:high] - start)]


@torch.no_grad()
def states_at(generator: Generator, vectors: Tensor, sequences: Sequences, users: Ints, read: Ints) -> Tensor:
    """Return the state of user ``users[i]`` once the first ``read[i]`` groups are read, (n, state_dim).

    Each user is read once, as by :func:`queries_after`, whose parameters these are.
    """
    out = vectors.new_empty(len(users), generator.state_dim)
    for user in np.unique(users):
        rows = np.flatnonzero(users == user)
        rows = rows[np.argsort(read[rows], kind="stable")]
        wanted = [(read[rows], rows)]
        state = vectors.new_zeros(1, generator.state_dim)
        for start, inputs in _segments(generator, vectors, sequences, np.array([user]), wanted):
            states = generator.states(inputs, state)  # (1, width, state_dim)
            _hand_out(states, start, wanted, out)
            state = states[:, -1]
    return out


@torch.no_grad()
def opening_state(generator: Generator) -> Tensor:
    """Return the state before the first group of any history, (state_dim,)."""
    state: Tensor = generator(generator.start.view(1, 1, -1))[1]
    return state[0]


@torch.no_grad()
def read_on(generator: Generator, vectors: Tensor, sequences: Sequences, states: Tensor) -> Tensor:
    """Read all groups of every user, going on from their states, and return the states after it, (n, state_dim).

    Parameters
    ----------
    vectors : (V or more, E)
        Item vectors that ``sequences.items`` points into.
    sequences
        n users, each with a group or more.
    states : (n, state_dim)
        Before those groups: :func:`opening_state`, or what an earlier call returned.
    """
    steps = np.diff(sequences.user_offsets) + 1  # the start vector, step 0, has been read
    states = states.clone()
    longest_first = np.argsort(-steps, kind="stable")
    for lane in range(0, len(steps), LANES):
        users = longest_first[lane : lane + LANES]
        for start in range(1, int(steps[users[0]]), SEGMENT):
            active = users[steps[users] > start]
            lengths = np.minimum(steps[active] - start, SEGMENT)
            inputs = segment_inputs(generator, vectors, sequences, active, steps[active], start, int(lengths[0]))
            rows = torch.from_numpy(active)
            _, states[rows] = generator(inputs, states[rows], lengths=torch.from_numpy(lengths))
    return states


def segment_inputs(
    generator: Generator, vectors: Tensor, sequences: Sequences, users: Ints, steps: Ints, start: int, width: int
) -> Tensor:
    """Return the inputs (len(users), width, E) of steps ``start`` and on; zero past each user's ``steps``."""
    count = np.clip(steps - start, 0, width)
    lane = np.repeat(np.arange(len(users)), count)
    step = ranges(np.full(len(users), start), count)
    opens = step == 0
    group = sequences.user_offsets[:-1][users][lane] + step - 1
    sizes = np.where(opens, 0, sequences.group_sizes()[group] if len(sequences.timestamps) else 0)
    items = sequences.items[ranges(sequences.group_offsets[group], sizes)]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    device = vectors.device
    read = generator.read_groups(vectors, torch.from_numpy(items).to(device), torch.from_numpy(offsets).to(device))
    read[torch.from_numpy(opens).to(device)] = generator.start
    inputs = vectors.new_zeros(len(users), width, vectors.shape[1])
    inputs[torch.from_numpy(lane), torch.from_numpy(step - start)] = read
    return inputs
