"""Items drawn from a softmax over the whole vocabulary, without storing its logits.

One block of logits exists at a time, small enough for the processor's cache. A block is reduced to the mass of each
chunk of :data:`CHUNK` items, and an item is found in two steps: the chunk in which the distribution function passes the
uniform number, then the item within it. This is the inverse distribution function, so that a uniform number stands for
one item. Logits are scaled to powers of two, since ``exp2`` costs a third of ``exp``.

There are two ways with one result: plain torch, and kernels compiled by Numba (the extra ``fast``) where it is
installed. Given the same uniform number they draw the same item, but for ties within rounding (1e-6 of the mass).
"""

from __future__ import annotations

import math
from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

from recsys_llm.seqgan.generator import ItemTable
from recsys_llm.seqgan.losses import BLOCK_FLOATS

CHUNK = 64
"""Items whose mass is summed before an item is looked for."""
CACHED_FLOATS = 1 << 20
"""Largest block of logits on a CPU, in floats (1 MiB): a core's own cache."""
TILE = 128 * CHUNK
"""Items of a block of logits, at most, in the compiled way."""
FEWEST_ROWS = 64
"""Of a block, however many items there are: a product of fewer rows is slow."""
WORTH_COMPILING = 1 << 24
"""Logits of one call, from which on the compiled kernels are used: they take some four seconds to compile."""
LOWEST = -1e4
"""A logit (powers of two, below the row's top) of no mass in any precision, and finite."""
LOG2E = math.log2(math.e)


class Drawn(NamedTuple):
    """Items drawn from n distributions."""

    items: Tensor
    """int64, the shape of the uniform numbers."""
    entropy: Tensor | None
    """float (n,) of each distribution, nats; None where it wasn't asked for."""


def draw(
    queries: Tensor, table: ItemTable, uniforms: Tensor, *, entropy: bool = False, fused: bool | None = None
) -> Drawn:
    """Draw items from ``softmax(queries @ table.vectors.T + table.bias)``.

    On CUDA the product is of bfloat16 factors, summed in float32; everything after it is float32.

    Parameters
    ----------
    queries : float (n, E)
    table
        (V, E) and (V,). A bias of -inf leaves an item out; not all may be.
    uniforms : float64 (n,) or (n, k)
        In [0, 1); k items are drawn from each row's distribution at the cost of little more than one.
    entropy
        Also return the entropies. Callers without use for them save a quarter of the time.
    fused
        Use the compiled kernels: float32 on a CPU only. None: where they are installed and the work is worth it.

    Raises
    ------
    ImportError
        ``fused`` and Numba isn't installed.
    ValueError
        ``fused`` for what isn't float32 on a CPU, or there are no items.
    """
    if not len(table.bias):
        raise ValueError("expected a vocabulary to draw from, found one of 0 items")
    fits = queries.dtype == torch.float32 and queries.device.type == "cpu"
    if fused and not fits:
        raise ValueError(f"fused drawing: expected float32 on a CPU, found {queries.dtype} on {queries.device}")
    if fused is None:
        fused = fits and len(queries) * len(table.bias) >= WORTH_COMPILING and has_compiler()
    with torch.no_grad():
        columns = uniforms if uniforms.dim() == 2 else uniforms.unsqueeze(1)
        items = torch.empty(columns.shape, dtype=torch.int64, device=queries.device)
        entropies = queries.new_empty(len(queries)) if entropy else None
        way = _draw_fused if fused else _draw_plain
        if len(queries):
            way(queries.detach(), ItemTable(*(part.detach() for part in table)), columns, items, entropies)
    return Drawn(items.view(uniforms.shape), entropies)


@cache
def has_compiler() -> bool:
    """Return whether Numba, the extra ``fast``, is installed; it isn't imported."""
    return find_spec("numba") is not None


def block_size(items: int, device: torch.device) -> int:
    """Return how many rows of logits over ``items`` items make a block on a device."""
    if device.type != "cpu":
        return max(1, BLOCK_FLOATS // items)
    return max(FEWEST_ROWS, CACHED_FLOATS // items)


def _draw_plain(queries: Tensor, table: ItemTable, uniforms: Tensor, out: Tensor, entropies: Tensor | None) -> None:
    size = len(table.bias)
    rows = min(len(queries), block_size(size, queries.device))
    chunks = -(-size // CHUNK)
    buffer = queries.new_zeros(rows, chunks * CHUNK)  # zero past the last item: no mass
    project = _Projection(table)
    for start in range(0, len(queries), rows):
        block = slice(start, min(start + rows, len(queries)))
        count = block.stop - start
        mass = buffer[:count, :size]
        project(queries[block], mass)
        mass.sub_(mass.amax(1, keepdim=True))
        scores = mass.clamp_min(LOWEST) if entropies is not None else None
        torch.exp2(mass, out=mass)
        pieces = buffer[:count].view(count, chunks, CHUNK)
        ends = pieces.sum(2).to(torch.float64).cumsum(1)  # (count, chunks)
        total = ends[:, -1:]
        sought = uniforms[block].to(torch.float64) * total  # (count, k)
        chunk = torch.searchsorted(ends, sought, right=True).clamp_max_(chunks - 1)
        before = torch.where(chunk > 0, ends.gather(1, (chunk - 1).clamp_min(0)), 0.0)
        lines = torch.arange(count, device=chunk.device).unsqueeze(1) * chunks + chunk
        found = pieces.view(-1, CHUNK)[lines].to(torch.float64).cumsum(2)  # (count, k, CHUNK)
        # Rounding may leave a little of the mass past the chunk's last item that has any.
        left = torch.minimum(sought - before, torch.nextafter(found[:, :, -1], torch.zeros_like(sought)))
        out[block] = chunk * CHUNK + torch.searchsorted(found, left.unsqueeze(2), right=True).squeeze(2)
        if entropies is not None and scores is not None:
            spread = scores.mul_(mass).sum(1, keepdim=True).to(torch.float64)  # sum of mass * log2(mass)
            entropies[block] = ((total.log2() - spread / total) / LOG2E).squeeze(1).to(entropies.dtype)


class _Projection:
    """``queries @ vectors.T + bias``, in powers of two, into a buffer."""

    def __init__(self, table: ItemTable) -> None:
        self.half = table.bias.is_cuda
        self.bias = table.bias * LOG2E
        self.vectors = (table.vectors.bfloat16() if self.half else table.vectors).T

    def __call__(self, queries: Tensor, out: Tensor) -> None:
        scaled = queries * LOG2E
        if not self.half:
            torch.addmm(self.bias, scaled, self.vectors, out=out)
        else:
            torch.add(torch.mm(scaled.bfloat16(), self.vectors, out_dtype=torch.float32), self.bias, out=out)


def _draw_fused(queries: Tensor, table: ItemTable, uniforms: Tensor, out: Tensor, entropies: Tensor | None) -> None:
    from recsys_llm.seqgan import fused

    size = len(table.bias)
    # A block is a tile of items too, so that it stays in the cache however many items there are.
    tile = min(size, TILE)
    tiles, chunks, per_tile = -(-size // tile), -(-size // CHUNK), -(-tile // CHUNK)
    rows = min(len(queries), max(FEWEST_ROWS, CACHED_FLOATS // tile))
    bias, vectors = table.bias * LOG2E, table.vectors.contiguous()
    buffer, tops = torch.empty(rows * tile), torch.empty(rows, tiles)
    sums, spreads = torch.empty(rows, chunks), torch.empty(rows, chunks)
    for start in range(0, len(queries), rows):
        block = slice(start, min(start + rows, len(queries)))
        scaled = queries[block] * LOG2E
        count = len(scaled)
        for number in range(tiles):
            part = slice(number * tile, min((number + 1) * tile, size))
            scores = buffer[: count * (part.stop - part.start)].view(count, -1)
            torch.addmm(bias[part], scaled, vectors[part].T, out=scores)
            highest = scores.amax(1)
            tops[:count, number] = highest
            written = [values[:count, part.start // CHUNK :].numpy() for values in (sums, spreads)]
            fused.reduce_chunks(scores.numpy(), highest.numpy(), *written, entropies is not None)
        fused.find_items(
            scaled.numpy(),
            vectors.numpy(),
            bias.numpy(),
            uniforms[block].to(torch.float64).numpy(),
            tops.numpy(),
            sums.numpy(),
            per_tile,
            out[block].numpy(),
        )
        if entropies is not None:
            fused.find_entropies(tops.numpy(), sums.numpy(), spreads.numpy(), per_tile, entropies[block].numpy())
