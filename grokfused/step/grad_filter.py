"""The gradient filters' Python side: their names, what they remember, and how the memory starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Filter(NamedTuple):
    """What a filter keeps per parameter.

    Attributes:
        states: The keys of its arrays in ``optimizer.state[param]``, each with its number of planes
            (``grokfused.state.arrays.Array``).
        starts: Whether its memory starts as the first gradient, with ``grad_ema_init="first"``.
    """

    states: Mapping[str, int] = {}
    starts: bool = False


FILTERS = {"ema": Filter(states={"grad_ema": 1}, starts=True), "none": Filter()}
INITS = ("first", "zero")


def starts(options: Mapping[str, Any]) -> bool:
    """True where the filter's memory starts as the gradient of its first step."""
    return FILTERS[options["grad_filter"]].starts and bool(options["grad_ema_init"] == "first")


def note_start(state: dict[str, Any]) -> None:
    """Notes, when ``grad_ema`` is created, after how many steps that happened.

    Only when the filter is turned on late or the moments came from another optimizer: without a note,
    it was created at step 0. Counting from the note, and not from a "seen" flag, keeps a step that an
    overflow cancels from being taken for the first one.
    """
    step = float(state["step"])
    if step:
        state["grad_ema_start"] = step


def first_filtered_step(state: Mapping[str, Any]) -> float:
    """Returns the step in which the memory starts as the gradient itself, where it does so."""
    return float(state.get("grad_ema_start", 0.0)) + 1.0
