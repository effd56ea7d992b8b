"""The step as an op of torch's: what torch.compile has in its graph, and what whoever records operators sees.

``grokfused::optimizer_step_`` is given the parameters, their gradients and the hyperparameters that are
tensors, and takes the ordinary step when it runs. All else it asks of the optimizer then, so that numbers,
masks and options may change between two calls of a graph. A graph holds no objects: the op is told the name
of its optimizer. The states are not among its arguments (they would be hundreds of guards and inputs); a
graph that also reads them is refused.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor

from grokfused.state.prepare import imagine_step
from grokfused.step.clipping import GradScale, given_scale
from grokfused.step.engine import ready
from grokfused.step.members import Groups, Members, Owner


class Optimizer(Owner, Protocol):
    """What the op needs of a GrokAdam."""

    _name: str

    def _accelerator_graph_capture_health_check(self) -> None: ...


optimizers: weakref.WeakValueDictionary[str, Optimizer] = weakref.WeakValueDictionary()
_numbers = itertools.count()
_BEFORE_DISPATCH = torch._C.DispatchKey.PreDispatch
# One attribute per traced optimizer: its own list of groups. What Dynamo reaches through an optimizer it
# treats specially: it guards every hyperparameter, keeps the parameters alive, sets `capturable`. Through
# this object it guards what it reads, no more.
traced_groups = SimpleNamespace()


def new_name(optimizer: Optimizer) -> str:
    """Returns a name by which a graph finds this optimizer, and never another one."""
    name = f"optimizer_{next(_numbers)}"
    optimizers[name] = optimizer
    weakref.finalize(optimizer, vars(traced_groups).pop, name, None)
    return name


def groups_exchanged(optimizer: Optimizer) -> None:
    """Shows code that is compiled already the list of groups an optimizer has now."""
    # A wrapper derived from the class, like Lightning's, has the name of what it wraps.
    if optimizer._name in vars(traced_groups) and optimizers.get(optimizer._name) is optimizer:
        setattr(traced_groups, optimizer._name, optimizer.param_groups)


def take(optimizer: Optimizer, members: Members, scale: GradScale) -> None:
    """Takes a step, through the op where someone records operators: else the record would lack it."""
    if not _is_recorded():
        ready(members, scale).run()
        return
    places = tensor_rates(members.owner.param_groups)
    every = [param for group in members.owner.param_groups for param in group["params"]]
    number = {id(param): place for place, param in enumerate(every)}
    with torch.no_grad():
        call(
            members.params,
            members.grads,
            [rate(members.owner.param_groups, place) for place in places],
            scale.get("grad_scale"),
            scale.get("found_inf"),
            places,
            [number[id(key)] for key in members.keys],
            optimizer._name,
        )


def _is_recorded() -> bool:
    """True where a mode looks at the operators that are called, as make_fx and flop counters do.

    Relied on beside torch's public interface: the length of its stack of modes, the state of its tracer, and
    the dispatch key of export's modes (torch 2.11 or newer).
    """
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._get_tracing_state()
        or torch._C._dispatch_tls_is_dispatch_key_included(_BEFORE_DISPATCH)
    )


def rate(groups: Groups, place: int) -> Any:
    """Returns a hyperparameter that may be a tensor: lr, beta1, beta2 of the first group, then the second."""
    group = groups[place // 3]
    return group["betas"][place % 3 - 1] if place % 3 else group["lr"]


def tensor_rates(groups: Groups) -> tuple[int, ...]:
    """Returns which ``rate`` is a tensor."""
    return tuple(place for place in range(3 * len(groups)) if isinstance(rate(groups, place), Tensor))


def _optimizer_step_(
    params: list[Tensor],
    grads: list[Tensor],
    rates: list[Tensor],
    grad_scale: Tensor | None,
    found_inf: Tensor | None,
    places: list[int],
    stepped: list[int],
    name: str,
) -> None:
    """Takes the ordinary step of the optimizer called ``name`` on the tensors it is given.

    The compiler may hand over copies of the parameters, to write them back when no one needs the old values
    any more; so it is ``params`` that are stepped, not those the optimizer holds.

    Args:
        params: The parameters that have a gradient.
        grads: Their gradients.
        rates: The hyperparameters that are tensors.
        grad_scale: Divides the gradients; None: by 1.
        found_inf: Where it is not 0, nothing changes; None: 0.
        places: Which ``rate`` each of ``rates`` is.
        stepped: The numbers of ``params`` among all parameters of the optimizer.
        name: The optimizer's.
    """
    optimizer = optimizers[name]
    groups = optimizer.param_groups
    if getattr(traced_groups, name, groups) is not groups:
        raise RuntimeError(
            "optimizer.param_groups was exchanged for another list after torch.compile had traced the step: "
            "change the list that is there, or call torch.compiler.reset()"
        )
    optimizer._accelerator_graph_capture_health_check()
    owned = [(param, number) for number, group in enumerate(groups) for param in group["params"]]
    keys = [owned[index][0] for index in stepped]
    group_of = [owned[index][1] for index in stepped]
    scale = given_scale(SimpleNamespace(grad_scale=grad_scale, found_inf=found_inf))
    current = _with_rates(groups, places, rates)
    ready(Members(optimizer, current, keys, params, grads, group_of), scale).run()


def _with_rates(groups: Groups, places: Sequence[int], rates: Sequence[Tensor]) -> Groups:
    """Returns the groups with the hyperparameters given, which may be newer than their own."""
    found = list(groups)
    for place, given in zip(places, rates, strict=True):
        group = found[place // 3]
        if place % 3:
            new: dict[str, Any] = {
                "betas": [given if n == place % 3 - 1 else beta for n, beta in enumerate(group["betas"])]
            }
        else:
            new = {"lr": given}
        found[place // 3] = {**group, **new}
    return found


_library = torch.library.Library("grokfused", "FRAGMENT")
_library.define(
    "optimizer_step_(Tensor(a!)[] params, Tensor[] grads, Tensor[] rates, Tensor? grad_scale, "
    "Tensor? found_inf, int[] places, int[] stepped, str name) -> ()",
    tags=(torch.Tag.cudagraph_unsafe,),  # a captured one would ask nothing of the optimizer any more
)
_library.impl("optimizer_step_", _optimizer_step_, "CompositeExplicitAutograd")
# It has no derivative; falling through says so.
_library.impl("optimizer_step_", torch.library.fallthrough_kernel, "Autograd")
call = torch.ops.grokfused.optimizer_step_.default


@torch.library.register_fake("grokfused::optimizer_step_")  # type: ignore[untyped-decorator]
def _optimizer_step_fake(*args: Any) -> None:
    """Has no output to give a shape to; but makes the states of fake parameters, for who asks for their size.

    It sees the inputs of a graph too, and refuses states among them.
    """
    params, grads, stepped, name = args[0], args[1], args[-2], args[-1]
    mode = torch._guards.detect_fake_mode(params)
    if mode is None:  # no one pretends: a parameter is on the meta device
        _optimizer_step_(*args)
        return
    members = [(param, group) for group in optimizers[name].param_groups for param in group["params"]]
    for (param, group), grad in zip((members[index] for index in stepped), grads, strict=True):
        if mode.is_our_fake(param):
            imagine_step(param, grad, group, optimizers[name].state[param])
    _refuse_states_among(mode.fake_tensor_converter.meta_converter.describer.lookup_tensor, name)


def _refuse_states_among(inputs: Any, name: str) -> None:
    states = (state for state in optimizers[name].state.values() if isinstance(state, dict))
    values = (value for state in states for value in state.values())
    if any(isinstance(value, Tensor) and value in inputs for value in values):
        raise RuntimeError(
            "a compiled function takes an optimizer step and reads optimizer.state, which the compiler does "
            "not know to be changed by the step: call torch._dynamo.graph_break() between the two, or read "
            "the state elsewhere"
        )
