"""The step under torch.compile: one op in the graph, so that the graph need not break.

Dynamo traces ``compiled_step``; what that leaves in the graph is ``grokfused::optimizer_step_``, which is
given the parameters, their gradients and the hyperparameters that are tensors, and takes the ordinary step
when it runs. All else it asks of the optimizer then, so that numbers, masks and options may change between
two calls and nothing is compiled anew. A graph holds no objects: the op is told the name of its optimizer.

The states are not among the op's arguments (they would be hundreds of guards and inputs); a graph that also
reads them is refused.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from grokfused.buckets import prepare_state
from grokfused.grad_scale import given_scale
from grokfused.options import check_options, refuse_incomplete
from grokfused.sharding import is_sharded

if TYPE_CHECKING:
    from grokfused.optimizer import GrokAdam

Groups = Sequence[dict[str, Any]]

_optimizers: weakref.WeakValueDictionary[str, GrokAdam] = weakref.WeakValueDictionary()
_numbers = itertools.count()
# One attribute per traced optimizer: its own list of groups. What Dynamo reaches through an optimizer it
# treats specially: it guards every hyperparameter, keeps the parameters alive, sets `capturable`. Through
# this object it guards what it reads, no more.
_groups = SimpleNamespace()


def new_name(optimizer: GrokAdam) -> str:
    """Returns a name by which compiled code finds this optimizer, and never another one."""
    name = f"optimizer_{next(_numbers)}"
    _optimizers[name] = optimizer
    weakref.finalize(optimizer, vars(_groups).pop, name, None)
    return name


def groups_exchanged(optimizer: GrokAdam) -> None:
    """Shows code that is compiled already the list of groups an optimizer has now."""
    # A wrapper derived from the class, like Lightning's, has the name of what it wraps.
    if optimizer._name in vars(_groups) and _optimizers.get(optimizer._name) is optimizer:
        setattr(_groups, optimizer._name, optimizer.param_groups)


def compiled_step(optimizer: GrokAdam, closure: Callable[[], Any] | None = None) -> Any:
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
    groups = getattr(_groups, name)
    params = [param for group in groups for param in group["params"]]
    stepped = tuple([index for index, param in enumerate(params) if param.grad is not None])
    _create_states(name, stepped)
    with torch.no_grad():
        torch.ops.grokfused.optimizer_step_.default(
            [params[index] for index in stepped],
            [params[index].grad for index in stepped],
            [_rate(groups, place) for place in places],
            getattr(optimizer, "grad_scale", None),
            getattr(optimizer, "found_inf", None),
            places,
            stepped,
            name,
        )
    return loss


@_disable_dynamo
def _untraced_step(optimizer: GrokAdam) -> None:
    """Takes the ordinary step, of which Dynamo traces nothing: a break in its graph."""
    optimizer._step()


def _rate(groups: Groups, place: int) -> Any:
    """Returns a hyperparameter that may be a tensor: lr, beta1, beta2 of the first group, then the second."""
    group = groups[place // 3]
    return group["betas"][place % 3 - 1] if place % 3 else group["lr"]


def _traceable(name: str) -> tuple[int, ...] | None:
    """Readies an optimizer for tracing. Dynamo runs this as it traces, and takes the result for a constant.

    Returns:
        Which ``_rate`` is a tensor; or None where the graph must break: for DTensors, which the compiler
        would take apart, and where ``_keeps_back`` says so.
    """
    optimizer = _optimizers[name]
    groups = optimizer.param_groups
    refuse_incomplete(groups, optimizer.defaults)
    setattr(_groups, name, groups)
    params = [param for group in groups for param in group["params"]]
    if any(map(is_sharded, params)) or _keeps_back(optimizer):
        return None
    _guard_identity(params)
    return tuple(place for place in range(3 * len(groups)) if isinstance(_rate(groups, place), Tensor))


def _create_states(name: str, stepped: tuple[int, ...]) -> None:
    """Creates states as Dynamo traces, so that traced code finds those it would find after a step."""
    optimizer = _optimizers[name]
    members = [(param, group) for group in optimizer.param_groups for param in group["params"]]
    for param, group in (members[index] for index in stepped):
        if "step" not in optimizer.state[param]:
            check_options(group)
            prepare_state(param, optimizer.state[param], group)


# What torch.compiler.assume_constant_result does, which would import Dynamo now.
_traceable._dynamo_marked_constant = True  # type: ignore[attr-defined]
_create_states._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _traced(objects: Iterable[Any]) -> tuple[Any, list[Any]]:
    """Returns Dynamo's book of side effects, and its entries for those of the objects that it knows."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    try:
        tracer = InstructionTranslator.current_tx()
    except AttributeError:  # Dynamo has never run
        tracer = None
    if tracer is None:  # something else traces, and keeps nothing back
        return None, []
    book = tracer.output.side_effects
    return book, [book.id_to_variable[id(each)] for each in objects if id(each) in book.id_to_variable]


def _keeps_back(optimizer: GrokAdam) -> bool:
    """True where the code being traced has changed what the op would not find changed.

    Dynamo puts changes of Python objects into effect after the graph: of a hyperparameter, a list of
    parameters. It has looked at the states, that are created now. Or it has set a gradient to None, which is
    a shared constant that Dynamo (torch 2.13) spoils when the gradient is read then.
    """
    groups, states = optimizer.param_groups, optimizer.state
    lists = [group["params"] for group in groups]
    book, changeable = _traced([groups, *groups, *lists])
    params = _traced(param for params in lists for param in params)[1]
    return (
        bool(_traced([states, *states.values()])[1])
        or any(map(book.is_modified, changeable))
        or any(
            book.load_attr(param, "grad", deleted_ok=True).is_python_constant()
            for param in params
            if book.has_pending_mutation_of_attr(param, "grad")
        )
    )


def _guard_identity(params: Iterable[Tensor]) -> None:
    """Lets the graph be used only with those very parameters that it has reached by another way by now.

    Of a parameter reached twice, a graph has as its input what it reached first, the model's; and Dynamo does
    not guard that something local and something global (``_groups``) still lead to the same. What is reached
    again only after the step stays unguarded.
    """
    from torch._dynamo.guards import GuardBuilder, install_guard

    for variable in _traced(params)[1]:
        if variable.source is not None:
            install_guard(variable.source.make_guard(GuardBuilder.ID_MATCH))


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
        grad_scale: What torch.amp.GradScaler has set, or None.
        found_inf: The same.
        places: Which ``_rate`` each of ``rates`` is.
        stepped: Which of the optimizer's parameters ``params`` are, in the order of the groups.
        name: See ``new_name``.
    """
    optimizer = _optimizers[name]
    groups = optimizer.param_groups
    if getattr(_groups, name, None) is not groups:
        raise RuntimeError(
            "optimizer.param_groups was exchanged for another list after torch.compile had traced the step: "
            "change the list that is there, or call torch.compiler.reset()"
        )
    optimizer._accelerator_graph_capture_health_check()
    every = [param for group in groups for param in group["params"]]
    scale = given_scale(SimpleNamespace(grad_scale=grad_scale, found_inf=found_inf))
    with _standing_in(groups, places, rates):
        ready, scale = optimizer._ready([every[index] for index in stepped], grads, scale)
    for bucket, own, scalars in ready:
        given = [params[index] for index in bucket.indices]
        bucket.knows(given, own)
        bucket.step_(given, own, scalars, scale)


@contextmanager
def _standing_in(groups: Groups, places: Sequence[int], rates: Sequence[Tensor]) -> Iterator[None]:
    """Puts given hyperparameters, which may be newer than the groups' own, in their place for a while."""
    touched = [groups[number] for number in {place // 3 for place in places}]
    own = [(group, {"lr": group["lr"], "betas": group["betas"]}) for group in touched]
    for place, rate in zip(places, rates, strict=True):
        group = groups[place // 3]
        if place % 3:
            group["betas"] = [rate if n == place % 3 - 1 else beta for n, beta in enumerate(group["betas"])]
        else:
            group["lr"] = rate
    try:
        yield
    finally:
        for group, values in own:
            group.update(values)


_library = torch.library.Library("grokfused", "FRAGMENT")
_library.define(
    "optimizer_step_(Tensor(a!)[] params, Tensor[] grads, Tensor[] rates, Tensor? grad_scale, "
    "Tensor? found_inf, int[] places, int[] stepped, str name) -> ()",
    tags=(torch.Tag.cudagraph_unsafe,),  # a captured one would ask nothing of the optimizer any more
)
_library.impl("optimizer_step_", _optimizer_step_, "CompositeExplicitAutograd")
# It has no derivative; falling through says so.
_library.impl("optimizer_step_", torch.library.fallthrough_kernel, "Autograd")


@torch.library.register_fake("grokfused::optimizer_step_")  # type: ignore[untyped-decorator]
def _optimizer_step_fake(*args: Any) -> None:
    """Has no output to give a shape to; but sees the inputs of the graph, and refuses states among them."""
    params, name = args[0], args[-1]
    mode = torch._guards.detect_fake_mode(params)
    if mode is None:
        return
    inputs = mode.fake_tensor_converter.meta_converter.describer.lookup_tensor
    states = (value for state in _optimizers[name].state.values() for value in state.values())
    if any(isinstance(value, Tensor) and value in inputs for value in states):
        raise RuntimeError(
            "a compiled function takes an optimizer step and reads optimizer.state, which the compiler does "
            "not know to be changed by the step: call torch._dynamo.graph_break() between the two, or read "
            "the state elsewhere"
        )
