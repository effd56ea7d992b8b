"""The parameters that a step is asked to step, and how messages call them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import compress
from typing import Any, NamedTuple, Protocol

from torch import Tensor
from torch.nn.parameter import is_lazy

from grokfused.backends import native_table

Groups = Sequence[dict[str, Any]]
State = dict[str, Any]


class Owner(Protocol):
    """The optimizer, as far as a step knows it."""

    param_groups: list[dict[str, Any]]
    state: defaultdict[Tensor, Any]
    defaults: dict[str, Any]
    decay: str  # "coupled" or "decoupled"

    def as_stepped(self, members: Members) -> Members:
        """Returns what is stepped with the groups as the step shall read them, mostly as they are."""


class Members(NamedTuple):
    """What is stepped, an entry per parameter that has a gradient, as it is at this moment.

    Attributes:
        owner: The optimizer, whose states they have.
        groups: Its parameter groups, or what stands for them.
        keys: The parameters as groups and states know them.
        params: Those that are stepped: the same, unless compiled code steps copies.
        grads: Their gradients.
        group_of: The number of each one's group.
    """

    owner: Owner
    groups: Groups
    keys: list[Tensor]
    params: list[Tensor]
    grads: list[Tensor]
    group_of: list[int]

    def part(self, begin: int, end: int) -> Members:
        """Returns the parameters from one place up to another."""
        some = slice(begin, end)
        tensors = (self.keys[some], self.params[some], self.grads[some])
        return Members(self.owner, self.groups, *tensors, self.group_of[some])

    def some(self, there: Sequence[bool]) -> Members:
        """Returns the parameters in the places where ``there`` is True."""
        keys, params, grads = (list(compress(each, there)) for each in self[2:5])
        return Members(self.owner, self.groups, keys, params, grads, list(compress(self.group_of, there)))

    def about(self, place: int) -> tuple[Tensor, Mapping[str, Any], Mapping[str, Any]]:
        """Returns the parameter in a place, its state and its group."""
        state = self.owner.state.get(self.keys[place], {})
        return self.params[place], state, self.groups[self.group_of[place]]

    def name(self, place: int) -> Name:
        """Returns how messages call the parameter in a place."""
        return Name(self.owner.param_groups, self.keys[place])


def with_grads(owner: Owner) -> Members:
    """Returns all parameters of an optimizer that have a gradient."""
    groups = owner.param_groups
    if table := native_table():
        keys, grads, group_of = table.with_grads(groups)
        return Members(owner, groups, keys, keys, grads, group_of)
    keys = [param for group in groups for param in group["params"]]
    grads = [param.grad for param in keys]
    group_of = [number for number, group in enumerate(groups) for _ in group["params"]]
    return Members(owner, groups, keys, keys, grads, group_of).some([grad is not None for grad in grads])


class Name:
    """How messages call a parameter; put together only where there is a message."""

    def __init__(self, groups: Groups, param: Tensor) -> None:
        self.groups, self.param = groups, param

    def __str__(self) -> str:
        return param_names(self.groups).get(self.param, f"a parameter ({_shown(self.param)})")


def param_names(groups: Groups) -> dict[Tensor, str]:
    """Returns how messages call each parameter."""
    found: dict[Tensor, str] = {}
    for number, group in enumerate(groups):
        for name, param in zip(_names(group), group["params"], strict=True):
            # Of one that is listed twice, the first name.
            found.setdefault(param, f"parameter {name!r} of group {number} ({_shown(param)})")
    return found


def _shown(param: Tensor) -> str:
    return "not initialised yet" if is_lazy(param) else f"shape {list(param.shape)}"


def _names(group: Mapping[str, Any]) -> Iterable[object]:
    names = group.get("param_names", ())
    count = len(group["params"])
    return names if len(names) == count else range(count)
