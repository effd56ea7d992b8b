"""The bytes of an optimizer's states."""

from __future__ import annotations

import torch

from grokfused.backends import block8


def states_bytes(state_dtype: torch.dtype | str, states: int) -> float:
    """Returns the bytes that so many states take, per parameter; of 8 bits, with their bases."""
    if isinstance(state_dtype, torch.dtype):
        return states * state_dtype.itemsize
    return states + torch.int32.itemsize / block8.BLOCK
