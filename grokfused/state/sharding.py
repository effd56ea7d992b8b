"""Parameters spread over processes (DTensor: FSDP2, tensor parallelism): each process steps its shard.

All that is known of DTensor stands here. A program that has none never imports it: it takes longer than
the rest of grokfused. Only ``gathered_grad`` communicates, for a gradient laid out unlike its parameter.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter


def dtensor_class() -> type | None:
    """Returns DTensor, or None where no one has imported it: then there can be none."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", None)


def is_sharded(tensor: object) -> bool:
    """True for a DTensor."""
    if type(tensor) in (Tensor, Parameter):
        return False
    kind = dtensor_class()
    return kind is not None and isinstance(tensor, kind)


def local(tensor: Tensor) -> Tensor:
    """Returns this process's shard, or the tensor itself where it is no DTensor; both share memory."""
    shard: Tensor = tensor._local_tensor if is_sharded(tensor) else tensor  # type: ignore[attr-defined]
    return shard


def shards(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns ``local`` of each, in a third of the time where all are DTensors."""
    try:
        return list(map(attrgetter("_local_tensor"), tensors))
    except AttributeError:
        return [local(tensor) for tensor in tensors]


ONE_PER_BLOCK = 0  # in place of a number of planes: one value for each block of a shard, a plain tensor


def planed(shape: Sequence[int], planes: int) -> Sequence[int]:
    """Returns a shape that has so many planes of ``shape``, or itself for one."""
    return shape if planes == 1 else (planes, *shape)


def _placements(spec: Any, planes: int) -> tuple[Any, ...]:
    """Returns how planes of a spread tensor are spread: each like it."""
    if planes == 1:
        return tuple(spec.placements)
    return tuple(type(p)(p.dim + 1) if p.is_shard() else p for p in spec.placements)


def sharded_like(like: Tensor, shard: Tensor, planes: int = 1) -> Tensor:
    """Returns a shard as the DTensor that it is a part of, laid out as ``like``; itself if that is none.

    Args:
        like: The tensor whose layout it has.
        shard: This process's part, of the shape of that of ``like``, or of so many planes of it.
        planes: How many. (default: 1)
    """
    if not is_sharded(like) or planes == ONE_PER_BLOCK:
        return shard
    from torch.distributed.tensor import DTensor

    spec = spec_of(like)
    # The shape is given, not asked of the other processes: shards may differ in length, and be empty.
    shape, stride = (
        planed(like.shape, planes),
        (like.stride() if planes == 1 else (like.numel(), *like.stride())),
    )
    spread = DTensor.from_local(
        shard, spec.mesh, _placements(spec, planes), run_check=False, shape=torch.Size(shape), stride=stride
    )
    if planes == 1:  # the very tuple: so each step sees at a glance that the two are spread alike
        spread._spec.placements = spec.placements
    return spread


def part_of(like: Tensor, whole: Tensor) -> Tensor:
    """Returns the DTensor, laid out as ``like``, of a tensor that each process has whole."""
    from torch.distributed.tensor import distribute_tensor

    spec = spec_of(like)
    return distribute_tensor(whole.to(like.device), spec.mesh, spec.placements, src_data_rank=None)


def spec_of(tensor: Tensor) -> Any:
    """Returns over which processes a DTensor is spread, and how; None for another tensor."""
    return tensor._spec if is_sharded(tensor) else None  # type: ignore[attr-defined]


def _shown(tensor: object) -> str:
    if not is_sharded(tensor):
        return "a plain tensor"
    spec = spec_of(tensor)  # type: ignore[arg-type]
    return f"a DTensor of placements {spec.placements} on {spec.mesh}"


def unlike(param: Tensor, other: Tensor, *, planes: int = 1, any_placements: bool = False) -> str | None:
    """Says how a tensor that belongs to a parameter, in planes, is spread otherwise than it, or None."""
    own, mine = spec_of(param), spec_of(other)
    if planes == ONE_PER_BLOCK:
        return None if mine is None else f"must be a plain tensor, got {_shown(other)}"
    if own is mine:
        return None
    if own is not None and mine is not None and own.mesh == mine.mesh:  # noqa: SIM102
        if any_placements or _placements(own, planes) == tuple(mine.placements):
            return None
    return f"must be {_shown(param)} like the parameter, got {_shown(other)}"


def is_spread_at_sight(param: Tensor, other: Tensor, planes: int = 1) -> bool:
    """True where a native step sees that a tensor is spread like its parameter (csrc/place.h)."""
    own, mine = spec_of(param), spec_of(other)
    if planes == ONE_PER_BLOCK:
        return mine is None
    return own is mine or (own.mesh is mine.mesh and (planes > 1 or own.placements is mine.placements))


def is_partial(tensor: Tensor) -> bool:
    """True for a DTensor whose value is a sum over processes that has not been taken yet."""
    return is_sharded(tensor) and any(placement.is_partial() for placement in spec_of(tensor).placements)


def gathered_grad(param: Tensor, grad: Tensor) -> Tensor:
    """Returns this process's shard of a gradient, laid out as its parameter: summed or moved if it is not.

    Tensor parallelism leaves gradients that are yet to be summed, as those of a replicated norm.
    """
    if unlike(param, grad):
        spec = spec_of(param)
        grad = grad.redistribute(spec.mesh, spec.placements)  # type: ignore[attr-defined]
    shard = local(grad)
    # What a collective has not finished yet; other tensors have no `wait`.
    wait = getattr(shard, "wait", None)
    return wait() if wait else shard
