"""The numbers every element shares: checked, derived once in float64, rounded once to float32.

No backend computes any of them again, which is why all backends agree to the last bit.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from grokfused.backends.reference import Scalars

FLOAT32_MAX = torch.finfo(torch.float32).max  # beyond it a scalar would be infinite


class Range(NamedTuple):
    """Where a hyperparameter may lie, and torch.optim's words for it where torch has some."""

    torch_name: str
    text: str
    low: float = 0.0
    below: float = math.inf


RANGES = {
    "lr": Range("learning rate", "lr must be a finite number >= 0, or a tensor of one"),
    "eps": Range("epsilon value", "eps must be a finite number >= 0"),
    "weight_decay": Range("weight_decay value", "weight_decay must be a finite number >= 0"),
    "alpha": Range("alpha value", "alpha must be in [0, 1)", below=1.0),
    "lamb": Range("lamb value", "lamb must be a finite number", low=-math.inf),
}
BETA = Range(
    "beta parameter at index {}", "betas must be two numbers in [0, 1), or tensors of one", below=1.0
)


def _check(value: object, allowed: Range, index: int = 0) -> float:
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise TypeError(f"{allowed.text}, got {value!r} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond all floats
        number = math.inf
    if not (allowed.low <= number < allowed.below and abs(number) <= FLOAT32_MAX):
        raise ValueError(f"Invalid {allowed.torch_name.format(index)}: {value} ({allowed.text})")
    return number


class Hyperparameters(NamedTuple):
    """A group's hyperparameters, checked, as floats."""

    lr: float
    betas: tuple[float, float]
    eps: float
    weight_decay: float
    alpha: float
    lamb: float


_values = itemgetter("lr", "betas", "eps", "weight_decay", "alpha", "lamb")


@lru_cache(maxsize=1 << 14, typed=True)
def _checked(lr: Any, beta1: Any, beta2: Any, *others: Any) -> Hyperparameters:
    names = ("eps", "weight_decay", "alpha", "lamb")
    return Hyperparameters(
        _check(lr, RANGES["lr"]),
        (_check(beta1, BETA, 0), _check(beta2, BETA, 1)),
        *(_check(value, RANGES[name]) for name, value in zip(names, others, strict=True)),
    )


def _number(name: str, value: object) -> object:
    """Returns the number in a tensor of one: its value is what counts, and may have changed."""
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1:
        raise ValueError(f"Tensor {name} must be 1-element, got shape {list(value.shape)}")
    if value.device.type == "meta":
        raise ValueError(f"Tensor {name} is on the meta device and has no value")
    return value.item()


def checked_hyperparameters(group: Mapping[str, Any]) -> Hyperparameters:
    """Returns the group's hyperparameters as floats.

    Raises:
        TypeError, ValueError: One is no number or out of its range; the message names it, its value
            and the range.
    """
    lr, betas, *others = _values(group)
    if not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"{BETA.text}, got {betas!r}")
    beta1, beta2 = betas
    try:
        return _checked(lr, beta1, beta2, *others)
    except TypeError:  # tensors of one; or what is no number
        lr, beta1, beta2 = _number("lr", lr), _number("betas[0]", beta1), _number("betas[1]", beta2)
        return _checked.__wrapped__(lr, beta1, beta2, *others)


def derive(
    values: Hyperparameters, *, step: Any, grad_factor: Any, sqrt: Callable[[Any], Any] = math.sqrt
) -> Scalars:
    """Derives the scalars of a step: from floats, or element by element from float64 tensors.

    Args:
        values: The hyperparameters; alpha is 0 in the step in which the slow gradient starts as the
            gradient itself.
        step: 1, 2, ...: the number this step will have, exact in float32 (below 2**24).
        grad_factor: -1 to maximize, else 1.
        sqrt: Takes the root of what the others are. (default: math.sqrt)
    """
    lr, (beta1, beta2), eps, weight_decay, alpha, lamb = values
    return Scalars(
        step=step,
        grad_factor=grad_factor,
        alpha=alpha,
        alpha_weight=1.0 - alpha,
        lamb=lamb,
        weight_decay=weight_decay,
        param_scale=1.0 - lr * weight_decay,
        beta1_weight=1.0 - beta1,
        beta2=beta2,
        beta2_weight=1.0 - beta2,
        step_size=lr / (1.0 - beta1**step),
        denom_scale=1.0 / sqrt(1.0 - beta2**step),
        eps=eps,
    )


def step_scalars(group: Mapping[str, Any], step: float, first_ema_step: float) -> Scalars:
    """Derives the scalars of one step of one parameter group, in float64.

    Args:
        group: The group's hyperparameters, as schedulers may have left them.
        step: The number this step will have.
        first_ema_step: The step in which the slow gradient starts as the gradient itself.

    Raises:
        TypeError, ValueError: A hyperparameter is no number or out of range; the message names it.
    """
    checked = checked_hyperparameters(group)
    if step == first_ema_step:  # 0 * h + 1 * g: the slow gradient starts as the gradient, exactly
        checked = checked._replace(alpha=0.0)
    return derive(checked, step=step, grad_factor=grad_factor(group))


def grad_factor(group: Mapping[str, Any]) -> float:
    """Returns what multiplies the gradients of a group."""
    return -1.0 if group["maximize"] else 1.0


def scalar_table(rows: Sequence[Scalars], dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns the rows, rounded to float32 or as they are: [rows, fields of Scalars].

    The native backend rounds them itself, alike (csrc/walk.h).
    """
    kind = numpy.float64 if dtype is torch.float64 else numpy.float32
    return torch.from_numpy(numpy.array(rows, dtype=kind, ndmin=2))
