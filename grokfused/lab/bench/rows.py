"""A case, measured: one row per implementation, those that could not run included."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grokfused.lab.bench.cases import Shapes, elements
from grokfused.lab.bench.implementations import (
    COPY,
    FOREACH_EMA,
    FUSED,
    OURS,
    Implementation,
    Place,
    grads_of,
    parameters,
)
from grokfused.lab.bench.probes import Others, probe
from grokfused.lab.bench.timing import (
    CLOCKS,
    Clock,
    Spread,
    Step,
    Turns,
    in_turns,
    ratios,
    spread,
)
from grokfused.state.memory import free_bytes

Row = dict[str, Any]
BASELINES = (OURS, FUSED, FOREACH_EMA)
COPIED = 2 * torch.float32.itemsize  # bytes per element of the copy


class CannotRun(RuntimeError):
    """An implementation takes no turns; the message says why."""


@dataclass
class Contender:
    """An implementation that has been made for a case, and has taken its first steps."""

    implementation: Implementation
    step: Step
    reset: Callable[[], None]
    bytes_per_element: float
    seconds: float  # one step took, as a first guess


def _restoring(params: list[Tensor]) -> Callable[[], None]:
    """Returns a reset that gives the parameters the gradients they have now."""
    kept = [grad.clone() for grad in grads_of(params)]

    def reset() -> None:
        for param, grad in zip(params, kept, strict=True):
            param.grad.copy_(grad)  # type: ignore[union-attr]

    return reset


def ready(implementation: Implementation, shapes: Shapes, place: Place) -> Contender:
    """Makes an implementation for a case, and lets it take the steps that create and compile things.

    Raises:
        CannotRun: Its memory does not suffice.
        Exception: Whatever the implementation raises.
    """
    # Parameters, gradients and, where they are restored, their copies; three float32 states; a window.
    each = (3 if implementation.writes_grads else 2) * place.dtype.itemsize + 12 + implementation.window_bytes
    needed, free = elements(shapes) * each, free_bytes(torch.device(place.device))
    if free is not None and needed > free:
        raise CannotRun(f"it needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")
    params = parameters(shapes, place)
    reset = _restoring(params) if implementation.writes_grads else lambda: None
    work = implementation.work
    moved = COPIED if work is None else work.bytes_per_element(params)
    step = implementation.make(params)
    seconds = []
    for _ in range(3):  # some compile anew in their second step
        begin = time.perf_counter()
        step()
        if place.device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return Contender(implementation, step, reset, moved, min(seconds))


def measure(
    case: str,
    shapes: Shapes,
    implementations: Sequence[Implementation],
    place: Place,
    turns: Turns,
    note: Callable[[str], None] = lambda what: None,
) -> list[Row]:
    """Measures implementations on a case, in turns.

    Args:
        case: Its name.
        shapes: Its tensors.
        implementations: Who is measured.
        place: Where the parameters are, and their dtype.
        turns: How long.
        note: Is told what is being done, once for each implementation before the turns, and once for them.

    Returns:
        One row per implementation. Who could not run has ``why_not`` and no times. ``others`` is the share of
        the processors that other processes took meanwhile.
    """
    contenders: dict[str, Contender] = {}
    rows: list[Row] = []
    for each in implementations:
        note(f"preparing {each.name}")
        rows.append(_about(case, shapes, each, place))
        try:
            contender = ready(each, shapes, place)
            if contender.seconds > turns.slowest:
                raise CannotRun(f"one step took {contender.seconds:.2g} s, with more --seconds it takes part")
            contenders[each.name] = contender
        except Exception as error:  # one that fails must not take the rows of the others with it
            rows[-1]["why_not"] = reason(error)
    note(f"timing {len(contenders)} in turns")
    with Others() as others:
        times, host_times = timed(list(contenders.values()), place.device, turns)
    for row in rows:
        row["others"] = others.share
        name = row["implementation"]
        if name in contenders:
            row.update(figures(name, times, row["elements"], contenders[name].bytes_per_element))
            row["host_milliseconds"] = spread(host_times[name])._asdict()
            row.update(probe(contenders[name].step, place.device)._asdict())
    return rows


def _about(case: str, shapes: Shapes, implementation: Implementation, place: Place) -> Row:
    """Returns what a row is about."""
    work = implementation.work
    return {
        "case": case,
        "tensors": len(shapes),
        "elements": elements(shapes),
        "device": place.device,
        "dtype": str(place.dtype).removeprefix("torch."),
        "implementation": implementation.name,
        **(work.mask._asdict() if work and work.mask else {}),
    }


def reason(error: Exception) -> str:
    """Returns why somebody cannot run, in one line."""
    first = (str(error).strip().splitlines() or [""])[0]
    return first if isinstance(error, (CannotRun, ImportError)) else f"{type(error).__name__}: {first}"


def timed(contenders: list[Contender], device: str, turns: Turns) -> list[dict[str, list[float]]]:
    """Returns the times of each, one a round, and its host times, of a few more rounds."""
    names = [contender.implementation.name for contender in contenders]
    found = []
    for clock, when in zip(CLOCKS[device], (turns, turns.of_host()), strict=True):

        def one(contender: Contender, clock: Clock = clock, timing: float = when.timing) -> float:
            contender.reset()
            return clock(contender.step, math.ceil((timing + 1e-9) / contender.seconds))

        found.append(dict(zip(names, in_turns(contenders, when, one), strict=True)))
    return found


def figures(name: str, walls: dict[str, list[float]], count: int, bytes_per_element: float) -> Row:
    """Returns what follows from the times; ratios are how many times as long as a baseline it takes."""
    own, share = spread(walls[name]), None
    if COPY in walls:  # (bytes of ours / time of ours) / (bytes of the copy / time of the copy)
        of_copy = ratios(walls[COPY], walls[name])
        share = Spread(*(bytes_per_element / COPIED * ratio for ratio in of_copy))._asdict()
    return {
        "rounds": len(walls[name]),
        "milliseconds": own._asdict(),
        "bytes_per_element": round(bytes_per_element, 2),
        "gigabytes_per_second": count * bytes_per_element / own.median / 1e6,
        "share_of_copy": share,
        "times_longer_than": {
            base: ratios(walls[name], walls[base])._asdict() for base in BASELINES if base in walls
        },
        "rank": None if name == COPY else rank(name, {k: v for k, v in walls.items() if k != COPY}),
    }


def rank(name: str, walls: dict[str, list[float]]) -> list[int]:
    """Returns the first and the last place that this run leaves open.

    Two are told apart only where the quartiles of their ratio lie on one side of 1.
    """
    against = [ratios(walls[name], other) for each, other in walls.items() if each != name]
    faster, slower = sum(r.low > 1 for r in against), sum(r.high < 1 for r in against)
    return [1 + faster, len(walls) - slower]
