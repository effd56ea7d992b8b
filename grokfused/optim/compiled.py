"""The step under torch.compile: one op in the graph, so that the graph need not break.

Dynamo traces ``compiled_step``; what that leaves in the graph is the op of op.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from grokfused.optim import op
from grokfused.optim.dynamo import guard_identity, keeps_back
from grokfused.state.memory import refuse_what_does_not_fit
from grokfused.state.prepare import prepare_state
from grokfused.state.sharding import is_sharded
from grokfused.step.options import check_options, refuse_incomplete


def compiled_step(optimizer: Any, closure: Callable[[], Any] | None = None) -> Any:
    """Takes a step, traced by Dynamo. Hooks are left to torch's own wrapper, which is traced around it."""
    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    name = optimizer._name
    places = None if optimizer._in_backward is not None else _traceable(name)
    if places is None:
        _untraced_step(optimizer)
        return loss
    groups = getattr(op.traced_groups, name)
    params = [param for group in groups for param in group["params"]]
    stepped = tuple([index for index, param in enumerate(params) if param.grad is not None])
    _create_states(name, stepped)
    with torch.no_grad():
        op.call(
            [params[index] for index in stepped],
            [params[index].grad for index in stepped],
            [op.rate(groups, place) for place in places],
            getattr(optimizer, "grad_scale", None),
            getattr(optimizer, "found_inf", None),
            places,
            stepped,
            name,
        )
    return loss


@_disable_dynamo
def _untraced_step(optimizer: Any) -> None:
    """Takes the ordinary step, of which Dynamo traces nothing: a break in its graph."""
    optimizer._step()


def _traceable(name: str) -> tuple[int, ...] | None:
    """Readies an optimizer for tracing. Dynamo runs this as it traces, and takes the result for a constant.

    Returns:
        Which ``op.rate`` is a tensor; or None where the graph must break: for DTensors, which the compiler
        would take apart; for complex parameters, of which Inductor (torch 2.13) makes no graph; for those on
        the meta device, which a compiler takes for values to come; and where ``keeps_back`` says so.
    """
    optimizer = op.optimizers[name]
    groups = optimizer.param_groups
    refuse_incomplete(groups, optimizer.defaults)
    setattr(op.traced_groups, name, groups)
    params = [param for group in groups for param in group["params"]]
    if any(map(_is_left_out, params)) or keeps_back(optimizer):
        return None
    guard_identity(params)
    return op.tensor_rates(groups)


def _is_left_out(param: Tensor) -> bool:
    return is_sharded(param) or param.is_complex() or param.is_meta


def _create_states(name: str, stepped: tuple[int, ...]) -> None:
    """Creates states as Dynamo traces, so that traced code finds those it would find after a step."""
    optimizer = op.optimizers[name]
    members = [(param, group) for group in optimizer.param_groups for param in group["params"]]
    new = [members[index] for index in stepped if "step" not in optimizer.state[members[index][0]]]
    for _, group in new:
        check_options(group)
    refuse_what_does_not_fit((param, optimizer.state[param], group) for param, group in new)
    for param, group in new:
        prepare_state(param, optimizer.state[param], group)


# What torch.compiler.assume_constant_result does, which would import Dynamo now.
_traceable._dynamo_marked_constant = True  # type: ignore[attr-defined]
_create_states._dynamo_marked_constant = True  # type: ignore[attr-defined]
