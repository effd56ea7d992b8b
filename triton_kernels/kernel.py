"""The one kernel and the order of its rooms: csrc/step/element_step.h. launcher.py launches it.

Memory: 36 bytes per float32 element with the EMA filter (reads param, grad, exp_avg, exp_avg_sq, grad_ema:
20; writes all but grad: 16), 28 without, 48 with the mean of a window (reads besides those 28 what leaves,
the sum, and on average one value of the window: 12; writes what enters and the sum: 8), 42 where that is
bfloat16; 24 with the EMA filter and bfloat16 states, 18.125 with states in 8 bits (reads 4 + 4 + 3, writes
4 + 3, and 8 for the bases of 64 elements). Parameters of 16 bits take 6 less, and 4 of these again with
Kahan's rounding. A mask adds 0.125; a word of it that keeps nothing, or a block of states in 8 bits, costs
the param (4, or 2) where it zeroes, and nothing where it freezes. Per program besides: one row of the tables.
"""

from __future__ import annotations

import triton
import triton.language as tl

from . import adamw, block8_tile, grad_filter, mask, storage
from .columns import (
    EXP_AVG_AT,
    EXP_AVG_SQ_AT,
    GRAD_AT,
    GRAD_FACTOR,
    IS_ALIGNED,
    KAHAN_COMP_AT,
    MASK_AT,
    MASK_MODE,
    MAX_EXP_AVG_SQ_AT,
    PARAM_AT,
    ROW,
    SIZE,
    STEP,
    STEP_AT,
)


@triton.jit
def _step_tile(
    slice_, begin, size, numbers, factor, key, window,
    PARAM: tl.constexpr, STATE: tl.constexpr, WINDOW: tl.constexpr, STOCHASTIC: tl.constexpr,
    PARAM_ROUNDING: tl.constexpr, FILTER: tl.constexpr, COUPLED: tl.constexpr, AMSGRAD: tl.constexpr,
    TILE: tl.constexpr, WHOLE: tl.constexpr, MASK: tl.constexpr,
):  # fmt: skip
    if STATE == storage.BLOCK8:
        block8_tile.step(
            slice_, begin, size, numbers, factor, key, window,
            PARAM, WINDOW, PARAM_ROUNDING, FILTER, COUPLED, AMSGRAD, TILE, WHOLE, MASK,
        )  # fmt: skip
    else:
        _step_elements(
            slice_, begin, size, numbers, factor, key, window,
            PARAM, STATE, WINDOW, STOCHASTIC, PARAM_ROUNDING, FILTER, COUPLED, AMSGRAD,
            TILE, WHOLE, MASK,
        )  # fmt: skip


@triton.jit
def _step_elements(
    slice_,
    begin,
    size,
    numbers,
    factor,
    key,
    window,
    PARAM: tl.constexpr,
    STATE: tl.constexpr,
    WINDOW: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    PARAM_ROUNDING: tl.constexpr,
    FILTER: tl.constexpr,
    COUPLED: tl.constexpr,
    AMSGRAD: tl.constexpr,
    TILE: tl.constexpr,
    WHOLE: tl.constexpr,
    MASK: tl.constexpr,
):
    # WHOLE: the tile is full and every array aligned, so that accesses are 16 bytes wide. STOCHASTIC: the
    # states are rounded so.
    every: tl.constexpr = WHOLE and MASK == mask.NONE  # and none is left out
    i = mask.elements(begin, TILE, MASK)
    read = i < size
    kept = read
    if MASK != mask.NONE:
        words = mask.words(tl.load(slice_ + MASK_AT), begin, size, TILE)
        pruned = read & (words == 0)
        kept = mask.kept_lanes(words)
        read = tl.broadcast_to(words != 0, i.shape) if WHOLE else read & (words != 0)
    written = read & kept if MASK == mask.FREEZE else read
    param_at = storage.pointers(tl.load(slice_ + PARAM_AT), i, PARAM, WHOLE)
    grad_at = storage.pointers(tl.load(slice_ + GRAD_AT), i, PARAM, WHOLE)
    exp_avg_at = storage.pointers(tl.load(slice_ + EXP_AVG_AT), i, STATE, WHOLE)
    exp_avg_sq_at = storage.pointers(tl.load(slice_ + EXP_AVG_SQ_AT), i, STATE, WHOLE)
    param = storage.load(param_at, read, PARAM, every)
    grad = storage.load(grad_at, read, PARAM, every)
    exp_avg = storage.load(exp_avg_at, read, STATE, every)
    exp_avg_sq = storage.load(exp_avg_sq_at, read, STATE, every)
    if PARAM_ROUNDING == storage.KAHAN:
        comp_at = storage.pointers(tl.load(slice_ + KAHAN_COMP_AT), i, PARAM, WHOLE)
        param = param + storage.load(comp_at, read, PARAM, every)
    param_stochastic: tl.constexpr = PARAM_ROUNDING == storage.STOCHASTIC
    drawn = storage.state_draw(key, i.to(tl.uint32)) if STOCHASTIC else 0

    grad = grad * factor
    grad = grad_filter.filtered(
        grad, slice_, numbers, begin, i, read, kept, written, drawn, window,
        FILTER, STATE, WINDOW, STOCHASTIC, TILE, WHOLE, every, MASK,
    )  # fmt: skip
    largest = exp_avg_sq  # where there is none
    if AMSGRAD:
        largest_at = storage.pointers(tl.load(slice_ + MAX_EXP_AVG_SQ_AT), i, STATE, WHOLE)
        largest = storage.load(largest_at, read, STATE, every)
    param, exp_avg, exp_avg_sq, largest = adamw.stepped(
        param, grad, exp_avg, exp_avg_sq, largest, numbers, COUPLED, AMSGRAD
    )
    storage.store(exp_avg_at, mask.masked(exp_avg, kept, MASK), drawn, written, STATE, STOCHASTIC, every)
    storage.store(
        exp_avg_sq_at, mask.masked(exp_avg_sq, kept, MASK), drawn, written, STATE, STOCHASTIC, every
    )
    if AMSGRAD:
        storage.store(largest_at, mask.masked(largest, kept, MASK), drawn, written, STATE, STOCHASTIC, every)
    if PARAM_ROUNDING == storage.KAHAN:
        comp = mask.masked(storage.cut_off(param, PARAM), kept, MASK)
        storage.store(comp_at, comp, 0, written, PARAM, False, every)
    param_drawn = storage.param_draw(key, i.to(tl.uint32)) if param_stochastic else 0
    param = mask.masked(param, kept, MASK)
    storage.store(param_at, param, param_drawn, written, PARAM, param_stochastic, every)
    if MASK == mask.ZERO:
        # States of pruned words are 0 since the mask was set; parameters may have been written by any code.
        dirty = storage.any_bit(param_at, pruned, PARAM) & pruned
        storage.clear(param_at, dirty, PARAM)
        storage.clear(exp_avg_at, dirty, STATE)
        storage.clear(exp_avg_sq_at, dirty, STATE)
        grad_filter.cleared(slice_, numbers, i, dirty, window, FILTER, STATE, WINDOW, WHOLE)
        if AMSGRAD:
            storage.clear(largest_at, dirty, STATE)
        if PARAM_ROUNDING == storage.KAHAN:
            storage.clear(comp_at, dirty, PARAM)


@triton.jit
def _step_masked(
    slice_, begin, size, numbers, factor, key, window,
    PARAM: tl.constexpr, STATE: tl.constexpr, WINDOW: tl.constexpr, STOCHASTIC: tl.constexpr,
    PARAM_ROUNDING: tl.constexpr, FILTER: tl.constexpr, COUPLED: tl.constexpr, AMSGRAD: tl.constexpr,
    TILE: tl.constexpr, WHOLE: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    # MASKED: some tensor of the launch has a mask.
    if MASKED:
        if tl.load(slice_ + MASK_MODE) == 0:
            _step_tile(
                slice_, begin, size, numbers, factor, key, window,
                PARAM, STATE, WINDOW, STOCHASTIC, PARAM_ROUNDING, FILTER, COUPLED, AMSGRAD,
                TILE, WHOLE, mask.ZERO,
            )  # fmt: skip
        else:
            _step_tile(
                slice_, begin, size, numbers, factor, key, window,
                PARAM, STATE, WINDOW, STOCHASTIC, PARAM_ROUNDING, FILTER, COUPLED, AMSGRAD,
                TILE, WHOLE, mask.FREEZE,
            )  # fmt: skip
    else:
        _step_tile(
            slice_, begin, size, numbers, factor, key, window,
            PARAM, STATE, WINDOW, STOCHASTIC, PARAM_ROUNDING, FILTER, COUPLED, AMSGRAD,
            TILE, WHOLE, mask.NONE,
        )  # fmt: skip


@triton.jit(do_not_specialize=["tiles", "seed", "window"])
def adamw_kernel(
    slices,  # int64 [tensors, SLICE]
    tensors,  # int32 [chunks]: the tensor of a chunk
    first_chunks,  # int32 [tensors]
    rows,  # int32 [tensors]: the row of scalars
    tiles,  # of a chunk
    scalars,  # float32 [rows, ROW]
    grad_scale,
    found_inf,
    seed,
    window,  # gradients in one; 0: there is none
    HAS_SCALE: tl.constexpr,
    HAS_FOUND_INF: tl.constexpr,
    STEPS_HERE: tl.constexpr,
    PARAM: tl.constexpr,
    STATE: tl.constexpr,
    WINDOW: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    PARAM_ROUNDING: tl.constexpr,
    FILTER: tl.constexpr,
    COUPLED: tl.constexpr,
    AMSGRAD: tl.constexpr,
    TILE: tl.constexpr,
    MASKED: tl.constexpr,
):
    cancelled = False
    if HAS_FOUND_INF:
        cancelled = tl.load(found_inf) != 0
    if not cancelled:
        chunk = tl.program_id(0)
        tensor = tl.load(tensors + chunk)
        slice_ = slices + tensor.to(tl.int64) * grad_filter.SLICE
        numbers = scalars + tl.load(rows + tensor).to(tl.int64) * ROW
        begin = (chunk - tl.load(first_chunks + tensor)).to(tl.int64) * TILE * tiles
        size = tl.load(slice_ + SIZE)
        step = tl.load(numbers + STEP)
        if STEPS_HERE:
            if begin == 0:
                tl.store(tl.load(slice_ + STEP_AT).to(tl.pointer_type(tl.float32)), step)
        factor = tl.load(numbers + GRAD_FACTOR)
        if HAS_SCALE:
            factor = tl.div_rn(factor, tl.load(grad_scale))
        key = storage.random_key(seed.to(tl.uint32), step.to(tl.int32).to(tl.uint32))
        aligned = tl.load(slice_ + IS_ALIGNED) != 0
        end = tl.minimum(begin + TILE * tiles, size)
        while begin < end:  # a `for` over a number of the device is an error in the interpreter of Triton 3.6
            if (begin + TILE <= size) & aligned:
                _step_masked(
                    slice_, begin, size, numbers, factor, key, window,
                    PARAM, STATE, WINDOW, STOCHASTIC, PARAM_ROUNDING, FILTER, COUPLED, AMSGRAD,
                    TILE, True, MASKED,
                )  # fmt: skip
            else:
                _step_masked(
                    slice_, begin, size, numbers, factor, key, window,
                    PARAM, STATE, WINDOW, STOCHASTIC, PARAM_ROUNDING, FILTER, COUPLED, AMSGRAD,
                    TILE, False, MASKED,
                )  # fmt: skip
            begin += TILE
