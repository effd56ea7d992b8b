"""States in 8 bits, 64 neighbours to a block: csrc/step/block8.h, and how a tile of such blocks is stepped.

A tile lies as [blocks, words]. A word holds an element of each quarter of its block, of which the tile is
stepped one after the other: param and grad are read as [blocks, words] too. What becomes of the states stays
in registers until the largest of each block is known.
"""

import triton
import triton.language as tl

from . import adamw, grad_filter, mask, storage
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

BLOCK, WORDS = tl.constexpr(64), tl.constexpr(16)
UNIT, LARGEST, MAGNITUDE = (tl.constexpr(bits) for bits in (1 << 19, 0x7EF00000, 0x7FFFFFFF))
# Which byte of a block's bases is that of a state.
EXP_AVG, EXP_AVG_SQ, OF_FILTERS, MAX_EXP_AVG_SQ = (tl.constexpr(byte) for byte in range(4))


@triton.jit
def base_of(a, b, c, d, SIGNED: tl.constexpr):
    """The bases of blocks, [blocks, 1], of which these are the quarters of one state."""
    a, b = a.to(tl.int32, bitcast=True) & MAGNITUDE, b.to(tl.int32, bitcast=True) & MAGNITUDE
    c, d = c.to(tl.int32, bitcast=True) & MAGNITUDE, d.to(tl.int32, bitcast=True) & MAGNITUDE
    largest = tl.max(tl.maximum(tl.maximum(a, b), tl.maximum(c, d)), 1)[:, None]
    octaves: tl.constexpr = 8 if SIGNED else 16
    return tl.maximum(((tl.minimum(largest, LARGEST) + (UNIT - 1)) >> 23) - (octaves - 1), 0)


@triton.jit
def put_base(bases, base, BYTE: tl.constexpr):
    """The bases with another one for a state."""
    return (bases & ~(tl.full([], 255, tl.int32) << (8 * BYTE))) | (base << (8 * BYTE))


@triton.jit
def decode(words, bases, k: tl.constexpr, BYTE: tl.constexpr, SIGNED: tl.constexpr):
    """The numbers of quarter k."""
    code = (words >> (8 * k)) & 255
    base = (bases >> (8 * BYTE)) & 255
    if SIGNED:
        lowest = (base + 1) << 23
        shifted = (((code & 127) << 19) + lowest).to(tl.float32, bitcast=True)
        size = shifted - tl.maximum(shifted * 0.5, lowest.to(tl.float32, bitcast=True))
        signed = size.to(tl.uint32, bitcast=True) | ((code & 128) << 24)  # Triton's -0.0 is 0.0
        value = signed.to(tl.float32, bitcast=True)
    else:
        value = tl.where(code > 0, ((code << 19) + (base << 23)).to(tl.float32, bitcast=True), 0.0)
    return value


@triton.jit
def _code(value, base, hashed, SIGNED: tl.constexpr):
    draw = ((hashed & 0xFFFF) << 3).to(tl.int32)
    size = tl.minimum(value.to(tl.int32, bitcast=True) & MAGNITUDE, LARGEST)
    if SIGNED:
        lowest = (base + 1) << 23
        number, width = size.to(tl.float32, bitcast=True), lowest.to(tl.float32, bitcast=True)
        shifted = (number + tl.maximum(number, width)).to(tl.int32, bitcast=True)
        code = (shifted - lowest + draw) >> 19
        code = tl.where(value < 0, code | 128, code)
    else:
        code = tl.maximum(size - (base << 23) + draw, tl.minimum(size, UNIT)) >> 19
    return code.to(tl.uint32)


@triton.jit
def encode(a, b, c, d, base, hashed, SIGNED: tl.constexpr):
    """The words of four quarters."""
    words = _code(a, base, hashed >> 16, SIGNED) | (_code(b, base, hashed, SIGNED) << 8)
    words |= _code(c, base, hashed >> 8, SIGNED) << 16
    return words | (_code(d, base, (hashed << 8) | (hashed >> 24), SIGNED) << 24)


@triton.jit
def _bytes(address, begin, size, k: tl.constexpr, TILE: tl.constexpr):
    # Where the codes of a quarter are, and which of them there are. The last block may lie otherwise.
    block = begin + BLOCK * tl.arange(0, TILE // BLOCK)[:, None]
    word = tl.arange(0, WORDS)[None, :]
    natural = WORDS * k + word
    at = block + tl.where(block + BLOCK <= size, (BLOCK // WORDS) * word + k, natural)
    return address.to(tl.pointer_type(tl.uint8)) + at, block + natural < size


@triton.jit
def _words(address, begin, TILE: tl.constexpr):
    at = begin // (BLOCK // WORDS)
    at += tl.arange(0, TILE // BLOCK)[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    return tl.multiple_of(address.to(tl.pointer_type(tl.uint32)), 16) + at


@triton.jit
def load(address, begin, size, used, TILE: tl.constexpr, WHOLE: tl.constexpr, EVERY: tl.constexpr):
    """The words of a state; of blocks that are not ``used``, 0."""
    if EVERY:
        words = tl.load(_words(address, begin, TILE))
    elif WHOLE:
        words = tl.load(_words(address, begin, TILE), mask=used, other=0)
    else:
        words = tl.zeros([TILE // BLOCK, WORDS], tl.uint32)
        for k in tl.static_range(4):
            at, there = _bytes(address, begin, size, k, TILE)
            words |= tl.load(at, mask=there & used, other=0).to(tl.uint32) << (8 * k)
    return words


@triton.jit
def store(address, words, begin, size, used, TILE: tl.constexpr, WHOLE: tl.constexpr, EVERY: tl.constexpr):
    """The inverse of ``load``."""
    if EVERY:
        tl.store(_words(address, begin, TILE), words)
    elif WHOLE:
        tl.store(_words(address, begin, TILE), words, mask=used)
    else:
        for k in tl.static_range(4):
            at, there = _bytes(address, begin, size, k, TILE)
            tl.store(at, ((words >> (8 * k)) & 255).to(tl.uint8), mask=there & used)


@triton.jit
def _kept_half(address, begin, size, half: tl.constexpr, TILE: tl.constexpr):
    # The word of a mask that tells of half a block, [blocks, 1]; 0 where there are no elements.
    at = begin // mask.LANES + half + tl.arange(0, TILE // BLOCK)[:, None] * (BLOCK // mask.LANES)
    in_memory = at * mask.LANES < tl.where(address != 0, size, 0)
    words = tl.load(address.to(tl.pointer_type(tl.uint32)) + at, mask=in_memory, other=0xFFFFFFFF)
    left = tl.minimum(tl.maximum(size - at * mask.LANES, 0), mask.LANES).to(tl.uint32)
    lowest = (tl.full([], 1, tl.uint32) << (left % mask.LANES)) - 1
    return words & tl.where(left == mask.LANES, 0xFFFFFFFF, lowest)


@triton.jit
def _elements(begin, k: tl.constexpr, TILE: tl.constexpr):
    # Those of quarter k.
    block = tl.arange(0, TILE // BLOCK)[:, None] * BLOCK
    return begin + (block + (WORDS * k + tl.arange(0, WORDS)[None, :]))


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
        lanes = (WORDS * k) % mask.LANES + tl.arange(0, WORDS).to(tl.uint32)[None, :]
        kept = (half >> lanes) & 1 != 0
        read = tl.broadcast_to(used, i.shape) if WHOLE else read & used
    written = read & kept if MASK == mask.FREEZE else read
    param_at = storage.pointers(tl.load(slice_ + PARAM_AT), i, PARAM, WHOLE)
    param = storage.load(param_at, read, PARAM, every)
    grad = storage.load(storage.pointers(tl.load(slice_ + GRAD_AT), i, PARAM, WHOLE), read, PARAM, every)
    if PARAM_ROUNDING == storage.KAHAN:
        comp_at = storage.pointers(tl.load(slice_ + KAHAN_COMP_AT), i, PARAM, WHOLE)
        param = param + storage.load(comp_at, read, PARAM, every)
    exp_avg_before = decode(exp_avgs, bases, k, EXP_AVG, True)
    exp_avg_sq_before = decode(exp_avg_sqs, bases, k, EXP_AVG_SQ, False)
    slow, largest = exp_avg_before, exp_avg_sq_before  # where there are none
    grad = grad * factor
    if (grad_filter.WITH_STATE >> FILTER) & 1:
        slow_before = decode(slows, bases, k, OF_FILTERS, True)
        grad, slow = grad_filter.with_state(grad, slow_before, numbers, FILTER)
        slow = _to_encode(slow, slow_before, kept, read, MASK, WHOLE)
    else:
        grad = grad_filter.filtered(
            grad, slice_, numbers, begin, i, read, kept, written, 0, window,
            FILTER, storage.BLOCK8, WINDOW, False, TILE, WHOLE, every, MASK,
        )  # fmt: skip
    if AMSGRAD:
        largest_before = decode(largests, bases, k, MAX_EXP_AVG_SQ, False)
        largest = largest_before
    param, exp_avg, exp_avg_sq, largest = adamw.stepped(
        param, grad, exp_avg_before, exp_avg_sq_before, largest, numbers, COUPLED, AMSGRAD
    )
    if PARAM_ROUNDING == storage.KAHAN:
        comp = mask.masked(storage.cut_off(param, PARAM), kept, MASK)
        storage.store(comp_at, comp, 0, written, PARAM, False, every)
    stochastic: tl.constexpr = PARAM_ROUNDING == storage.STOCHASTIC
    drawn = storage.random_bits(key, i.to(tl.uint32)) & 0xFFFF if stochastic else 0
    storage.store(param_at, mask.masked(param, kept, MASK), drawn, written, PARAM, stochastic, every)
    exp_avg = _to_encode(exp_avg, exp_avg_before, kept, read, MASK, WHOLE)
    exp_avg_sq = _to_encode(exp_avg_sq, exp_avg_sq_before, kept, read, MASK, WHOLE)
    if AMSGRAD:
        largest = _to_encode(largest, largest_before, kept, read, MASK, WHOLE)
    return exp_avg, exp_avg_sq, slow, largest


@triton.jit
def _cleared(
    slice_, begin, size, numbers, window, used,
    PARAM: tl.constexpr, WINDOW: tl.constexpr, PARAM_ROUNDING: tl.constexpr, FILTER: tl.constexpr,
    TILE: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    # States of a pruned block are 0 since the mask was set; parameters may have been written by any code.
    # Makes 0 again what is not; returns in which words there was such a parameter.
    words = tl.zeros([TILE // BLOCK, WORDS], tl.int1)
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
def step_tile(
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
    block = begin // BLOCK + tl.arange(0, TILE // BLOCK)[:, None]
    used = block * BLOCK < size
    low, high = used, used
    if MASK != mask.NONE:
        mask_at = tl.load(slice_ + MASK_AT)
        low = _kept_half(mask_at, begin, size, 0, TILE)
        high = _kept_half(mask_at, begin, size, 1, TILE)
        used = (low | high) != 0
    bases_at = tl.load(slice_ + BLOCK_BASES_AT).to(tl.pointer_type(tl.int32)) + block
    bases = tl.load(bases_at, mask=used, other=0)
    exp_avg_at, exp_avg_sq_at = tl.load(slice_ + EXP_AVG_AT), tl.load(slice_ + EXP_AVG_SQ_AT)
    exp_avgs = load(exp_avg_at, begin, size, used, TILE, WHOLE, every)
    exp_avg_sqs = load(exp_avg_sq_at, begin, size, used, TILE, WHOLE, every)
    slows, largests = exp_avgs, exp_avg_sqs  # where there are none
    if (grad_filter.WITH_STATE >> FILTER) & 1:
        slow_at = grad_filter.state_at(slice_, FILTER)
        slows = load(slow_at, begin, size, used, TILE, WHOLE, every)
    if AMSGRAD:
        largest_at = tl.load(slice_ + MAX_EXP_AVG_SQ_AT)
        largests = load(largest_at, begin, size, used, TILE, WHOLE, every)

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

    hashed = storage.random_bits(key, _elements(begin, 0, TILE).to(tl.uint32))
    base = base_of(m0, m1, m2, m3, True)
    new_bases = put_base(bases, base, EXP_AVG)
    words = encode(m0, m1, m2, m3, base, hashed, True)
    store(exp_avg_at, words, begin, size, used, TILE, WHOLE, every)
    base = base_of(v0, v1, v2, v3, False)
    new_bases = put_base(new_bases, base, EXP_AVG_SQ)
    words = encode(v0, v1, v2, v3, base, hashed, False)
    store(exp_avg_sq_at, words, begin, size, used, TILE, WHOLE, every)
    if (grad_filter.WITH_STATE >> FILTER) & 1:
        base = base_of(h0, h1, h2, h3, True)
        new_bases = put_base(new_bases, base, OF_FILTERS)
        words = encode(h0, h1, h2, h3, base, hashed, True)
        store(slow_at, words, begin, size, used, TILE, WHOLE, every)
    if AMSGRAD:
        base = base_of(x0, x1, x2, x3, False)
        new_bases = put_base(new_bases, base, MAX_EXP_AVG_SQ)
        words = encode(x0, x1, x2, x3, base, hashed, False)
        store(largest_at, words, begin, size, used, TILE, WHOLE, every)
    tl.store(bases_at, new_bases, mask=used)
    if MASK == mask.ZERO:
        dirty = _cleared(
            slice_, begin, size, numbers, window, used,
            PARAM, WINDOW, PARAM_ROUNDING, FILTER, TILE, WHOLE,
        )  # fmt: skip
        zeros = tl.zeros([TILE // BLOCK, WORDS], tl.uint32)
        store(exp_avg_at, zeros, begin, size, dirty, TILE, WHOLE, False)
        store(exp_avg_sq_at, zeros, begin, size, dirty, TILE, WHOLE, False)
        if (grad_filter.WITH_STATE >> FILTER) & 1:
            store(slow_at, zeros, begin, size, dirty, TILE, WHOLE, False)
        if AMSGRAD:
            store(largest_at, zeros, begin, size, dirty, TILE, WHOLE, False)
