"""The shapes of schedules: values as functions of the step and of a group's initial value."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Value = Callable[[int, float], Any]  # (steps so far, the group's initial value) -> the value


@dataclass(frozen=True)
class Constant:
    """One value at all steps.

    Args:
        value: In the option's own unit. None: each group's initial value. (default: None)
    """

    value: float | None = None

    def __call__(self, step: int, initial: float) -> float:
        """Returns the value after so many steps."""
        return initial if self.value is None else self.value

    def corners(self) -> tuple[int, ...]:
        """Returns the steps between which the value only rises or only falls."""
        return (0,)


@dataclass(frozen=True)
class Linear:
    """From one value to another in equal parts, then at rest there.

    ::

        value = start + (end - start) * share        share = step / steps, at most 1

    Args:
        start: The value before the first step. None: each group's initial value. (default: None)
        end: The value after ``steps`` steps. None: each group's initial value. (default: None)
        steps: An integer >= 1.

    Raises:
        TypeError, ValueError: ``steps`` is none, or an end no number.
    """

    start: float | None = None
    end: float | None = None
    steps: int = field(kw_only=True)

    def __post_init__(self) -> None:
        _check_steps(self.steps)
        for name, value in {"start": self.start, "end": self.end}.items():
            if isinstance(value, bool) or not (value is None or isinstance(value, numbers.Real)):
                raise TypeError(f"{name} must be a number or None, got {value!r}")

    def __call__(self, step: int, initial: float) -> float:
        """Returns the value after so many steps."""
        start = initial if self.start is None else self.start
        end = initial if self.end is None else self.end
        if step >= self.steps:
            return end
        value = start + (end - start) * self.share(step / self.steps)
        return min(max(value, min(start, end)), max(start, end))  # never beyond either by a rounding

    def share(self, time: float) -> float:
        """Returns how much of the way is behind, in [0, 1], after a part of the steps."""
        return time

    def corners(self) -> tuple[int, ...]:
        """Returns the steps between which the value only rises or only falls."""
        return (0, self.steps)


@dataclass(frozen=True)
class Cosine(Linear):
    """As ``Linear``, along half a cosine: slow at both ends (Loshchilov & Hutter 2017, arXiv:1608.03983).

    value = start + (end - start) * (1 - cos(pi * step / steps)) / 2
    """

    def share(self, time: float) -> float:
        """Returns how much of the way is behind, in [0, 1], after a part of the steps."""
        return (1.0 - math.cos(math.pi * time)) / 2.0


@dataclass(frozen=True)
class WarmUp:
    """From 0 in equal parts to where another schedule starts, then that schedule.

    value = then(0) * step / steps, and from there on then(step - steps)

    Args:
        steps: Length of the rise, an integer >= 1.
        then: What comes after it: a shape of this module, a number, or a function as ``Schedule`` takes.
            (default: each group's initial value)

    Raises:
        TypeError, ValueError: ``steps`` is none, or ``then`` neither a number nor a function.
    """

    steps: int
    then: Value | float = Constant()

    def __post_init__(self) -> None:
        _check_steps(self.steps)
        object.__setattr__(self, "then", function_of(self.then))

    def __call__(self, step: int, initial: float) -> Any:
        """Returns the value after so many steps."""
        then = function_of(self.then)
        if step >= self.steps:
            return then(step - self.steps, initial)
        return then(0, initial) * (step / self.steps)

    def corners(self) -> tuple[int, ...]:
        """Returns the steps between which the value only rises or only falls."""
        return (0, *(self.steps + corner for corner in corners_of(self.then)))


def _check_steps(steps: object) -> None:
    if isinstance(steps, bool) or not isinstance(steps, numbers.Integral):
        raise TypeError(f"steps must be an integer >= 1, got {steps!r}")
    if steps < 1:
        raise ValueError(f"steps must be an integer >= 1, got {steps}")


def function_of(value: object) -> Value:
    """Returns a shape or function as it is, a number as ``Constant``; raises TypeError for all else."""
    if callable(value):
        return value
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        return Constant(float(value))
    raise TypeError(f"a schedule must be a number or a function of (step, initial value), got {value!r}")


def corners_of(value: object) -> tuple[int, ...]:
    """Returns the steps between which a shape only rises or only falls; of a function nothing is known."""
    found = getattr(value, "corners", None)
    return found() if found else (0,)
