"""Which bucket each parameter is in, kept from step to step until something it depends on changes."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grokfused import backends
from grokfused.buckets import Bucket, check_state, into_buckets, kind_of, prepare_state
from grokfused.options import check_options
from grokfused.storage import check_has_values, check_param, fitting_grad

Groups = Sequence[dict[str, Any]]
# The hyperparameters, which schedulers change, only matter to the scalars of a step.
SCALARS = {"params", "lr", "betas", "eps", "weight_decay", "alpha", "lamb"}


def _same(new: Sequence[Any], old: Sequence[Any]) -> bool:
    """True when two lists hold the same objects (== would compare tensors element by element)."""
    return len(new) == len(old) and all(map(operator.is_, new, old))


def _memory_orders(tensors: Sequence[Tensor]) -> list[bool | tuple[int, ...]] | None:
    """Returns, per tensor, True for C order or else its strides; None when one is sparse."""
    try:
        orders: list[bool | tuple[int, ...]] = list(map(Tensor.is_contiguous, tensors))
        if not all(orders):
            orders = [order or tensor.stride() for order, tensor in zip(orders, tensors, strict=True)]
        return orders
    except (RuntimeError, NotImplementedError):
        return None


def _options(groups: Groups) -> list[tuple[Any, ...]]:
    """Returns what the buckets depend on in each group."""
    return [
        (
            len(group["params"]),
            not group["weight_decay"],
            *(value for name, value in group.items() if name not in SCALARS),
        )
        for group in groups
    ]


def _names(groups: Groups) -> dict[Tensor, str]:
    """Returns how messages call each parameter."""
    return {
        param: f"parameter {name!r} of group {number} (shape {list(param.shape)})"
        for number, group in enumerate(groups)
        for name, param in zip(
            group.get("param_names", range(len(group["params"]))), group["params"], strict=True
        )
    }


class Plan:
    """The buckets for one list of parameters, and everything they were made for.

    Args:
        groups: The optimizer's parameter groups.
        states: The optimizer's states; missing ones are created.
        stepped: The parameters that have a gradient, in the order of the groups.
        decay: "coupled" or "decoupled".

    Raises:
        ValueError, TypeError, RuntimeError, BackendUnavailable: An option, a parameter, a state or a
            gradient cannot be used; nothing was changed.
    """

    def __init__(
        self, groups: Groups, states: dict[Tensor, dict[str, Any]], stepped: list[Tensor], decay: str
    ) -> None:
        for group in groups:
            check_options(group)
        owners = {param: group for group in groups for param in group["params"]}
        every_name = _names(groups)
        self.names = [every_name[param] for param in stepped]
        for param, name in zip(stepped, self.names, strict=True):
            check_param(param, name)
            check_has_values(param, name)
            check_state(param, states.get(param, {}), name)
            backends.choose(owners[param]["backend"], kind_of(param))
        self.groups, self.stepped = list(groups), stepped
        self.grads_fit()
        members = [(param, states[param], owners[param]) for param in stepped]
        for member in members:
            prepare_state(*member)
        self.buckets: list[Bucket] = into_buckets(members, decay)
        self.states = list(states.values())
        self.stepped_states = [state for _, state, _ in members]
        self.addresses = list(map(Tensor.data_ptr, stepped))
        self.shapes = [param.shape for param in stepped]
        self.orders = _memory_orders(stepped)
        self.options = _options(groups)
        # One bucket whose op checks every tensor before it changes the first one needs no second check.
        self.op_checks_all = len(self.buckets) == 1 and self.buckets[0].checks_tensors

    def holds(self, groups: Groups, states: Mapping[Tensor, Any], stepped: list[Tensor]) -> bool:
        """True while nothing the buckets depend on was exchanged."""
        return (
            _same(stepped, self.stepped)
            and list(map(Tensor.data_ptr, stepped)) == self.addresses
            and [param.shape for param in stepped] == self.shapes
            and _memory_orders(stepped) == self.orders
            and _same(list(states.values()), self.states)
            and _same(groups, self.groups)
            and _options(groups) == self.options
            and all(bucket.owns_steps() for bucket in self.buckets)
        )

    def grads(self, found: list[Tensor]) -> list[Tensor]:
        """Returns the gradients, each in its parameter's memory order.

        Raises:
            RuntimeError: A gradient does not fit its parameter; nothing was changed.
        """
        shapes = [grad.shape for grad in found]
        if self.op_checks_all and shapes == self.shapes and _memory_orders(found) == self.orders:
            return found
        for param, state, name in zip(self.stepped, self.stepped_states, self.names, strict=True):
            check_state(param, state, name)
        return self.grads_fit()

    @torch.no_grad()
    def grads_fit(self) -> list[Tensor]:
        """Checks every gradient and copies those that lie in another order than their parameter."""
        return [
            fitting_grad(param, param.grad, name)
            for param, name in zip(self.stepped, self.names, strict=True)
            if param.grad is not None
        ]
