"""The gradient filters' Python side: their names, what they remember, and how the memory starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Filter(NamedTuple):
    """What a filter keeps per parameter.

    Attributes:
        states: The keys of its arrays in ``optimizer.state[param]``, each with its number of planes
            (``grokfused.state.arrays.Array``); one value per block comes after what is stored by it.
        starts: Whether its memory starts as the first gradient, with ``grad_ema_init="first"``.
    """

    states: Mapping[str, int] = {}
    starts: bool = False


FILTERS = {"ema": Filter(states={"grad_ema": 1}, starts=True), "none": Filter()}
INITS = ("first", "zero")
START = "grad_ema_start"  # of a live state: after how many steps the filter's memory was created


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
        state[START] = step


def first_filtered_step(state: Mapping[str, Any]) -> float:
    """Returns the step in which the memory starts as the gradient itself, where it does so."""
    return float(state.get(START, 0.0)) + 1.0


def is_pending(state: Mapping[str, Any]) -> bool:
    """True where the memory was created late and no step has reached it yet: it holds nothing."""
    return START in state and float(state.get("step", 0)) <= float(state[START])
