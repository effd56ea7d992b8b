"""How arrays become numbers and numbers arrays, and what a mask leaves of them: for reference.py."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from grokfused.backends import block8
from grokfused.backends.rounding import param_draws, round_to, state_draws

LANES = 32  # elements to a word of a mask


def kept_elements(words: Tensor, count: int) -> Tensor:
    """Returns the bits of a packed mask (int32 words; the lowest bit first) as bool [count]."""
    bits = words.view(torch.uint8)[:, None] >> torch.arange(8, dtype=torch.uint8, device=words.device)
    return (bits & 1).bool().view(-1)[:count]


def masked(new: Tensor, before: Tensor, kept: Tensor, mode: str) -> Tensor:
    """Returns what is written: by selection, because no multiplication takes a NaN away.

    Args:
        new: [n], what the step made of an array.
        before: [n], the array before the step.
        kept: bool [n], the mask: True where an element takes the step.
        mode: "zero": the others are 0; "freeze": they stay as they were, bit for bit.
    """
    return torch.where(kept, new, torch.zeros_like(before) if mode == "zero" else before)


def numbers_in(stored: Mapping[str, Tensor], real: torch.dtype) -> dict[str, Tensor]:
    """Returns arrays, [n] in memory order, as the numbers that a step computes with."""
    numbers = {name: array.to(real) for name, array in stored.items()}
    codes = {name: array for name, array in stored.items() if array.dtype is block8.DTYPE}
    return numbers | (block8.decoded(codes, stored[block8.BASES]) if codes else {})


def in_their_dtypes(
    new: Mapping[str, Tensor], before: Mapping[str, Tensor], key: Tensor, stochastic: Mapping[str, bool]
) -> dict[str, Tensor]:
    """Returns what a step makes of arrays that are stored element by element, rounded to their dtypes."""
    of_states = state_draws(len(new["param"]), key) if any(stochastic.values()) else None
    stored = {}
    for name, array in before.items():
        if name in ("grad", block8.BASES) or array.dtype is block8.DTYPE:
            continue
        drawn = param_draws(len(array), key) if name == "param" else of_states
        stored[name] = round_to(new[name], array.dtype, drawn if stochastic[name] else None)
    return stored


def in_blocks(
    new: Mapping[str, Tensor],
    values: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    key: Tensor,
    kept: Tensor | None,
    mode: str,
) -> dict[str, Tensor]:
    """Returns what a step makes of states of 8 bits and of their bases.

    What a mask leaves out is chosen before it is stored, since how depends on the largest of a block. A block
    of which it keeps nothing is not stored anew. Where it keeps something, a frozen state is rounded again if
    the window has moved: the one thing that a mask of mode "freeze" does not leave bit for bit.
    """
    codes = {name: array for name, array in before.items() if array.dtype is block8.DTYPE}
    bases, count = before[block8.BASES], len(new["param"])
    numbers = {name: new[name] for name in codes}
    if kept is not None:
        numbers = {name: masked(new[name], values[name], kept, mode) for name in codes}
    stored, new_bases = block8.encoded(numbers, bases, block8.draws(count, key))
    if kept is not None:
        used = block8.any_kept(kept)
        of_used = block8.spread(used, count)
        stored = {name: masked(stored[name], codes[name], of_used, mode) for name in codes}
        new_bases = masked(new_bases, bases, used, "freeze")
    return {**stored, block8.BASES: new_bases}
