"""States in 8 bits, 64 neighbours to a block: csrc/step/block8.h.

A tile of blocks lies as [blocks, words]. A word holds an element of each quarter of its block; of each
quarter a tile of numbers lies as [blocks, words], too.
"""

import triton
import triton.language as tl

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
