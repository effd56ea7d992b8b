"""The gradient filters' Python side: their names, what they remember, and how the memory starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# filter -> the state it keeps per parameter
FILTERS: dict[str, tuple[str, ...]] = {"ema": ("grad_ema",), "none": ()}
INITS = ("first", "zero")


def note_start(state: dict[str, Any]) -> None:
    """Notes, when ``grad_ema`` is created, after how many steps that happened.

    Only when the filter is turned on late or the moments came from another optimizer: without a note,
    it was created at step 0. Counting from the note, and not from a "seen" flag, keeps a step that an
    overflow cancels from being taken for the first one.
    """
    step = float(state["step"])
    if step:
        state["grad_ema_start"] = step


def first_ema_step(group: Mapping[str, Any], state: Mapping[str, Any]) -> float:
    """Returns the step in which ``grad_ema`` starts as the gradient itself; 0, which never comes, if
    it starts as zero.
    """
    if group["grad_ema_init"] == "zero":
        return 0.0
    return float(state.get("grad_ema_start", 0.0)) + 1.0
