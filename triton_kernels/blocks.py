"""Values that a block of 64 elements shares (grokfused/backends/blocks.py); a block lies in one tile."""

import triton
import triton.language as tl

BLOCK = tl.constexpr(64)


@triton.jit
def pointers(address, i):
    """Where the values are that elements i share."""
    return address.to(tl.pointer_type(tl.float32)) + i // BLOCK


@triton.jit
def largest(values):
    """The largest value of its block, for each element; NaN is left out, and what is below 0."""
    found = tl.where(values > 0, values, 0.0).reshape(values.numel // BLOCK, BLOCK)
    return tl.broadcast_to(tl.max(found, 1)[:, None], found.shape).reshape(values.shape)


@triton.jit
def any_kept(kept, i, size):
    """Whether the mask keeps something of its block, for each element that there is."""
    return (largest((kept & (i < size)).to(tl.float32)) > 0) & (i < size)
