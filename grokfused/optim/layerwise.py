"""A first beta for each layer: parameter groups, and nothing else, so each has its own bias correction."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from grokfused.step.options import plain
from grokfused.step.scalars import checked_number, pair_of_betas


def layerwise_beta1(
    model_or_groups: Any, gamma: float, betas: tuple[float, float] = (0.9, 0.999)
) -> list[dict[str, Any]]:
    """Returns parameter groups whose first beta falls from layer to layer.

    ::

        beta1 of layer l = 0, 1, 2, ... is beta1 * (1 - gamma)^l        (as PyPI's grokadamw has it)

    ::

        optimizer = GrokAdamW(layerwise_beta1(model, gamma=0.1), lr=1e-3)

    Each group has its own betas, so the bias correction of the first moment is 1 - (that beta1)^t. grokadamw
    takes 1 - beta1^t for all layers, and its first update is up to 1 / (1 - beta1) times too long.

    Args:
        model_or_groups: A model, of which the parameters that one module holds itself are a layer, in the
            order of ``named_parameters()``; or what an optimizer takes (parameters, named ones, or groups),
            of which each parameter is a layer, counted from 0 in each group, as grokadamw does it. Frozen
            parameters count no layer; they have the beta1 of the layer that follows.
        gamma: In [0, 1].
        betas: Numbers in [0, 1), for groups that bring none. (default: (0.9, 0.999))

    Returns:
        A group for each beta1, in the order given; of the parameters of several groups none are put together.
        Names and other options of groups are kept; the groups that were given are not changed.

    Raises:
        TypeError, ValueError: ``gamma`` or a beta is no number or out of range, or something is no parameter.
    """
    if isinstance(gamma, bool) or not isinstance(gamma, numbers.Real):
        raise TypeError(f"gamma must be a number in [0, 1], got {gamma!r}")
    if not 0.0 <= float(gamma) <= 1.0:
        raise ValueError(f"gamma must be a number in [0, 1], got {gamma!r}")
    keep = 1.0 - float(gamma)
    if isinstance(model_or_groups, nn.Module):
        members = list(model_or_groups.named_parameters())
        layers = _layers(members, [name.rpartition(".")[0] for name, _ in members])
        return _split({"betas": betas}, members, layers, keep)
    found = []
    for group in _groups(model_or_groups):
        members = _members(group)
        layers = _layers(members, list(range(len(members))))
        found += _split({"betas": betas, **group}, members, layers, keep)
    return found


def _groups(given: Any) -> list[dict[str, Any]]:
    if isinstance(given, (Tensor, str, bytes, dict, set)) or not isinstance(given, Iterable):
        raise TypeError(f"model_or_groups must be a model, parameters or groups, got {type(given).__name__}")
    members = list(given)
    if members and all(isinstance(member, dict) for member in members):
        return members
    return [{"params": members}]


def _members(group: dict[str, Any]) -> list[Any]:
    """Returns the parameters of a group, each with its name where it has one."""
    if "params" not in group:
        raise ValueError(f"a group must have 'params', got {list(group)}")
    params = group["params"]
    if isinstance(params, (set, frozenset)):
        raise TypeError("the parameters of a group must have an order, got a set")
    members = [params] if isinstance(params, Tensor) else list(params)
    if "param_names" in group:  # a group that an optimizer has taken
        members = list(zip(group["param_names"], members, strict=True))
    for member in members:
        if not isinstance(_tensor(member), Tensor):
            raise TypeError(f"a parameter must be a tensor, got {type(_tensor(member)).__name__}")
    return members


def _tensor(member: Any) -> Any:
    return member[1] if isinstance(member, tuple) and len(member) == 2 else member


def _layers(members: list[Any], holders: list[Any]) -> Iterator[int]:
    """Yields the layer of each parameter; a new one begins with what requires a gradient in another place."""
    numbers_of: dict[Any, int] = {}
    for member, holder in zip(members, holders, strict=True):
        if _tensor(member).requires_grad:
            numbers_of.setdefault(holder, len(numbers_of))
        yield numbers_of.get(holder, len(numbers_of))


def _split(
    group: dict[str, Any], members: list[Any], layers: Iterator[int], keep: float
) -> list[dict[str, Any]]:
    beta1, beta2 = (
        checked_number(name, beta, given=True)
        for name, beta in zip(("beta1", "beta2"), _plain_pair(group["betas"]), strict=True)
    )
    options = {name: value for name, value in group.items() if name not in ("params", "param_names")}
    parts: dict[float, list[Any]] = {} if members else {beta1: []}
    for member, layer in zip(members, layers, strict=True):
        parts.setdefault(beta1 * keep**layer, []).append(member)
    return [{**options, "params": part, "betas": (beta, beta2)} for beta, part in parts.items()]


def _plain_pair(betas: Any) -> tuple[Any, Any]:
    pair = pair_of_betas(plain({"betas": betas})["betas"])
    for beta in pair:
        if isinstance(beta, Tensor):
            raise TypeError(
                "betas must be two numbers here: tensors of them could not follow what they are made of"
            )
    return pair
