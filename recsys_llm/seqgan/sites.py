"""Where continuations begin: a history from the training data, and what really followed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from recsys_llm.seqgan.discriminator import RecentGroups
from recsys_llm.seqgan.histories import Ints
from recsys_llm.seqgan.sequences import Sequences, Windows, ranges
from recsys_llm.seqgan.settings import SeqGANConfig


@dataclass(frozen=True, eq=False)
class Sites:
    """B places in histories."""

    window: Ints
    """(B,) the training window that each lies in."""
    history: Windows
    """Those windows, cut off at the place: their last target is the first group of the continuation."""
    first: Ints
    """(B,) flat index of the first group of the continuation."""
    lengths: Ints
    """(B,) groups that really follow, 1 to the horizon; the generated continuation is as long."""


def draw_sites(sequences: Sequences, windows: Windows, config: SeqGANConfig, rng: np.random.Generator) -> Sites:
    """Draw ``continuations`` places uniformly from all groups."""
    first = rng.integers(0, len(sequences.timestamps), config.continuations)
    window = np.searchsorted(windows.first, first, side="right") - 1
    user = np.searchsorted(sequences.user_offsets, first, side="right") - 1
    history = Windows(windows.first[window], first - windows.first[window] + 1, windows.opens[window])
    remaining = sequences.user_offsets[1:][user] - first
    return Sites(window, history, first, np.minimum(remaining, config.horizon))


def real_continuations(sequences: Sequences, sites: Sites, horizon: int, rng: np.random.Generator) -> Ints:
    """Return one random item of each group that really followed, int64 (B, horizon); 0 past the length."""
    row = np.repeat(np.arange(len(sites.first)), sites.lengths)
    group = ranges(sites.first, sites.lengths)
    sizes = sequences.group_offsets[group + 1] - sequences.group_offsets[group]
    drawn = sequences.items[sequences.group_offsets[group] + rng.integers(0, sizes)]
    items = np.zeros((len(sites.first), horizon), np.int64)
    items[row, ranges(np.zeros(len(sites.first), np.int64), sites.lengths)] = drawn
    return items


def history_groups(sequences: Sequences, sites: Sites, config: SeqGANConfig, device: torch.device) -> RecentGroups:
    """Return the last ``history_groups`` groups before each place."""
    _, read = sequences.read_before(sites.first)
    count = np.minimum(read, config.history_groups)
    group = ranges(sites.first - count, count)
    sizes = sequences.group_offsets[group + 1] - sequences.group_offsets[group]
    items = sequences.items[ranges(sequences.group_offsets[group], sizes)]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    width = max(1, int(count.max()))
    row = np.repeat(np.arange(len(count)), count)
    place = row * width + ranges(width - count, count)
    flat, group_offsets, places = (torch.from_numpy(array).to(device) for array in (items, offsets, place))
    return RecentGroups(flat, group_offsets, places, (len(count), width))
