"""Kernels compiled by Numba (the extra ``fast``), imported by whoever calls one and by nobody before.

Each compiles on its first call, in about a second, and is kept for the process. Loops are written so that LLVM turns
them into vector instructions: no calls of the C library (its ``exp`` is scalar), no index that might be negative.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from recsys_llm.seqgan.sampling import CHUNK

Floats = NDArray[np.float32]

_FAST = {"contract", "reassoc", "nsz", "arcp", "nnan"}
"""Not "ninf": a bias of -inf leaves an item out."""
_F = np.float32
_LOWEST = _F(-126.0)
_LN2 = _F(np.log(2.0))
# 2^r for r in [-0.5, 0.5]: the Taylor series, of which the next term is 1e-8.
_C1, _C2, _C3, _C4, _C5, _C6, _C7 = (
    _F(np.log(2.0) ** power / float(np.prod(np.arange(1, power + 1)))) for power in range(1, 8)
)


@intrinsic  # type: ignore[untyped-decorator]
def _float_of_bits(typing_context: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@njit(fastmath=_FAST, inline="always")  # type: ignore[untyped-decorator]
def _exp2(x: Any) -> Any:
    """2^x within 2e-7 of itself for x <= 0; 0 below 2^-126."""
    held = max(x, _LOWEST)
    whole = np.floor(held + _F(0.5))
    r = held - whole
    value = ((((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2) * r + _C1) * r + _F(1.0)
    scale = _float_of_bits((np.int32(whole) + np.int32(127)) << np.int32(23))
    return value * scale if x >= _LOWEST else _F(0.0)


@njit(fastmath=_FAST, nogil=True)  # type: ignore[untyped-decorator]
def _chunk_mass(scores: Any, top: Any) -> Any:
    total = _F(0.0)
    for item in range(scores.shape[0]):
        total += _exp2(scores[item] - top)
    return total


@njit(fastmath=_FAST, nogil=True)  # type: ignore[untyped-decorator]
def _chunk_spread(scores: Any, top: Any) -> Any:
    """Return the sum of ``mass * log2(mass)``, mass relative to the chunk's top."""
    total = _F(0.0)
    for item in range(scores.shape[0]):
        score = max(scores[item] - top, _LOWEST)
        total += _exp2(score) * score
    return total


@njit(fastmath=_FAST, nogil=True)  # type: ignore[untyped-decorator]
def reduce_chunks(scores: Floats, tops: Floats, sums: Floats, spreads: Floats, with_spreads: bool) -> None:
    """Reduce each chunk of each row of a tile of logits (powers of two) to its mass and its spread.

    Parameters
    ----------
    scores : (n, m)
    tops : (n,)
        The largest of each row. Mass and spread are relative to it.
    sums, spreads : (n, chunks)
        Written.
    """
    for row in range(scores.shape[0]):
        top = tops[row]
        for chunk in range(-(-scores.shape[1] // CHUNK)):
            piece = scores[row, chunk * CHUNK : (chunk + 1) * CHUNK]
            if top == -np.inf:
                sums[row, chunk], spreads[row, chunk] = _F(0.0), _F(0.0)
                continue
            sums[row, chunk] = _chunk_mass(piece, top)
            if with_spreads:
                spreads[row, chunk] = _chunk_spread(piece, top)


@njit(fastmath=_FAST, nogil=True)  # type: ignore[untyped-decorator]
def _dot(a: Any, b: Any) -> Any:
    total = _F(0.0)
    for index in range(a.shape[0]):
        total += a[index] * b[index]
    return total


@njit(nogil=True)  # type: ignore[untyped-decorator]
def _row_masses(tops: Any, sums: Any, per_tile: Any, masses: Any) -> Any:
    """Write each chunk's mass relative to the row's top, float64; return that top."""
    top = _F(-np.inf)
    for tile in range(tops.shape[0]):
        top = max(top, tops[tile])
    for tile in range(tops.shape[0]):
        scale = np.float64(_exp2(tops[tile] - top))
        for chunk in range(tile * per_tile, min((tile + 1) * per_tile, sums.shape[0])):
            masses[chunk] = np.float64(sums[chunk]) * scale
    return top


@njit(nogil=True)  # type: ignore[untyped-decorator]
def find_items(
    queries: Floats,
    vectors: Floats,
    bias: Floats,
    uniforms: NDArray[np.float64],
    tops: Floats,
    sums: Floats,
    per_tile: int,
    out: NDArray[np.int64],
) -> None:
    """Write the item at which each row's distribution function passes each of its uniform numbers.

    The logits of the one chunk that it passes in are computed again.

    Parameters
    ----------
    queries : (n, E)
        In powers of two, as is ``bias``.
    vectors, bias : (V, E), (V,)
    uniforms, out : (n, k)
    tops, sums : (n or more, tiles), (n or more, chunks)
        From :func:`reduce_chunks`.
    per_tile
        Chunks of each tile but the last, which may have fewer.
    """
    chunks = sums.shape[1]
    masses = np.empty(chunks, np.float64)
    for row in range(queries.shape[0]):
        top = _row_masses(tops[row], sums[row], per_tile, masses)
        total = masses.sum()
        for column in range(uniforms.shape[1]):
            left = uniforms[row, column] * total
            chunk = 0
            last = 0
            while chunk < chunks and left >= masses[chunk]:
                if masses[chunk] > 0.0:
                    last = chunk
                left -= masses[chunk]
                chunk += 1
            if chunk == chunks:  # rounding: past the end by a little
                chunk, left = last, np.inf
            item = chunk * CHUNK
            for candidate in range(chunk * CHUNK, min((chunk + 1) * CHUNK, bias.shape[0])):
                mass = np.float64(_exp2(_dot(queries[row], vectors[candidate]) + bias[candidate] - top))
                if mass > 0.0:
                    item = candidate
                left -= mass
                if left < 0.0:
                    break
            out[row, column] = item


@njit(nogil=True)  # type: ignore[untyped-decorator]
def find_entropies(tops: Floats, sums: Floats, spreads: Floats, per_tile: int, out: Floats) -> None:
    """Write the entropy of each row, nats, (n,), from what :func:`reduce_chunks` wrote of it."""
    masses = np.empty(sums.shape[1], np.float64)
    for row in range(out.shape[0]):
        top = _row_masses(tops[row], sums[row], per_tile, masses)
        mean = 0.0
        for chunk in range(masses.shape[0]):
            if masses[chunk] > 0.0:
                lower = np.float64(tops[row, chunk // per_tile] - top)
                mean += masses[chunk] * (np.float64(spreads[row, chunk]) / np.float64(sums[row, chunk]) + lower)
        total = masses.sum()
        out[row] = (np.log2(total) - mean / total) * _LN2
