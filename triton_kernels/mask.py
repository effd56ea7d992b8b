"""Which elements of a tensor take the step, one bit each, what becomes of the others: csrc/step/mask.h.

The elements of a tile lie as [words, lanes]: so the compiler sees that a word decides for 32 neighbours.
"""

import triton
import triton.language as tl

NONE, ZERO, FREEZE = (tl.constexpr(code) for code in range(3))
LANES = tl.constexpr(32)


@triton.jit
def elements(begin, TILE: tl.constexpr, MASK: tl.constexpr):
    """The elements of a tile."""
    if MASK == NONE:
        i = begin + tl.arange(0, TILE)
    else:
        i = begin + (tl.arange(0, TILE // LANES)[:, None] * LANES + tl.arange(0, LANES)[None, :])
    return i


@triton.jit
def words(address, begin, size, TILE: tl.constexpr):
    """The words of a tile, [words, 1]; a tensor without a mask keeps all."""
    at = begin // LANES + tl.arange(0, TILE // LANES)
    there = at * LANES < tl.where(address != 0, size, 0)
    return tl.load(address.to(tl.pointer_type(tl.uint32)) + at, mask=there, other=0xFFFFFFFF)[:, None]


@triton.jit
def kept_lanes(words):
    return (words >> tl.arange(0, LANES).to(tl.uint32)[None, :]) & 1 != 0


@triton.jit
def masked(value, kept, MASK: tl.constexpr):
    """What is written, by selection; where a mask freezes, the others are not written at all."""
    if MASK == ZERO:
        value = tl.where(kept, value, 0.0)
    return value
