"""How the gradient's slow part is amplified before Adam sees it: csrc/step/grad_filter.h.

A filter reads and writes its own memory here, so that the kernel need not know which there is.
"""

import triton
import triton.language as tl

from . import columns, mask, storage

FILTERS = {"none": 0, "ema": 1}
EMA = tl.constexpr(FILTERS["ema"])
# The arrays of all filters, and the columns of a slice in which they lie.
ARRAYS = ("grad_ema",)
(GRAD_EMA_AT,) = (tl.constexpr(columns.FILTERS_AT.value + k) for k in range(len(ARRAYS)))
SLICE = tl.constexpr(columns.FILTERS_AT.value + len(ARRAYS))


@triton.jit
def ema(grad, grad_ema, alpha, alpha_weight, lamb):
    grad_ema = alpha * grad_ema + alpha_weight * grad
    return grad + lamb * grad_ema, grad_ema


@triton.jit
def filtered(
    grad, slice_, numbers, i, read, kept, written, drawn,
    FILTER: tl.constexpr, STATE: tl.constexpr, STOCHASTIC: tl.constexpr, WHOLE: tl.constexpr,
    EVERY: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    """The gradient that Adam sees; the filter's memory is written."""
    if FILTER == EMA:
        at = storage.pointers(tl.load(slice_ + GRAD_EMA_AT), i, STATE, WHOLE)
        grad, slow = ema(
            grad,
            storage.load(at, read, STATE, EVERY),
            tl.load(numbers + columns.ALPHA),
            tl.load(numbers + columns.ALPHA_WEIGHT),
            tl.load(numbers + columns.LAMB),
        )
        storage.store(at, mask.masked(slow, kept, MASK), drawn, written, STATE, STOCHASTIC, EVERY)
    return grad


@triton.jit
def cleared(slice_, numbers, i, dirty, FILTER: tl.constexpr, STATE: tl.constexpr, WHOLE: tl.constexpr):
    """The filter's memory becomes 0 where ``dirty`` is True."""
    if FILTER == EMA:
        at = storage.pointers(tl.load(slice_ + GRAD_EMA_AT), i, STATE, WHOLE)
        storage.clear(at, dirty, STATE)
