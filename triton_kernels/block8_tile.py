"""How a tile of states in 8 bits is stepped: csrc/cuda/block8.h.

Of each quarter of the blocks param and grad are read as the words of the states lie (block8.py), and stepped,
one quarter after the other. What becomes of the states stays in registers until the largest of each block is
known.
"""

import triton
import triton.language as tl

from . import adamw, block8, grad_filter, mask, storage
from .columns import (
    BLOCK_BASES_AT,
    EXP_AVG_AT,
    EXP_AVG_SQ_AT,
    GRAD_AT,
    KAHAN_COMP_AT,
    MASK_AT,
    MAX_EXP_AVG_SQ_AT,
    PARAM_AT,
)


@triton.jit
def _kept_half(address, begin, size, half: tl.constexpr, TILE: tl.constexpr):
    # The word of a mask that tells of half a block, [blocks, 1]; 0 where there are no elements.
    at = (
        begin // mask.LANES
        + half
        + tl.arange(0, TILE // block8.BLOCK)[:, None] * (block8.BLOCK // mask.LANES)
    )
    in_memory = at * mask.LANES < tl.where(address != 0, size, 0)
    words = tl.load(address.to(tl.pointer_type(tl.uint32)) + at, mask=in_memory, other=0xFFFFFFFF)
    left = tl.minimum(tl.maximum(size - at * mask.LANES, 0), mask.LANES).to(tl.uint32)
    lowest = (tl.full([], 1, tl.uint32) << (left % mask.LANES)) - 1
    return words & tl.where(left == mask.LANES, 0xFFFFFFFF, lowest)


@triton.jit
def _elements(begin, k: tl.constexpr, TILE: tl.constexpr):
    # Those of quarter k.
    block = tl.arange(0, TILE // block8.BLOCK)[:, None] * block8.BLOCK
    return begin + (block + (block8.WORDS * k + tl.arange(0, block8.WORDS)[None, :]))


@triton.jit
def _bits_of_words(key, begin, TILE: tl.constexpr):
    # As block8_bits of csrc/step/block8.h.
    i = _elements(begin, 0, TILE) + tl.arange(0, block8.WORDS)[None, :]
    return storage.random_bits(key, i.to(tl.uint32))


@triton.jit
def _to_encode(new, before, kept, read, MASK: tl.constexpr, WHOLE: tl.constexpr):
    # By selection, as in mask.masked; and what is not there has no size.
    if MASK == mask.FREEZE:
        new = tl.where(kept, new, before)
    new = mask.masked(new, kept, MASK)
    if not WHOLE:
        new = tl.where(read, new, 0.0)
    return new


@triton.jit
def _step_quarter(
    k: tl.constexpr, slice_, begin, size, numbers, factor, key, window, half, used,
    exp_avgs, exp_avg_sqs, slows, largests, bases,
    PARAM: tl.constexpr, WINDOW: tl.constexpr, PARAM_ROUNDING: tl.constexpr, FILTER: tl.constexpr,
    COUPLED: tl.constexpr, AMSGRAD: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr,
    MASK: tl.constexpr,
):  # fmt: skip
    # `half`: the words of the mask; then words of states. Returns the new states; what else there is is
    # written.
    every: tl.constexpr = WHOLE and MASK == mask.NONE
    i = _elements(begin, k, TILE)
    read = i < size
    kept = read
    if MASK != mask.NONE:
        lanes = (block8.WORDS * k) % mask.LANES + tl.arange(0, block8.WORDS).to(tl.uint32)[None, :]
        kept = (half >> lanes) & 1 != 0
        read = tl.broadcast_to(used, i.shape) if WHOLE else read & used
    written = read & kept if MASK == mask.FREEZE else read
    param_at = storage.pointers(tl.load(slice_ + PARAM_AT), i, PARAM, WHOLE)
    param = storage.load(param_at, read, PARAM, every)
    grad = storage.load(storage.pointers(tl.load(slice_ + GRAD_AT), i, PARAM, WHOLE), read, PARAM, every)
    if PARAM_ROUNDING == storage.KAHAN:
        comp_at = storage.pointers(tl.load(slice_ + KAHAN_COMP_AT), i, PARAM, WHOLE)
        param = param + storage.load(comp_at, read, PARAM, every)
    exp_avg_before = block8.decode(exp_avgs, bases, k, block8.EXP_AVG, True)
    exp_avg_sq_before = block8.decode(exp_avg_sqs, bases, k, block8.EXP_AVG_SQ, False)
    slow, largest = exp_avg_before, exp_avg_sq_before  # where there are none
    grad = grad * factor
    if (grad_filter.WITH_STATE >> FILTER) & 1:
        slow_before = block8.decode(slows, bases, k, block8.OF_FILTERS, True)
        grad, slow = grad_filter.with_state(grad, slow_before, numbers, FILTER)
        slow = _to_encode(slow, slow_before, kept, read, MASK, WHOLE)
    else:
        grad = grad_filter.filtered(
            grad, slice_, numbers, begin, i, read, kept, written, 0, window,
            FILTER, storage.BLOCK8, WINDOW, False, TILE, WHOLE, every, MASK,
        )  # fmt: skip
    if AMSGRAD:
        largest_before = block8.decode(largests, bases, k, block8.MAX_EXP_AVG_SQ, False)
        largest = largest_before
    param, exp_avg, exp_avg_sq, largest = adamw.stepped(
        param, grad, exp_avg_before, exp_avg_sq_before, largest, numbers, COUPLED, AMSGRAD
    )
    if PARAM_ROUNDING == storage.KAHAN:
        comp = mask.masked(storage.cut_off(param, PARAM), kept, MASK)
        storage.store(comp_at, comp, 0, written, PARAM, False, every)
    stochastic: tl.constexpr = PARAM_ROUNDING == storage.STOCHASTIC
    drawn = storage.param_draw(key, i.to(tl.uint32)) if stochastic else 0
    storage.store(param_at, mask.masked(param, kept, MASK), drawn, written, PARAM, stochastic, every)
    exp_avg = _to_encode(exp_avg, exp_avg_before, kept, read, MASK, WHOLE)
    exp_avg_sq = _to_encode(exp_avg_sq, exp_avg_sq_before, kept, read, MASK, WHOLE)
    if AMSGRAD:
        largest = _to_encode(largest, largest_before, kept, read, MASK, WHOLE)
    return exp_avg, exp_avg_sq, slow, largest


@triton.jit
def _encoded(
    address, a, b, c, d, bases, hashed, begin, size, used,
    BYTE: tl.constexpr, SIGNED: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr, EVERY: tl.constexpr,
):  # fmt: skip
    # Stores a state, of which these are the quarters, and returns the bases.
    base = block8.base_of(a, b, c, d, SIGNED)
    words = block8.encode(a, b, c, d, base, hashed, SIGNED)
    block8.store(address, words, begin, size, used, TILE, WHOLE, EVERY)
    return block8.put_base(bases, base, BYTE)


@triton.jit
def _cleared(
    slice_, begin, size, numbers, window, used,
    PARAM: tl.constexpr, WINDOW: tl.constexpr, PARAM_ROUNDING: tl.constexpr, FILTER: tl.constexpr,
    TILE: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    # States of a pruned block are 0 since the mask was set; parameters may have been written by any code.
    # Makes 0 again what is not; returns in which words there was such a parameter.
    words = tl.zeros([TILE // block8.BLOCK, block8.WORDS], tl.int1)
    for k in tl.static_range(4):
        i = _elements(begin, k, TILE)
        pruned = (i < size) & (used == 0)
        param_at = storage.pointers(tl.load(slice_ + PARAM_AT), i, PARAM, WHOLE)
        dirty = storage.any_bit(param_at, pruned, PARAM) & pruned
        storage.clear(param_at, dirty, PARAM)
        if PARAM_ROUNDING == storage.KAHAN:
            comp_at = storage.pointers(tl.load(slice_ + KAHAN_COMP_AT), i, PARAM, WHOLE)
            storage.clear(comp_at, dirty, PARAM)
        if FILTER == grad_filter.MEAN:
            grad_filter.cleared(slice_, numbers, i, dirty, window, FILTER, storage.BLOCK8, WINDOW, WHOLE)
        words |= dirty
    return words


@triton.jit
def step(
    slice_, begin, size, numbers, factor, key, window,
    PARAM: tl.constexpr, WINDOW: tl.constexpr, PARAM_ROUNDING: tl.constexpr, FILTER: tl.constexpr,
    COUPLED: tl.constexpr, AMSGRAD: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr,
    MASK: tl.constexpr,
):  # fmt: skip
    """Steps a tile that begins with a block; arguments as of ``kernel._step_tile``."""
    if WHOLE:
        _step_blocks(
            slice_, begin, size, numbers, factor, key, window,
            PARAM, WINDOW, PARAM_ROUNDING, FILTER, COUPLED, AMSGRAD, TILE, True, MASK,
        )  # fmt: skip
    else:  # in parts, for each byte has an address of its own, which takes registers
        end = tl.minimum(begin + TILE, size)
        while begin < end:
            _step_blocks(
                slice_, begin, size, numbers, factor, key, window,
                PARAM, WINDOW, PARAM_ROUNDING, FILTER, COUPLED, AMSGRAD, TILE // 2, False, MASK,
            )  # fmt: skip
            begin += TILE // 2


@triton.jit
def _step_blocks(
    slice_, begin, size, numbers, factor, key, window,
    PARAM: tl.constexpr, WINDOW: tl.constexpr, PARAM_ROUNDING: tl.constexpr, FILTER: tl.constexpr,
    COUPLED: tl.constexpr, AMSGRAD: tl.constexpr, TILE: tl.constexpr, WHOLE: tl.constexpr,
    MASK: tl.constexpr,
):  # fmt: skip
    every: tl.constexpr = WHOLE and MASK == mask.NONE
    block = begin // block8.BLOCK + tl.arange(0, TILE // block8.BLOCK)[:, None]
    used = block * block8.BLOCK < size
    low, high = used, used
    if MASK != mask.NONE:
        mask_at = tl.load(slice_ + MASK_AT)
        low = _kept_half(mask_at, begin, size, 0, TILE)
        high = _kept_half(mask_at, begin, size, 1, TILE)
        used = (low | high) != 0
    bases_at = tl.load(slice_ + BLOCK_BASES_AT).to(tl.pointer_type(tl.int32)) + block
    bases = tl.load(bases_at, mask=used, other=0)
    exp_avg_at, exp_avg_sq_at = tl.load(slice_ + EXP_AVG_AT), tl.load(slice_ + EXP_AVG_SQ_AT)
    exp_avgs = block8.load(exp_avg_at, begin, size, used, TILE, WHOLE, every)
    exp_avg_sqs = block8.load(exp_avg_sq_at, begin, size, used, TILE, WHOLE, every)
    slows, largests = exp_avgs, exp_avg_sqs  # where there are none
    if (grad_filter.WITH_STATE >> FILTER) & 1:
        slow_at = grad_filter.state_at(slice_, FILTER)
        slows = block8.load(slow_at, begin, size, used, TILE, WHOLE, every)
    if AMSGRAD:
        largest_at = tl.load(slice_ + MAX_EXP_AVG_SQ_AT)
        largests = block8.load(largest_at, begin, size, used, TILE, WHOLE, every)

    # A quarter after the other: new exp_avg, exp_avg_sq, grad_ema, max_exp_avg_sq.
    m0, v0, h0, x0 = _step_quarter(
        0, slice_, begin, size, numbers, factor, key, window, low, used,
        exp_avgs, exp_avg_sqs, slows, largests, bases,
        PARAM, WINDOW, PARAM_ROUNDING, FILTER, COUPLED, AMSGRAD, TILE, WHOLE, MASK,
    )  # fmt: skip
    m1, v1, h1, x1 = _step_quarter(
        1, slice_, begin, size, numbers, factor, key, window, low, used,
        exp_avgs, exp_avg_sqs, slows, largests, bases,
        PARAM, WINDOW, PARAM_ROUNDING, FILTER, COUPLED, AMSGRAD, TILE, WHOLE, MASK,
    )  # fmt: skip
    m2, v2, h2, x2 = _step_quarter(
        2, slice_, begin, size, numbers, factor, key, window, high, used,
        exp_avgs, exp_avg_sqs, slows, largests, bases,
        PARAM, WINDOW, PARAM_ROUNDING, FILTER, COUPLED, AMSGRAD, TILE, WHOLE, MASK,
    )  # fmt: skip
    m3, v3, h3, x3 = _step_quarter(
        3, slice_, begin, size, numbers, factor, key, window, high, used,
        exp_avgs, exp_avg_sqs, slows, largests, bases,
        PARAM, WINDOW, PARAM_ROUNDING, FILTER, COUPLED, AMSGRAD, TILE, WHOLE, MASK,
    )  # fmt: skip

    hashed = _bits_of_words(key, begin, TILE)
    bases = _encoded(
        exp_avg_at, m0, m1, m2, m3, bases, hashed, begin, size, used,
        block8.EXP_AVG, True, TILE, WHOLE, every,
    )  # fmt: skip
    bases = _encoded(
        exp_avg_sq_at, v0, v1, v2, v3, bases, hashed, begin, size, used,
        block8.EXP_AVG_SQ, False, TILE, WHOLE, every,
    )  # fmt: skip
    if (grad_filter.WITH_STATE >> FILTER) & 1:
        bases = _encoded(
            slow_at, h0, h1, h2, h3, bases, hashed, begin, size, used,
            block8.OF_FILTERS, True, TILE, WHOLE, every,
        )  # fmt: skip
    if AMSGRAD:
        bases = _encoded(
            largest_at, x0, x1, x2, x3, bases, hashed, begin, size, used,
            block8.MAX_EXP_AVG_SQ, False, TILE, WHOLE, every,
        )  # fmt: skip
    tl.store(bases_at, bases, mask=used)
    if MASK == mask.ZERO:
        dirty = _cleared(
            slice_, begin, size, numbers, window, used,
            PARAM, WINDOW, PARAM_ROUNDING, FILTER, TILE, WHOLE,
        )  # fmt: skip
        zeros = tl.zeros([TILE // block8.BLOCK, block8.WORDS], tl.uint32)
        block8.store(exp_avg_at, zeros, begin, size, dirty, TILE, WHOLE, False)
        block8.store(exp_avg_sq_at, zeros, begin, size, dirty, TILE, WHOLE, False)
        if (grad_filter.WITH_STATE >> FILTER) & 1:
            block8.store(slow_at, zeros, begin, size, dirty, TILE, WHOLE, False)
        if AMSGRAD:
            block8.store(largest_at, zeros, begin, size, dirty, TILE, WHOLE, False)
