"""How the gradient's slow part is amplified before Adam sees it: csrc/step/grad_filter.h.

A filter reads and writes its own memory here, so that the kernel need not know which there is.
"""

import triton
import triton.language as tl

from . import columns, mask, storage, windows

FILTERS = {"none": 0, "ema": 1, "mean": 2}
EMA, MEAN = (tl.constexpr(FILTERS[name]) for name in ("ema", "mean"))
WITH_STATE = tl.constexpr(1 << EMA.value)  # a bit for each filter that keeps one array of the states' dtype
# The arrays of all filters, and the columns of a slice in which they lie.
ARRAYS = ("grad_ema", "grad_window", "grad_sum")
GRAD_EMA_AT, GRAD_WINDOW_AT, GRAD_SUM_AT = (
    tl.constexpr(columns.FILTERS_AT.value + k) for k in range(len(ARRAYS))
)
SLICE = tl.constexpr(columns.FILTERS_AT.value + len(ARRAYS))


@triton.jit
def ema(grad, grad_ema, alpha, alpha_weight, lamb):
    grad_ema = alpha * grad_ema + alpha_weight * grad
    return grad + lamb * grad_ema, grad_ema


@triton.jit
def state_at(slice_, FILTER: tl.constexpr):
    """Where the state of a filter is that keeps one."""
    if FILTER == EMA:
        at = tl.load(slice_ + GRAD_EMA_AT)
    return at


@triton.jit
def with_state(grad, state, numbers, FILTER: tl.constexpr):
    """The amplified gradient, and the new state."""
    if FILTER == EMA:
        alpha, weight = tl.load(numbers + columns.ALPHA), tl.load(numbers + columns.ALPHA_WEIGHT)
        grad, state = ema(grad, state, alpha, weight, tl.load(numbers + columns.LAMB))
    return grad, state


@triton.jit
def mean(grad, others, lamb, WINDOW: tl.constexpr):
    entering = storage.as_stored(grad, WINDOW)
    grad_sum = others + entering
    return tl.where(lamb != 0, grad + lamb * grad_sum, grad), entering, grad_sum


@triton.jit
def filtered(
    grad, slice_, numbers, begin, i, read, kept, written, drawn, window,
    FILTER: tl.constexpr, STATE: tl.constexpr, WINDOW: tl.constexpr, STOCHASTIC: tl.constexpr,
    TILE: tl.constexpr, WHOLE: tl.constexpr, EVERY: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """The gradient that Adam sees; the filter's memory is written. Elements i lie in a tile from begin on."""
    if (WITH_STATE >> FILTER) & 1:
        at = storage.pointers(state_at(slice_, FILTER), i, STATE, WHOLE)
        grad, state = with_state(grad, storage.load(at, read, STATE, EVERY), numbers, FILTER)
        storage.store(at, mask.masked(state, kept, MASK), drawn, written, STATE, STOCHASTIC, EVERY)
    if FILTER == MEAN:
        place = windows.place_in(tl.load(numbers + columns.STEP), window)
        size, ring = tl.load(slice_ + columns.SIZE), tl.load(slice_ + GRAD_WINDOW_AT)
        at = storage.pointers(windows.plane(ring, place, size, WINDOW), i, WINDOW, WHOLE)
        sum_at = storage.pointers(tl.load(slice_ + GRAD_SUM_AT), i, storage.FLOAT32, WHOLE)
        running = storage.load(sum_at, read, storage.FLOAT32, EVERY) - storage.load(at, read, WINDOW, EVERY)
        others = windows.sum_of_others(
            running, ring, place, size, window, begin, i, read, WINDOW, TILE, WHOLE, EVERY
        )
        grad, entering, grad_sum = mean(grad, others, tl.load(numbers + columns.LAMB), WINDOW)
        storage.store(at, mask.masked(entering, kept, MASK), 0, written, WINDOW, False, EVERY)
        storage.store(sum_at, mask.masked(grad_sum, kept, MASK), 0, written, storage.FLOAT32, False, EVERY)
    return grad


@triton.jit
def cleared(
    slice_, numbers, i, dirty, window,
    FILTER: tl.constexpr, STATE: tl.constexpr, WINDOW: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """The filter's memory becomes 0 where ``dirty`` is True."""
    if (WITH_STATE >> FILTER) & 1:
        storage.clear(storage.pointers(state_at(slice_, FILTER), i, STATE, WHOLE), dirty, STATE)
    if FILTER == MEAN:
        place = windows.place_in(tl.load(numbers + columns.STEP), window)
        size, ring = tl.load(slice_ + columns.SIZE), tl.load(slice_ + GRAD_WINDOW_AT)
        storage.clear(
            storage.pointers(windows.plane(ring, place, size, WINDOW), i, WINDOW, WHOLE), dirty, WINDOW
        )
        sum_at = storage.pointers(tl.load(slice_ + GRAD_SUM_AT), i, storage.FLOAT32, WHOLE)
        storage.clear(sum_at, dirty, storage.FLOAT32)
