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
from grokfused.step.grad_filter import Gate, divisor, gate_of

FLOAT32_MAX = torch.finfo(torch.float32).max  # beyond it a scalar would be infinite


class Range(NamedTuple):
    """Where a hyperparameter may lie, both ends included; NaN and infinity lie nowhere."""

    text: str
    low: float = -FLOAT32_MAX
    high: float = FLOAT32_MAX
    never: tuple[float, ...] = ()


BELOW_ONE = math.nextafter(1.0, 0.0)
BETAS = "betas must be two numbers in [0, 1), or tensors of one"
# Of the constructor and of a group that is added.
GIVEN = {
    "lr": Range("lr must be a finite number >= 0, or a tensor of one", 0.0),
    "beta1": Range(BETAS, 0.0, BELOW_ONE),
    "beta2": Range(BETAS, 0.0, BELOW_ONE),
    "eps": Range("eps must be a finite number >= 0", 0.0),
    "weight_decay": Range("weight_decay must be a finite number >= 0", 0.0),
    "alpha": Range("alpha must be in [0, 1)", 0.0, BELOW_ONE),
    "lamb": Range("lamb must be a finite number"),
}
# Of a value that someone has written since, as schedulers do. torch.optim asks nothing of those: one may miss
# 0 by a rounding, and a beta1 beyond 1 is another optimizer, but it is one. What is left out here would make
# every parameter infinite or NaN; torch raises ZeroDivisionError there, or computes with complex numbers.
LATER = {
    "lr": Range("lr must be a finite number, or a tensor of one"),
    "beta1": Range("the first of betas must be a finite number other than 1 and -1", never=(1.0, -1.0)),
    "beta2": Range("the second of betas must be in [-1, 1]", -1.0, 1.0),
    "eps": Range("eps must be a finite number"),
    "weight_decay": Range("weight_decay must be a finite number"),
    "alpha": Range(
        "alpha must be in [-1, 1]; a wrapper that shares the groups may mean another: docs/trainers.md",
        *(-1.0, 1.0),
    ),
    "lamb": Range("lamb must be a finite number"),
}
TORCH_NAMES = {
    "lr": "learning rate",
    "beta1": "beta parameter at index 0",
    "beta2": "beta parameter at index 1",
    "eps": "epsilon value",
}


def _check(name: str, value: object, allowed: Range) -> float:
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, numbers.Real)):
        raise TypeError(f"{allowed.text}, got {value!r} of type {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond all floats
        number = math.inf
    if not allowed.low <= number <= allowed.high or number in allowed.never:
        raise ValueError(f"Invalid {TORCH_NAMES.get(name, f'{name} value')}: {value} ({allowed.text})")
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
def _checked(given: bool, *values: Any) -> Hyperparameters:
    ranges = GIVEN if given else LATER
    lr, beta1, beta2, *others = map(_check, ranges, values, ranges.values())
    return Hyperparameters(lr, (beta1, beta2), *others)


def _number(name: str, value: object) -> object:
    """Returns the number in a tensor of one: its value is what counts, and may have changed."""
    if not isinstance(value, Tensor):
        return value
    if value.numel() != 1:
        raise ValueError(f"Tensor {name} must be 1-element, got shape {list(value.shape)}")
    if value.device.type == "meta":
        raise ValueError(f"Tensor {name} is on the meta device and has no value")
    return value.item()


def checked_number(name: str, value: object, *, given: bool = False) -> float:
    """Returns one hyperparameter as a float; ``value`` is a number or a tensor of one.

    Args:
        name: A key of ``GIVEN``.
        value: What is checked.
        given: Whether it is held to the range in ``GIVEN``, or to that in ``LATER``. (default: False)

    Raises:
        TypeError, ValueError: It is no number or out of its range; the message names it, its value and the
            range.
    """
    return _check(name, _number(name, value), (GIVEN if given else LATER)[name])


def pair_of_betas(betas: Any) -> tuple[Any, Any]:
    """Returns the two betas of any sequence: a tuple, a list, an array, omegaconf's ListConfig.

    Raises:
        TypeError: It is no sequence of two.
    """
    if type(betas) not in (tuple, list):
        indexed = hasattr(type(betas), "__len__") and hasattr(type(betas), "__getitem__")
        if not indexed or isinstance(betas, (str, bytes, Mapping)) or getattr(betas, "ndim", 1) != 1:
            raise TypeError(f"{BETAS}, got {betas!r}")
    if len(betas) != 2:
        raise TypeError(f"{BETAS}, got {betas!r}")
    return betas[0], betas[1]


def checked_hyperparameters(group: Mapping[str, Any], *, given: bool = False) -> Hyperparameters:
    """Returns the group's hyperparameters as floats.

    Args:
        group: The group.
        given: Whether they are held to the ranges of ``GIVEN``, or to those of ``LATER``. (default: False)

    Raises:
        TypeError, ValueError: One is no number or out of its range; the message names it, its value
            and the range.
    """
    lr, betas, *others = _values(group)
    beta1, beta2 = pair_of_betas(betas)
    try:
        return _checked(given, lr, beta1, beta2, *others)
    except TypeError:  # tensors of one; or what is no number
        lr, beta1, beta2 = _number("lr", lr), _number("betas[0]", beta1), _number("betas[1]", beta2)
        return _checked.__wrapped__(given, lr, beta1, beta2, *others)


class Arithmetic(NamedTuple):
    """The operations in which Python's floats are not IEEE 754's, or are no tensors."""

    power: Callable[[Any, Any], Any]
    inverse_root: Callable[[Any], Any]
    where: Callable[[Any, Any, Any], Any]
    smaller: Callable[[Any, Any], Any]


def _power(base: float, exponent: float) -> float:
    try:
        return float(base**exponent)
    except OverflowError:
        return math.copysign(math.inf, base) if exponent % 2 else math.inf


FLOATS = Arithmetic(
    _power, lambda x: 1.0 / math.sqrt(x) if x else math.inf, lambda yes, a, b: a if yes else b, min
)
TENSORS = Arithmetic(torch.pow, lambda x: 1.0 / torch.sqrt(x), torch.where, torch.minimum)


def derive(
    values: Hyperparameters,
    gate: Gate,
    *,
    step: Any,
    first: Any,
    grad_factor: Any,
    arithmetic: Arithmetic = FLOATS,
) -> Scalars:
    """Derives the scalars of a step: from floats, or element by element from float64 tensors.

    Args:
        values: The hyperparameters.
        gate: When the filter amplifies.
        step: 1, 2, ...: the number this step will have, exact in float32 (below 2**24).
        first: The first step that the filter's memory saw, in which the slow gradient starts as the gradient
            itself, exactly: 0 * h + 1 * g. 0: no step is.
        grad_factor: -1 to maximize, else 1.
        arithmetic: That of what the others are, ``FLOATS`` or ``TENSORS``. (default: FLOATS)
    """
    lr, (beta1, beta2), eps, weight_decay, alpha, lamb = values
    alpha = alpha * (step != first)
    return Scalars(
        step=step,
        grad_factor=grad_factor,
        alpha=alpha,
        alpha_weight=1.0 - alpha,
        lamb=lamb / divisor(gate, step, first, arithmetic.where, arithmetic.smaller),
        weight_decay=weight_decay,
        param_scale=1.0 - lr * weight_decay,
        beta1_weight=1.0 - beta1,
        beta2=beta2,
        beta2_weight=1.0 - beta2,
        step_size=lr / (1.0 - arithmetic.power(beta1, step)),
        denom_scale=arithmetic.inverse_root(1.0 - arithmetic.power(beta2, step)),
        eps=eps,
    )


def step_scalars(group: Mapping[str, Any], step: float, first: float) -> Scalars:
    """Derives the scalars of one step of one parameter group, in float64.

    Args:
        group: The group's hyperparameters, as schedulers may have left them.
        step: The number this step will have.
        first: The first step that the filter's memory saw; see ``derive``.

    Raises:
        TypeError, ValueError: A hyperparameter is no number or out of range; the message names it.
    """
    checked = checked_hyperparameters(group)
    return derive(checked, gate_of(group), step=step, first=first, grad_factor=grad_factor(group))


def grad_factor(group: Mapping[str, Any]) -> float:
    """Returns what multiplies the gradients of a group."""
    return -1.0 if group["maximize"] else 1.0


def scalar_table(rows: Sequence[Scalars], dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns the rows, rounded to float32 or as they are: [rows, fields of Scalars].

    The native backend rounds them itself, alike (csrc/walk.h).
    """
    kind = numpy.float64 if dtype is torch.float64 else numpy.float32
    with numpy.errstate(over="ignore"):  # to infinity
        return torch.from_numpy(numpy.array(rows, dtype=kind, ndmin=2))
