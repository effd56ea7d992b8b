"""Which type an array has in memory, how values go in and come out: csrc/step/storage.h, rounding.h.

The rounding to bfloat16 is written out in integers, as there: Triton's interpreter would truncate.
"""

import triton
import triton.language as tl

FLOAT32, BFLOAT16, FLOAT16, BLOCK8 = (tl.constexpr(code) for code in range(4))  # the last one: block8.py
NEAREST, STOCHASTIC, KAHAN = (tl.constexpr(code) for code in range(3))


@triton.jit
def pointers(address, i, STORAGE: tl.constexpr, ALIGNED: tl.constexpr):
    """Where the elements i of an array are."""
    # Not in a function of its own: Triton before 3.9 forgets what is said of the result of a call.
    if STORAGE == FLOAT32:
        pointer = address.to(tl.pointer_type(tl.float32))
    elif STORAGE == FLOAT16:
        pointer = address.to(tl.pointer_type(tl.float16))
    else:
        pointer = address.to(tl.pointer_type(tl.uint16))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + i


@triton.jit
def _widened(stored, STORAGE: tl.constexpr):
    if STORAGE == BFLOAT16:
        value = (stored.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        value = stored.to(tl.float32)
    return value


@triton.jit
def load(pointers, mask, STORAGE: tl.constexpr, EVERY: tl.constexpr):
    # EVERY: the mask is True everywhere.
    if EVERY:
        stored = tl.load(pointers)
    else:
        stored = tl.load(pointers, mask=mask, other=0)
    return _widened(stored, STORAGE)


@triton.jit
def any_bit(pointers, mask, STORAGE: tl.constexpr):
    """Whether stored values are anything but +0, where the mask is True."""
    stored = tl.load(pointers, mask=mask, other=0)
    if STORAGE == FLOAT32:
        dirty = stored.to(tl.uint32, bitcast=True) != 0
    elif STORAGE == FLOAT16:
        dirty = stored.to(tl.uint16, bitcast=True) != 0
    else:
        dirty = stored != 0
    return dirty


@triton.jit
def clear(pointers, mask, STORAGE: tl.constexpr):
    if STORAGE == BFLOAT16:
        tl.store(pointers, 0, mask=mask)
    else:
        tl.store(pointers, 0.0, mask=mask)


@triton.jit
def _bits_to_round(value):
    bits = value.to(tl.uint32, bitcast=True)
    return tl.where(value != value, (bits & 0x80000000) | 0x7FC00000, bits)


@triton.jit
def _to_float16_stochastic(value, random_bits):
    bits = value.to(tl.uint32, bitcast=True)
    infinity = 0x47800000  # 65536, of which a carry makes nothing else
    magnitude = tl.where((bits & 0x7FFFFFFF) < infinity, bits & 0x7FFFFFFF, infinity)
    smallest_normal = 0x38800000  # 2^-14
    # In units of 2^-40; chosen before the conversion, which is only defined for what fits an integer.
    small = tl.where(magnitude < smallest_normal, magnitude, smallest_normal).to(tl.float32, bitcast=True)
    subnormal = ((small * 1099511627776.0).to(tl.int32).to(tl.uint32) + random_bits) >> 16
    normal = (magnitude - 0x38000000 + (random_bits >> 3)) >> 13
    rounded = tl.where(magnitude < smallest_normal, subnormal, normal)
    rounded = tl.where(value != value, 0x7E00, rounded)
    return (rounded | ((bits >> 16) & 0x8000)).to(tl.uint16).to(tl.float16, bitcast=True)


@triton.jit
def _rounded(value, random_bits, STORAGE: tl.constexpr, STOCHASTICALLY: tl.constexpr):
    if STORAGE == BFLOAT16:
        bits = _bits_to_round(value)
        if STOCHASTICALLY:
            bits = bits + random_bits
        else:
            bits = bits + (0x7FFF + ((bits >> 16) & 1))  # ties go to the even neighbour
        stored = (bits >> 16).to(tl.uint16)
    elif STORAGE == FLOAT16:
        if STOCHASTICALLY:
            stored = _to_float16_stochastic(value, random_bits)
        else:
            stored = value.to(tl.float16)
    else:
        stored = value
    return stored


@triton.jit
def as_stored(value, STORAGE: tl.constexpr):
    """A value as it comes back from an array."""
    return _widened(_rounded(value, 0, STORAGE, False), STORAGE)


@triton.jit
def cut_off(value, STORAGE: tl.constexpr):
    """What rounding to nearest takes away; 0 where the rounded value is infinite or NaN."""
    stored = _rounded(value, 0, STORAGE, False)
    rest = value - _widened(stored, STORAGE)
    return tl.where(tl.abs(rest) < float("inf"), rest, 0.0)


@triton.jit
def store(
    pointers,
    value,
    random_bits,
    mask,
    STORAGE: tl.constexpr,
    STOCHASTICALLY: tl.constexpr,
    EVERY: tl.constexpr,
):
    stored = _rounded(value, random_bits, STORAGE, STOCHASTICALLY)
    if EVERY:
        tl.store(pointers, stored)
    else:
        tl.store(pointers, stored, mask=mask)


@triton.jit
def _uint32(number: tl.constexpr):
    return tl.full([], number, tl.uint32)


@triton.jit
def scramble(bits):
    bits = (bits ^ (bits >> 16)) * _uint32(0x7FEB352D)
    bits = (bits ^ (bits >> 15)) * _uint32(0x846CA68B)
    return bits ^ (bits >> 16)


@triton.jit
def random_key(seed, step):
    return scramble(scramble(seed) ^ step)


@triton.jit
def random_bits(key, i):
    return scramble(key ^ i)


@triton.jit
def _half_of(bits, i):
    return tl.where((i & 1) != 0, bits & 0xFFFF, bits >> 16)


@triton.jit
def state_draw(key, i):
    return _half_of(random_bits(key, i & _uint32(0xFFFFFFFE)), i)


@triton.jit
def param_draw(key, i):
    return _half_of(random_bits(key, i | _uint32(1)), i)
