"""Which bucket each parameter is in, kept from step to step until something it depends on changes."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from grokfused import backends
from grokfused.buckets import STATE_ARRAYS, Bucket, check_state, into_buckets, kind_of, prepare_state
from grokfused.options import check_options
from grokfused.sharding import local, local_grads, spec_of
from grokfused.storage import check_grad, check_has_values, check_param, fitting_grad

Groups = Sequence[dict[str, Any]]
# The hyperparameters, which schedulers change, only matter to the scalars and the scale of a step.
SCALARS = {"params", "lr", "betas", "eps", "weight_decay", "alpha", "lamb", "max_grad_norm"}


def _same(new: Sequence[Any], old: Sequence[Any]) -> bool:
    """True when two lists hold the same objects (== would compare tensors element by element)."""
    return len(new) == len(old) and all(map(operator.is_, new, old))


def _names_of(group: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the names of a group's entries that its buckets depend on."""
    return tuple(name for name in group if name not in SCALARS)


def _options(groups: Groups, names: Sequence[tuple[str, ...]]) -> list[Any]:
    """Returns what the buckets depend on in each group; raises KeyError where one has lost an entry."""
    return [
        (len(group), len(group["params"]), not group["weight_decay"], *itemgetter(*own)(group))
        for group, own in zip(groups, names, strict=True)
    ]


def _names(group: Mapping[str, Any]) -> Sequence[object]:
    names = group.get("param_names", ())
    count = len(group["params"])
    return names if len(names) == count else range(count)


def param_names(groups: Groups) -> dict[Tensor, str]:
    """Returns how messages call each parameter."""
    return {
        param: f"parameter {name!r} of group {number} (shape {list(param.shape)})"
        for number, group in enumerate(groups)
        for name, param in zip(_names(group), group["params"], strict=True)
    }


def _refuse_capture(params: list[Tensor]) -> None:
    """Raises RuntimeError inside a graph capture: what a plan prepares is no part of every step."""
    if any(param.is_cuda for param in params) and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "the first step, and one after an option, a state or a list of parameters has changed, cannot be "
            "captured in a CUDA graph: take a step before the capture and change nothing between the two"
        )


class Plan:
    """The buckets for one list of parameters, and everything they were made for.

    Args:
        groups: The optimizer's parameter groups.
        states: The optimizer's states; missing ones are created.
        stepped: The parameters that have a gradient, in the order of the groups.
        grads: Their gradients.
        decay: "coupled" or "decoupled".
        scaled: Whether numbers that only the device knows scale the gradients or may cancel the step: a loss
            scale, clipping.
        names: What messages call the parameters. (default: ``param_names`` of the groups)

    Raises:
        ValueError, TypeError, RuntimeError, BackendUnavailable: An option, a parameter, a state or a
            gradient cannot be used; nothing was changed.
    """

    @torch.no_grad()
    def __init__(
        self,
        groups: Groups,
        states: dict[Tensor, dict[str, Any]],
        stepped: list[Tensor],
        grads: list[Tensor],
        decay: str,
        scaled: bool,
        names: Mapping[Tensor, str] | None = None,
    ) -> None:
        _refuse_capture(stepped)
        for group in groups:
            check_options(group)
        owners = {param: group for group in groups for param in group["params"]}
        every_name = param_names(groups) if names is None else names
        self.names = [every_name[param] for param in stepped]
        for param, grad, name in zip(stepped, grads, self.names, strict=True):
            check_param(param, name)
            check_has_values(param, name)
            check_state(param, states.get(param, {}), name)
            backends.choose(owners[param]["backend"], kind_of(param))
            check_grad(param, grad, name)
        self.groups, self.stepped, self.scaled = list(groups), stepped, scaled
        self.specs = [spec_of(param) for param in stepped]
        self.sharded = any(spec is not None for spec in self.specs)
        members = [(param, states.setdefault(param, {}), owners[param]) for param in stepped]
        for member in members:
            prepare_state(*member)
        self.buckets: list[Bucket] = into_buckets(members, decay, scaled)
        self.owned = [bucket.owned for bucket in self.buckets]
        self.on_accelerator = any(not param.is_cpu for param in stepped)
        self.states = list(states.values())
        self.stepped_states = [state for _, state, _ in members]
        self.kinds = self._kinds()
        self.group_names = list(map(_names_of, groups))
        self.options = _options(groups, self.group_names)

    def holds(
        self, groups: Groups, states: Mapping[Tensor, Any], stepped: list[Tensor], scaled: bool
    ) -> bool:
        """True while no object the buckets were made of was exchanged for another."""
        return (
            scaled == self.scaled
            and _same(stepped, self.stepped)
            and _same(list(states.values()), self.states)
            and _same(groups, self.groups)
            and self._has_options(groups)
        )

    def _has_options(self, groups: Groups) -> bool:
        try:
            return bool(_options(groups, self.group_names) == self.options)
        except (KeyError, RuntimeError, ValueError):  # one was deleted; of tensors or arrays, exchanged
            return False

    def fitting(self, grads: list[Tensor]) -> list[list[Tensor]] | None:
        """Returns the gradients of each bucket, each in its parameter's memory order.

        Args:
            grads: The gradients of the stepped parameters.

        Returns:
            Bucket -> gradients, of DTensors this process's shards; or None where a parameter or a state is
            gone or of another kind than it was, so that the buckets have to be made anew.

        Raises:
            RuntimeError: A gradient or a state does not fit its parameter; nothing was changed.
        """
        shards = local_grads(grads, self.specs) if self.sharded else grads
        if shards is not None:
            found = [bucket.grads(shards) for bucket in self.buckets]
            if all(map(Bucket.knows, self.buckets, self.owned, found)):
                return found
        if self._kinds() != self.kinds or not all(map(Bucket.owns, self.buckets)):
            return None
        fitting = self.grads_fit(grads)
        return [bucket.grads(fitting) for bucket in self.buckets]

    def _kinds(self) -> list[tuple[Any, ...]]:
        """Returns what the buckets depend on in each tensor."""
        states = [state[name] for state in self.stepped_states for name in STATE_ARRAYS if name in state]
        return [
            (t.device, t.dtype, t.shape, t.layout is torch.strided and t.stride(), t.is_neg())
            if isinstance(t, Tensor)
            else (type(t),)
            for t in map(local, [*self.stepped, *states])
        ]

    @torch.no_grad()
    def grads_fit(self, grads: list[Tensor]) -> list[Tensor]:
        """Checks every gradient and copies those that lie in another order than their parameter."""
        for param, grad, name in zip(self.stepped, grads, self.names, strict=True):
            check_grad(param, grad, name)
        return [fitting_grad(param, grad) for param, grad in zip(self.stepped, grads, strict=True)]
