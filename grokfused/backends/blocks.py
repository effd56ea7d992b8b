"""Arrays that have one value for a block of neighbours instead of one an element: a scale, say.

All elements of a block are computed before the first is written: then the largest of what they measure is
known, and becomes the value that they share. This file says how, and belongs to the truth (reference.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 64  # neighbours in memory order; the last block of a tensor may have fewer
Values = Mapping[str, Tensor]


class Shared(NamedTuple):
    """What a shared value is to the other states of its elements; a row of ``reference.SHARED``.

    Each is called with the values by name, [n] each: shared ones too, the same for all elements of a block.

    Attributes:
        states: The arrays that are stored by it.
        decode: Returns these as the step knows them.
        measure: Returns [n], of which the largest of each block is found; NaN and what is below 0 count as 0.
        encode: Called with these in place of the shared values. Returns what is stored: those arrays, of
            which 0 becomes 0, and the shared value, the same for the whole block. What it makes of finite
            numbers that were decoded is what they were decoded of, so that checkpoints change nothing.
    """

    states: tuple[str, ...]
    decode: Callable[[Values], Values]
    measure: Callable[[Values], Tensor]
    encode: Callable[[Values], Values]


def count_of(elements: int) -> int:
    """Returns the number of blocks of so many elements."""
    return -(-elements // BLOCK)


def spread(shared: Tensor, elements: int) -> Tensor:
    """Returns what each element shares, [n], of one value per block."""
    return shared.repeat_interleave(BLOCK)[:elements]


def largest(values: Tensor) -> Tensor:
    """Returns the largest of each block of [n] numbers, one per block; NaN and what is below 0 count as 0."""
    padded = values.new_zeros(count_of(len(values)) * BLOCK)
    padded[: len(values)] = torch.where(values > 0, values, 0)
    return padded.view(-1, BLOCK).amax(1)


def any_kept(kept: Tensor) -> Tensor:
    """Returns, for each element, whether its block has one that a mask keeps; bool [n]."""
    return spread(largest(kept.to(torch.uint8)), len(kept)).bool()


def decoded(values: dict[str, Tensor], table: Mapping[str, Shared]) -> dict[str, Tensor]:
    """Returns stored values as a step knows them."""
    for row in table.values():
        values = {**values, **row.decode(values)}
    return values


def encoded(values: dict[str, Tensor], table: Mapping[str, Shared]) -> dict[str, Tensor]:
    """Returns a step's values as they are stored; the inverse of ``decoded``."""
    for name, row in table.items():
        measured = row.measure(values)
        values = {**values, name: spread(largest(measured), len(measured))}
        values = {**values, **row.encode(values)}
    return values
