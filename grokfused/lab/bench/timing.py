"""How it is timed: implementations take turns round by round, and ratios are taken within a round."""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import torch

Step = Callable[[], object]
Clock = Callable[[Step, int], float]  # of a step, called so often: milliseconds per call
T = TypeVar("T")
LEAST_GPU_CALLS = 4  # so that the host's time between two timings does not show
HOST_CALLS = 3  # at most, when host time is taken on a GPU: few, so that no queue of launches is ever full


class Spread(NamedTuple):
    """Median and quartiles of a sample."""

    median: float
    low: float
    high: float


class Turns(NamedTuple):
    """How often implementations take turns: until ``seconds`` are over, within the two bounds.

    Who needs more than ``slowest`` seconds for one step takes no turns. Each timing is of as many steps as
    last ``timing`` seconds.
    """

    seconds: float
    least: int = 5
    most: int = 401
    slowest: float = math.inf
    timing: float = 1e-3

    def of_host(self) -> Turns:
        """Returns the turns in which the host's time is taken, which the system counts in milliseconds."""
        return Turns(0.0, least=3, timing=min(0.1, self.seconds / 30))


def spread(values: Sequence[float]) -> Spread:
    """Returns median and quartiles of at least two values."""
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, low, high)


def ratios(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Returns the spread of the ratios within each round, in which a drift of the machine cancels."""
    return spread([a / b for a, b in zip(numerator, denominator, strict=True)])


def timed(step: Step, calls: int, clock: Callable[[], int] = time.perf_counter_ns) -> float:
    """Returns milliseconds per call of a step, after one call that warms the caches again.

    Gradients that a step amplifies in place may become infinite on the way: that takes no longer.

    Args:
        step: One step.
        calls: How many are timed together.
        clock: Nanoseconds. (default: those that pass)
    """
    step()
    gc.collect(0)
    gc.disable()
    begin = clock()
    for _ in range(calls):
        step()
    passed = clock() - begin
    gc.enable()
    return passed / calls / 1e6


def processors_timed(step: Step, calls: int) -> float:
    """Returns the milliseconds of all processors that a step takes on the CPU."""
    return timed(step, calls, time.process_time_ns)


def gpu_timed(step: Step, calls: int) -> float:
    """Returns milliseconds per step on the GPU, which is busy when they begin to be counted."""
    calls = max(LEAST_GPU_CALLS, calls)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    step()
    begin.record()
    for _ in range(calls):
        step()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / calls


def launches_timed(step: Step, calls: int) -> float:
    """Returns the milliseconds that the host takes to start a step, while the GPU has nothing to do."""
    torch.cuda.synchronize()
    passed = timed(step, min(calls, HOST_CALLS))
    torch.cuda.synchronize()
    return passed


# device -> how a step is timed, and how its host time is
CLOCKS: dict[str, tuple[Clock, Clock]] = {
    "cpu": (timed, processors_timed),
    "cuda": (gpu_timed, launches_timed),
}


def in_turns(takers: Sequence[T], turns: Turns, time_one: Callable[[T], float]) -> list[list[float]]:
    """Times all in every round, each round in another order: nobody always follows the same one.

    Returns:
        For each taker its times, one a round.
    """
    times: list[list[float]] = [[] for _ in takers]
    shuffled = random.Random(0)
    begin = time.monotonic()
    for number in range(turns.most):
        if number >= turns.least and time.monotonic() - begin > turns.seconds:
            break
        for taker in shuffled.sample(range(len(takers)), len(takers)):
            times[taker].append(time_one(takers[taker]))
    return times
