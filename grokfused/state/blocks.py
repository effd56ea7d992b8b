"""States of 8 bits (``backends.block8``), and the numbers that they mean.

Blocks are counted in the memory of one process's shard: so numbers are what is saved, spread anew and laid
otherwise. bfloat16 holds them exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from grokfused.backends import block8
from grokfused.backends.reference import in_memory_order
from grokfused.backends.rounding import random_key
from grokfused.state.arrays import there
from grokfused.state.sharding import local, sharded_like
from grokfused.state.storage import is_dense, same_order


def codes_in(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns the arrays of a state that are stored in 8 bits, by name; what others keep there is none."""
    arrays = {array.name: state[array.name] for array in there(state)}
    return {name: array for name, array in arrays.items() if array.dtype is block8.DTYPE}


@torch.no_grad()
def as_numbers(state: Mapping[str, Any], param: Tensor) -> dict[str, Any]:
    """Returns a state without bases: what it stores in 8 bits as bfloat16, of the parameter's shape."""
    codes = codes_in(state) if block8.BASES in state else {}
    if not codes:
        return dict(state)
    views = {name: _in_order(array, param) for name, array in codes.items()}
    stored = {name: view.reshape(-1) for name, view in views.items()}
    numbers = block8.decoded(stored, state[block8.BASES])
    shown = dict(state)
    del shown[block8.BASES]
    for name, view in views.items():
        array = torch.empty_like(local(codes[name]), dtype=torch.bfloat16)
        _in_order(array, param).copy_(numbers[name].view(view.shape))
        shown[name] = sharded_like(param, array)
    return shown


@torch.no_grad()
def in_8_bits(numbers: Mapping[str, Tensor], param: Tensor, seed: int, step: float) -> dict[str, Tensor]:
    """Returns states stored in 8 bits, and their bases.

    Numbers that 8 bits held before, in the same blocks, come back as they were; others are rounded as in a
    step.

    Args:
        numbers: By name, real and of the parameter's shape.
        param: The parameter; the states lie as it does.
        seed: Of its group.
        step: Steps taken so far.
    """
    shard = local(param)
    values = {
        name: in_memory_order(local(array), shard).reshape(-1).to(shard.device, torch.float32)
        for name, array in numbers.items()
    }
    drawn = block8.draws(shard.numel(), random_key(seed, step)).to(shard.device)
    bases = torch.zeros(block8.count_of(shard.numel()), dtype=torch.int32, device=shard.device)
    stored, bases = block8.encoded(values, bases, drawn)
    for name, array in values.items():  # a step makes no -0 of one, but what was saved may be one
        stored[name].masked_fill_(block8.laid((array == 0) & array.signbit()), block8.MINUS_0)
    found = {block8.BASES: bases}
    for name, codes in stored.items():
        array = torch.empty_like(shard, dtype=block8.DTYPE, memory_format=torch.preserve_format)
        view = in_memory_order(array, shard)
        view.copy_(codes.view(view.shape))
        found[name] = sharded_like(param, array)
    return found


def relaid(state: dict[str, Any], param: Tensor, seed: int) -> None:
    """Stores a state of 8 bits anew where its parameter lies otherwise by now."""
    shard, codes = local(param), codes_in(state)
    if is_dense(shard) and not all(same_order(shard, local(array)) for array in codes.values()):
        numbers = as_numbers(state, param)
        state |= in_8_bits({name: numbers[name] for name in codes}, param, seed, float(state["step"]))


def decode_state(optimizer: torch.optim.Optimizer, param: Tensor) -> dict[str, Tensor]:
    """Returns a live state as numbers: what ``state_dtype="block8"`` stores as codes, and other arrays too.

    Args:
        optimizer: A ``GrokAdam`` or ``GrokAdamW``.
        param: One of its parameters.

    Returns:
        By name ("exp_avg", "exp_avg_sq", ...) a copy of each array, of the parameter's shape, a window with
        one dimension before it; those of 8 and 16 bits as float32, others in their own dtype. Empty before
        the first step.

    Raises:
        ValueError: It is not a parameter of this optimizer.
    """
    if not any(param is own for group in optimizer.param_groups for own in group["params"]):
        raise ValueError("the parameter is not one of this optimizer's: give one of its param_groups'")
    numbers = as_numbers(optimizer.state.get(param, {}), param)
    arrays = {array.name: numbers[array.name] for array in there(numbers)}
    narrow = (torch.bfloat16, torch.float16)
    return {
        name: value.detach().to(torch.float32 if value.dtype in narrow else value.dtype, copy=True)
        for name, value in arrays.items()
    }


def _in_order(array: Tensor, param: Tensor) -> Tensor:
    """Returns a view of this process's shard in the order of its blocks."""
    shard = local(param)
    return in_memory_order(local(array), local(array) if is_dense(shard) else shard)
