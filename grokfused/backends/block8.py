"""States in 8 bits, a byte per element: the truth of that format, for reference.py.

An element is an 8-bit float, and 64 neighbours in memory order, a block, share the window of octaves that its
exponent counts from: its ``base``, a byte of the block. What has a sign has 3 bits of octave and 4 of
fraction, and its lowest octave is linear down to 0; a second moment has 4 and 4, and only 0 becomes 0. So one
large element leaves its neighbours 7 octaves below it, or 15, at full precision.

It is rounded stochastically only: with beta2 = 0.999 a second moment moves by less than half of what 4 bits
tell apart, and would stand still. All is done in integers and exact float32 operations, so every backend
comes to the same bits. What was decoded is exact in bfloat16, and is encoded to the same number again,
whatever is drawn. Zeroed memory means zeros. NaN and infinity become the largest number, 1.875 * 2**126.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from grokfused.backends.rounding import random_bits

BLOCK, WORDS = 64, 16  # elements of a block, and words of four bytes; the last block may have fewer elements
DTYPE = torch.uint8  # of stored states
BASES = "block_bases"  # their array: int32 [blocks], a byte for each state
UNIT = 1 << 19  # what four bits of fraction tell apart, in the bits of a float32
MINUS_0 = 128  # the code of what is negative and rounded to 0
LARGEST = 0x7EF00000  # bits of 1.875 * 2**126


class Kind(NamedTuple):
    """How a state is stored: which byte of a block's bases is its own, and whether it has a sign."""

    byte: int
    signed: bool

    @property
    def octaves(self) -> int:
        """How many there are in its window."""
        return 8 if self.signed else 16


KINDS = {"exp_avg": Kind(0, True), "exp_avg_sq": Kind(1, False), "max_exp_avg_sq": Kind(3, False)}
OF_FILTERS = Kind(2, True)  # the state of a filter


def kind_of(name: str) -> Kind:
    """Returns how the state of this name is stored."""
    return KINDS.get(name, OF_FILTERS)


def count_of(elements: int) -> int:
    """Returns the number of blocks of so many elements."""
    return -(-elements // BLOCK)


def spread(per_block: Tensor, elements: int) -> Tensor:
    """Returns for each element, [n], what its block has."""
    return per_block.repeat_interleave(BLOCK)[:elements]


def largest(values: Tensor) -> Tensor:
    """Returns the largest of each block of [n] integers that are not below 0."""
    padded = values.new_zeros(count_of(len(values)) * BLOCK)
    padded[: len(values)] = values
    return padded.view(-1, BLOCK).amax(1)


def any_kept(kept: Tensor) -> Tensor:
    """Returns for each block whether it has an element that a mask (bool [n]) keeps; bool [blocks]."""
    return largest(kept.to(torch.uint8)).bool()


def laid(codes: Tensor) -> Tensor:
    """Returns what is said of elements, [n], in the order of their bytes.

    Word j of a block holds elements j, j + 16, j + 32 and j + 48: a vector of words then is four vectors of
    neighbours. A block of fewer than 64 elements lies as it is.
    """
    return _permuted(codes, BLOCK // WORDS, WORDS)


def unlaid(stored: Tensor) -> Tensor:
    """Returns what is said of bytes, [n], in the order of the elements; the inverse of ``laid``."""
    return _permuted(stored, WORDS, BLOCK // WORDS)


def _permuted(values: Tensor, rows: int, columns: int) -> Tensor:
    whole = len(values) // BLOCK * BLOCK
    blocks = values[:whole].view(-1, rows, columns).transpose(1, 2).reshape(-1)
    return torch.cat([blocks, values[whole:]])


def draws(count: int, key: Tensor) -> Tensor:
    """Returns what is added below the fraction of each element, int64 [n] in [0, UNIT).

    The four elements of a word share 32 bits, of which each takes sixteen. They are those of an even number,
    as of all states (``rounding.state_draws``): word j of a block that begins with element i has i + 2 j.
    """
    block, place = _places(count)
    bits = random_bits(block * BLOCK + place % WORDS * 2, key)
    turned = ((bits << 8) | (bits >> 24)) & 0xFFFF
    of_word = torch.stack([bits >> 16, bits & 0xFFFF, (bits >> 8) & 0xFFFF, turned])
    return of_word.gather(0, (place // WORDS)[None])[0] << 3


def _places(count: int) -> tuple[Tensor, Tensor]:
    elements = torch.arange(count, device="cpu")
    return elements // BLOCK, elements % BLOCK


def _float(bits: Tensor) -> Tensor:
    return bits.to(torch.int32).view(torch.float32)


def _bits(values: Tensor) -> Tensor:
    return values.view(torch.int32).long()


def decode(codes: Tensor, base: Tensor, kind: Kind) -> Tensor:
    """Returns the numbers, float32 [n], of codes, uint8 [n], with the bases, int64 [n], of their blocks."""
    codes = codes.long()
    if not kind.signed:
        return torch.where(codes > 0, _float((codes << 19) + (base << 23)), 0.0)
    lowest = (base + 1) << 23  # the bits of twice the width of the linear octave
    shifted = _float(((codes & 127) << 19) + lowest)
    size = shifted - torch.maximum(shifted * 0.5, _float(lowest))
    return torch.where(codes > 127, -size, size)


def encode(values: Tensor, drawn: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    """Returns codes, uint8 [n], of float32 [n], and the bases of their blocks, int64 [blocks].

    Args:
        values: What is stored; without a sign where the kind has none.
        drawn: int64 [n], uniform in [0, UNIT).
        kind: How.
    """
    size = (_bits(values) & 0x7FFFFFFF).clamp(max=LARGEST)
    # What the rounding may carry into the next octave counts as in that.
    bases = (((largest(size) + (UNIT - 1)) >> 23) - (kind.octaves - 1)).clamp(min=0)
    base = spread(bases, len(values))
    if not kind.signed:
        rounded = size - (base << 23) + drawn
        return (torch.maximum(rounded, size.clamp(max=UNIT)) >> 19).to(DTYPE), bases
    lowest, number = (base + 1) << 23, _float(size)
    shifted = number + torch.maximum(number, _float(lowest))
    codes = (_bits(shifted) - lowest + drawn) >> 19
    return torch.where(values < 0, codes | 128, codes).to(DTYPE), bases


def bytes_of(bases: Tensor) -> Tensor:
    """Returns the bytes of an array of bases: uint8 [blocks, 4], which shares its memory."""
    return bases.view(torch.uint8).view(-1, 4)


def decoded(stored: Mapping[str, Tensor], bases: Tensor) -> dict[str, Tensor]:
    """Returns the numbers of stored states.

    Args:
        stored: uint8 [n] by name, in the order of their bytes.
        bases: int32 [blocks].
    """
    found = {}
    for name, codes in stored.items():
        kind = kind_of(name)
        base = spread(bytes_of(bases)[:, kind.byte].long(), len(codes))
        found[name] = decode(unlaid(codes), base, kind)
    return found


def encoded(values: Mapping[str, Tensor], bases: Tensor, drawn: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    """Returns states as they are stored, and the bases of their blocks; the inverse of ``decoded``.

    Args:
        values: float32 [n] by name.
        bases: int32 [blocks], of which the bytes of other states are kept.
        drawn: int64 [n], uniform in [0, UNIT).
    """
    found, new = {}, bases.clone()
    for name, numbers in values.items():
        kind = kind_of(name)
        codes, base = encode(numbers, drawn, kind)
        found[name] = laid(codes)
        bytes_of(new)[:, kind.byte] = base.to(torch.uint8)
    return found, new
