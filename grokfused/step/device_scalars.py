"""The scalars of a step that only the device can number: captured in a graph, or under a loss scale.

Whether a step counts is then known to the device alone (an overflow cancels it), and the host must not wait
for it. The formulas are those of ``scalars.derive``: the native backend has a kernel of them (csrc/rows.h),
for others they run on float64 tensors of the device. Its powers may differ from the host's in the last bit,
which float32 does not show; a step in float64 does.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grokfused.backends.reference import Scalars
from grokfused.step.grad_filter import Gate, gate_of
from grokfused.step.scalars import (
    TENSORS,
    Hyperparameters,
    checked_hyperparameters,
    derive,
    grad_factor,
    pair_of_betas,
)

Group = Mapping[str, Any]


def table(
    groups: Sequence[Group],
    group_of: Sequence[int],
    starts: Sequence[float],
    steps: Sequence[Tensor],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Returns the scalars of the step after ``steps``: ``dtype`` [tensors, fields of Scalars], on the device.

    A hyperparameter that is a number is copied there, and a graph replays the one that was captured. A
    learning rate or a beta that is a tensor of the device is read there in every step. All that a captured
    graph reads is made while it is captured, and so is the graph's own.

    Args:
        groups: The parameter groups.
        group_of: Tensor -> the number of its group.
        starts: Tensor -> the step in which its filter's memory starts as the gradient itself.
        steps: Tensor -> its step counter, float32 of one element, on the device.
        device: Where the tensors are.
        dtype: In which numbers they are stepped. (default: torch.float32)

    Raises:
        TypeError, ValueError: A hyperparameter is no number or out of range; the message names it.
    """
    own = sorted(set(group_of))
    numbers = {number: _numbers(groups[number], device) for number in own}
    host = [*zip(*(numbers[number] for number in group_of), strict=True), starts]
    *columns, first = _on_device(host, device)
    for index in range(len(_rates(groups[own[0]]))):
        given = {number: _rates(groups[number])[index] for number in own}
        if any(_reads(rate, device) for rate in given.values()):
            columns[index] = _read_on_device(columns[index], given, group_of, device)
    lr, beta1, beta2, eps, weight_decay, alpha, lamb, factor, *gate = columns
    step = torch.stack([counter.reshape(()) for counter in steps]).double() + 1.0
    values: Any = Hyperparameters(lr, (beta1, beta2), eps, weight_decay, alpha, lamb)  # type: ignore[arg-type]
    gates: Any = Gate(*gate)  # type: ignore[arg-type]
    row: Any = derive(values, gates, step=step, first=first, grad_factor=factor, arithmetic=TENSORS)
    return torch.stack(row, dim=1).to(dtype)


def derive_there(
    groups: Sequence[Group], walk: Any, bucket: int, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Returns what ``table`` does for a bucket of the native backend: in one launch, by csrc/rows.h."""
    group_of = walk.groups(bucket)
    rows = torch.empty((len(group_of), len(Scalars._fields)), dtype=dtype, device=device)
    known = {
        number: (_numbers(groups[number], device), _read_there(groups[number], device))
        for number in {*group_of}
    }
    walk.derive_there(bucket, rows, known)
    return rows


def _read_there(group: Group, device: torch.device) -> tuple[Tensor | None, ...]:
    """Returns the rates that are tensors of the device, as float32 or float64."""
    return tuple(_as_read(rate) if _reads(rate, device) else None for rate in _rates(group))


def _as_read(rate: Tensor) -> Tensor:
    exact = rate.dtype in (torch.float32, torch.float64) and not rate.is_neg()
    return rate.detach() if exact else rate.detach().double().resolve_neg()


def _rates(group: Group) -> tuple[Any, ...]:
    """Returns what may be a tensor, in the order of ``Hyperparameters``."""
    return (group["lr"], *pair_of_betas(group["betas"]))


def _reads(value: object, device: torch.device) -> bool:
    """True for a tensor whose value the host must not ask for."""
    return isinstance(value, Tensor) and value.device == device and value.numel() == 1


def _numbers(group: Group, device: torch.device) -> tuple[float, ...]:
    """Returns what the host knows: hyperparameters, the gradients' factor, and the filter's gate."""
    known = dict(group)
    if _reads(group["lr"], device):
        known["lr"] = 0.0
    known["betas"] = [0.0 if _reads(beta, device) else beta for beta in pair_of_betas(group["betas"])]
    lr, betas, *others = checked_hyperparameters(known)
    return (lr, *betas, *others, grad_factor(group), *gate_of(group))


def _on_device(columns: Sequence[Sequence[float]], device: torch.device) -> list[Tensor]:
    """Returns columns of numbers as float64 on the device, without waiting for it."""
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        # A captured copy would read the host's memory at each replay; a fill keeps its number.
        return [torch.cat([_filled(*run, device) for run in _runs(column)]) for column in columns]
    # Pinned: a copy of pageable memory may wait for what the device is doing.
    host = torch.tensor(columns, dtype=torch.float64, device="cpu", pin_memory=device.type == "cuda")
    return list(host.to(device, non_blocking=True).unbind())


def _filled(number: float, count: int, device: torch.device) -> Tensor:
    return torch.full((count,), number, dtype=torch.float64, device=device)


def _runs(numbers: Sequence[float]) -> list[tuple[float, int]]:
    return [(number, len(list(run))) for number, run in itertools.groupby(numbers)]


def _read_on_device(
    column: Tensor, given: Mapping[int, object], group_of: Sequence[int], device: torch.device
) -> Tensor:
    """Returns a column in which rates that are tensors of the device stand for those of the host."""
    parts, begin = [], 0
    for number, count in _runs(group_of):
        rate = given[int(number)]
        part = column[begin : begin + count]
        if isinstance(rate, Tensor) and _reads(rate, device):
            part = rate.detach().double().reshape(1).expand(count)
        parts.append(part)
        begin += count
    return torch.cat(parts)
