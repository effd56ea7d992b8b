"""What torch.compile's tracer knows of the code around a step.

Relied on beside torch's public interface, each used here alone: Dynamo's current translator and its book of
side effects (which Python objects the code being traced has changed), and the guard of identity. They are as
used from torch 2.11 to 2.14; without them ``optimizer.step()`` could not be traced, only break the graph.
Before torch 2.13 Dynamo fails where compiled code assigns to any optimizer (``break_at_assignments``).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from grokfused.step.members import Owner

Class = TypeVar("Class", bound=type)
# Whether Dynamo keeps an assignment to an optimizer for after the graph; if not, it raises an AssertionError.
TRACES_ASSIGNMENTS = torch.__version__ >= "2.13"


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


def keeps_back(optimizer: Owner) -> bool:
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


def guard_identity(params: Iterable[Tensor]) -> None:
    """Lets the graph be used only with those very parameters that it has reached by another way by now.

    Of a parameter reached twice, a graph has as its input what it reached first, the model's; and Dynamo does
    not guard that something local and something global (``op.traced_groups``) still lead to the same. What is
    reached again only after the step stays unguarded.
    """
    from torch._dynamo.guards import GuardBuilder, install_guard

    for variable in _traced(params)[1]:
        if variable.source is not None:
            install_guard(variable.source.make_guard(GuardBuilder.ID_MATCH))


def break_at_assignments(kind: Class) -> Class:
    """Lets the graph break where compiled code assigns to such an object, or deletes what was assigned.

    ``torch.amp.GradScaler`` does so: it sets ``grad_scale`` and ``found_inf`` for the time of a step.
    """

    def assign(self: Any, name: str, value: Any) -> None:
        if torch.compiler.is_dynamo_compiling():
            _assign(self, name, value)
        else:
            object.__setattr__(self, name, value)

    def delete(self: Any, name: str) -> None:
        if torch.compiler.is_dynamo_compiling():
            _delete(self, name)
        else:
            object.__delattr__(self, name)

    kind.__setattr__, kind.__delattr__ = assign, delete  # type: ignore[assignment, method-assign]
    return kind


@_disable_dynamo
def _assign(to: Any, name: str, value: Any) -> None:
    object.__setattr__(to, name, value)


@_disable_dynamo
def _delete(of: Any, name: str) -> None:
    object.__delattr__(of, name)
