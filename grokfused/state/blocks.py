"""States that are stored by a value that blocks share, and the numbers that they mean.

Blocks are counted in the memory of one process's shard: so numbers are what is saved, spread anew and laid
otherwise. A state without its shared value holds numbers; the next step stores them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from grokfused.backends import blocks
from grokfused.backends.reference import SHARED, in_memory_order, real_dtype
from grokfused.state.sharding import local, sharded_like
from grokfused.state.storage import is_dense, same_order

Change = Callable[[dict[str, Tensor], Mapping[str, blocks.Shared]], dict[str, Tensor]]


def as_numbers(state: Mapping[str, Any], param: Tensor) -> dict[str, Any]:
    """Returns a state without shared values: what was stored by them as the numbers that it means."""
    shared = {name: row for name, row in SHARED.items() if name in state}
    if not shared:
        return dict(state)
    numbers = _changed(state, param, shared, blocks.decoded)
    return {key: value for key, value in {**state, **numbers}.items() if key not in shared}


def take_numbers(state: dict[str, Any], param: Tensor) -> None:
    """Makes numbers of what is stored by shared values, where the parameter lies otherwise by now."""
    shard = local(param)
    names = [name for key, row in SHARED.items() if key in state for name in row.states]
    if is_dense(shard) and not all(same_order(shard, local(state[name])) for name in names):
        numbers = as_numbers(state, param)
        state.clear()
        state.update(numbers)


def as_stored(state: Mapping[str, Any], param: Tensor, name: str) -> dict[str, Tensor]:
    """Returns the arrays of a state that are stored by the shared value called ``name``, and that itself."""
    shared = {name: SHARED[name]}
    return _changed(state, param, shared, blocks.encoded)


@torch.no_grad()
def _changed(
    state: Mapping[str, Any], param: Tensor, shared: Mapping[str, blocks.Shared], change: Change
) -> dict[str, Tensor]:
    arrays = {name: local(state[name]) for row in shared.values() for name in row.states}
    shard, real = local(param), real_dtype(param.dtype)
    values, views = dict[str, Tensor](), dict[str, Tensor]()
    for name, array in arrays.items():
        arrays[name] = array.clone()
        views[name] = in_memory_order(_real(arrays[name]), _real(array if is_dense(shard) else shard))
        values[name] = views[name].reshape(-1).to("cpu", real)
        count = len(values[name])
    values |= {name: blocks.spread(state[name].to("cpu"), count) for name in shared if name in state}
    new = change(values, shared)
    for name, view in views.items():
        view.copy_(new[name].view(view.shape))
    firsts = {name: new[name][:: blocks.BLOCK].contiguous().to(shard.device) for name in shared}
    return {name: sharded_like(param, array) for name, array in arrays.items()} | firsts


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
