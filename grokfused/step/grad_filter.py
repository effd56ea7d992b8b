"""The gradient filters' Python side: their names, what they remember, when they amplify, and how much."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

WINDOW = -1  # in place of a number of planes: so many as the group's `window_size` says


class Memory(NamedTuple):
    """How a filter keeps one of its arrays; see ``grokfused.state.arrays.Array``."""

    planes: int = 1
    of: str = "states"
    stays: bool = True


class Filter(NamedTuple):
    """What a filter keeps per parameter.

    Attributes:
        states: The keys of its arrays in ``optimizer.state[param]``; one value per block comes after what is
            stored by it.
        start: The key under which a live state notes after how many steps that memory was created, where
            this says what the filter does; "" where it says nothing.
    """

    states: Mapping[str, Memory] = {}
    start: str = ""


FILTERS = {
    "ema": Filter({"grad_ema": Memory()}, "grad_ema_start"),
    # Gradients of other steps than the last ones are no window: it is dropped where a step does without.
    "mean": Filter(
        {
            "grad_window": Memory(WINDOW, of="window", stays=False),
            "grad_sum": Memory(of="real", stays=False),
        },
        "grad_window_start",
    ),
    "none": Filter(),
}
INITS = ("first", "zero")
TYPES = ("mean", "sum")
WINDOW_DTYPES = ("float32", "bfloat16")
WINDOW_START = FILTERS["mean"].start
STARTS = tuple(kind.start for kind in FILTERS.values() if kind.start)
LONGEST = 2**24  # of a window: steps are counted in float32


def start_key(options: Mapping[str, Any]) -> str:
    """Returns the key of the note that a group's filter goes by, or ""."""
    is_of_no_use = options["grad_filter"] == "ema" and options["grad_ema_init"] == "zero"
    return "" if is_of_no_use else FILTERS[options["grad_filter"]].start


def has_window(options: Mapping[str, Any]) -> bool:
    """True where a group's filter keeps something of each of the last steps."""
    return any(memory.planes == WINDOW for memory in FILTERS[options["grad_filter"]].states.values())


def note_start(state: dict[str, Any], key: str) -> None:
    """Notes, when a filter's memory is created, after how many steps that happened.

    Of a slow gradient only when the filter is turned on late or the moments came from another optimizer:
    without a note, it was created at step 0. Of a window always, which makes the note a place in what
    torch.distributed.checkpoint has flattened. Counting from the note, and not from a "seen" flag, keeps a
    step that an overflow cancels from being taken for the first one.
    """
    state.pop(key, None)
    if (step := float(state["step"])) or key == WINDOW_START:
        state[key] = step


def first_filtered_step(state: Mapping[str, Any], key: str) -> float:
    """Returns the first step that the filter's memory saw or will see."""
    return float(state.get(key, 0.0)) + 1.0


def is_pending(state: Mapping[str, Any], key: str) -> bool:
    """True where the memory was created late and no step has reached it yet: it holds nothing."""
    return bool(start := float(state.get(key, 0.0))) and float(state.get("step", 0)) <= start


class Gate(NamedTuple):
    """When a group's filter amplifies, and by which part of lamb, as floats; so in csrc/step/scalars.h.

    Attributes:
        window: How many gradients it remembers, each of weight 1; 1 for a filter whose memory is not a sum.
        full_only: 1 where it amplifies only once it has seen so many, else 0.
        summed: 1 where lamb multiplies the sum, 0 where it multiplies the mean.
        after: It amplifies in the steps with a number beyond this one,
        until: and up to this one.
    """

    window: float
    full_only: float
    summed: float
    after: float
    until: float


def gate_of(options: Mapping[str, Any]) -> Gate:
    """Returns a group's gate."""
    until = options["filter_stop_step"]
    steps = float(options["filter_start_step"]), math.inf if until is None else float(until)
    if options["grad_filter"] != "mean":
        return Gate(1.0, 0.0, 1.0, *steps)
    summed, full_only = options["filter_type"] == "sum", bool(options["filter_warmup"])
    return Gate(float(options["window_size"]), float(full_only), float(summed), *steps)


def divisor(gate: Gate, step: Any, first: Any, where: Any, smaller: Any) -> Any:
    """Returns what lamb is divided by in a step: infinity where the filter does not amplify.

    Args:
        gate: The group's gate: floats, or tensors of float64.
        step: 1, 2, ...: the number of the step.
        first: That of the first step that the filter's memory has seen; 0 where that says nothing.
        where: (condition, a, b) -> a or b.
        smaller: (a, b) -> the smaller one.
    """
    seen = step - first + 1.0  # below 1 where someone has set the step count back
    enough = where(gate.full_only != 0, gate.window, 1.0)
    amplifies = (gate.after < step) & (step <= gate.until) & (seen >= enough)
    length = where(gate.summed != 0, 1.0, smaller(seen, gate.window))
    return where(amplifies, length, math.inf)
