"""Who else has to do with a model or an optimizer, as far as it can be told while the program runs.

Wrappers leave no trace on what they wrap, so living objects are looked through: tens of milliseconds in a
large program. Ask once, and only where an answer matters. Relied on beside torch's public interface: the mark
of FSDP1 on its parameters (``_fsdp_flattened``), and DDP's ``parameters_to_ignore``.
"""

from __future__ import annotations

import gc
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor

Kind = TypeVar("Kind")


def living(kind: type[Kind]) -> Iterator[Kind]:
    """Yields the living instances of a class, told by their type: asking for `__class__` may run code."""
    return (found for found in gc.get_objects() if issubclass(type(found), kind))


def exchanged_by_ddp(params: Iterable[Tensor]) -> Tensor | None:
    """Returns the first parameter whose gradients a DistributedDataParallel exchanges, or None."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    exchanged = {
        id(param)
        for model in living(torch.nn.parallel.DistributedDataParallel)
        for name, param in model.module.named_parameters()
        if name not in getattr(model, "parameters_to_ignore", ())
    }
    return next((param for param in params if id(param) in exchanged), None)


_looked: WeakSet[Any] = WeakSet()  # the optimizers that `warn_of_partial_norm` has looked at


def warn_of_partial_norm(optimizer: Any, params: Iterable[Tensor]) -> None:
    """Warns, once, where the gradients of an optimizer are a part, and it cannot know the norm of all.

    Args:
        optimizer: One that clips.
        params: Its parameters.
    """
    if optimizer in _looked or not _several_processes():
        return
    _looked.add(optimizer)
    if any(hasattr(param, "_fsdp_flattened") for param in params):  # FSDP1's mark
        who, instead = "FullyShardedDataParallel", "its own clip_grad_norm_"
    elif any(getattr(zero, "optim", None) is optimizer for zero in _living_zero()):
        who, instead = "ZeroRedundancyOptimizer", "torch.nn.utils.clip_grad_norm_ of all parameters"
    else:
        return
    warnings.warn(
        f"max_grad_norm limits the norm of the gradients that this process has, and {who} gives each process "
        f"a part of them: leave it out and call {instead} before the step, or use fully_shard (FSDP2)",
        stacklevel=2,
    )


def _several_processes() -> bool:
    there = torch.distributed.is_available() and torch.distributed.is_initialized()
    return there and torch.distributed.get_world_size() > 1


def _living_zero() -> Iterator[Any]:
    """Yields the ZeroRedundancyOptimizers; where no one has imported the class there can be none."""
    module = sys.modules.get("torch.distributed.optim.zero_redundancy_optimizer")
    return iter(()) if module is None else living(module.ZeroRedundancyOptimizer)


def collision(
    groups: Iterable[Mapping[str, Any]], options: Mapping[str, Any], kind: type[Any], taker: str
) -> str | None:
    """Says that a group that another optimizer has too, as wrappers share theirs, brings options of its own.

    Args:
        groups: The groups an optimizer is made of.
        options: Those of its options that other optimizers may mean otherwise.
        kind: The class of all optimizers.
        taker: How the optimizer is called.
    """
    brought = {
        name: group[name]
        for group in groups
        for name in options
        if name in group and repr(group[name]) != repr(options[name])
    }
    if not brought:
        return None
    own = {id(group) for group in groups}
    for other in living(kind):
        if own & {id(group) for group in getattr(other, "param_groups", ())}:
            name = type(other).__name__
            return (
                f"{brought} stands in the parameter groups that {name} shares, and is read as an option "
                f"of {taker}. If it is one of {name}: make {name} with another base optimizer, then "
                f"replace that by a {taker} with groups of its own (docs/trainers.md)"
            )
    return None
