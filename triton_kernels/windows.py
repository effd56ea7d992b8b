"""The sum of the last gradients of an element, in the time of one: csrc/step/windows.h."""

import triton
import triton.language as tl

from . import storage

TURN = tl.constexpr(1024)


@triton.jit
def place_in(step, window):
    """Which plane of the ring step 1, 2, ... writes."""
    return (step.to(tl.int32) - 1) % window


@triton.jit
def plane(ring, place, size, WINDOW: tl.constexpr):
    """Where a plane begins."""
    itemsize: tl.constexpr = 4 if WINDOW == storage.FLOAT32 else 2
    return ring + place.to(tl.int64) * size * itemsize


@triton.jit
def sum_of_others(
    running, ring, place, size, window, begin, i, read,
    WINDOW: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    """What all but the leaving gradients sum up to: the running sum, or one taken afresh."""
    if TILE <= TURN:  # a tile has its turn as a whole
        turn = (begin // TURN).to(tl.int32) % window == place
        if turn:
            running = _afresh(running, ring, place, size, window, i, read, WINDOW, WHOLE, EVERY)
    else:
        turn = (i // TURN).to(tl.int32) % window == place
        afresh = _afresh(running, ring, place, size, window, i, read & turn, WINDOW, WHOLE, False)
        running = tl.where(turn, afresh, running)
    return running


@triton.jit
def _afresh(
    running, ring, place, size, window, i, read,
    WINDOW: tl.constexpr, WHOLE: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    found = tl.zeros_like(running)
    older = 1
    while older < window:  # the oldest first
        at = plane(ring, (place + older) % window, size, WINDOW)
        found += storage.load(storage.pointers(at, i, WINDOW, WHOLE), read, WINDOW, EVERY)
        older += 1
    return found
