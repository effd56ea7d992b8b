"""A case, measured: one row per implementation, those that could not run included."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

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
from grokfused.lab.bench.in_place import Limits, NoLimit
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
from grokfused.lab.bench.traffic import Traffic
from grokfused.state.memory import free_bytes

Row = dict[str, Any]
K = TypeVar("K")
BASELINES = (OURS, FUSED, FOREACH_EMA)
COPIED = 2 * torch.float32.itemsize  # bytes per element of the copy


class CannotRun(RuntimeError):
    """An implementation takes no turns; the message says why."""


@dataclass
class Contender:
    """Who takes turns: an implementation that is made for a case, or a limit. Its first steps are taken."""

    step: Step
    seconds: float  # one step took, as a first guess
    bytes_per_element: float
    traffic: Traffic | None = None  # of the copy there is none
    reset: Callable[[], None] = lambda: None


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
    place = place._replace(dtype=implementation.dtype or place.dtype)
    # Parameters, gradients and, where they are restored, their copies; three float32 states; a window.
    each = (3 if implementation.writes_grads else 2) * place.dtype.itemsize + 12 + implementation.window_bytes
    needed, free = elements(shapes) * each, free_bytes(torch.device(place.device))
    if free is not None and needed > free:
        raise CannotRun(f"it needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")
    params = parameters(shapes, place)
    reset = _restoring(params) if implementation.writes_grads else lambda: None
    work = implementation.work
    moved = None if work is None else work.traffic(params)
    step = implementation.make(params)
    return Contender(step, _least(step, place.device), moved.total if moved else COPIED, moved, reset)


def _least(step: Step, device: str) -> float:
    """Takes the first steps, and returns the seconds that the shortest took."""
    seconds = []
    for _ in range(3):  # some compile anew in their second step
        begin = time.perf_counter()
        step()
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


def limits_of(
    contenders: Iterable[Contender], shapes: Shapes, place: Place
) -> tuple[dict[Traffic, Contender], str]:
    """Returns, for each traffic that a contender has, the limit of all who have it; or why there is none."""
    if place.device != "cpu":
        return {}, "a GPU's is the copy"
    limits = Limits(shapes)
    try:
        steps = {each.traffic: limits.of(each.traffic) for each in contenders if each.traffic}
    except NoLimit as error:
        return {}, str(error)
    return {moved: Contender(step, _least(step, "cpu"), moved.total) for moved, step in steps.items()}, ""


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
        One row per implementation. Who could not run has ``why_not`` and no times. On a CPU
        ``share_of_limit`` is None where it could not be measured, and ``why_no_limit`` says why. ``others``
        is the share of the processors that other processes took meanwhile.
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
    limits, why_no_limit = limits_of(contenders.values(), shapes, place)
    clock, host_clock = CLOCKS[place.device]
    with Others() as others:
        times = timed({**contenders, **limits}, clock, turns)
        host_times = timed(contenders, host_clock, turns.of_host())
    walls = {name: times[name] for name in contenders}
    for row in rows:
        row["others"] = others.share
        name = row["implementation"]
        if name in contenders:
            own = contenders[name]
            row.update(figures(name, walls, row["elements"], own.bytes_per_element))
            row.update(of_limit(walls[name], times.get(own.traffic), why_no_limit))
            row["host_milliseconds"] = spread(host_times[name])._asdict()
            row.update(probe(own.step, place.device)._asdict())
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


def timed(contenders: Mapping[K, Contender], clock: Clock, turns: Turns) -> dict[K, list[float]]:
    """Returns the times of each, one a round."""

    def one(contender: Contender) -> float:
        contender.reset()
        return clock(contender.step, math.ceil((turns.timing + 1e-9) / contender.seconds))

    return dict(zip(contenders, in_turns(list(contenders.values()), turns, one), strict=True))


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


def of_limit(own: list[float], limit: list[float] | None, why_not: str) -> Row:
    """Returns the share of the limit of the same bytes in the same rounds, or why it is not known."""
    if limit is None:
        return {"share_of_limit": None, "why_no_limit": why_not} if why_not else {"share_of_limit": None}
    return {"share_of_limit": ratios(limit, own)._asdict()}


def rank(name: str, walls: dict[str, list[float]]) -> list[int]:
    """Returns the first and the last place that this run leaves open.

    Two are told apart only where the quartiles of their ratio lie on one side of 1.
    """
    against = [ratios(walls[name], other) for each, other in walls.items() if each != name]
    faster, slower = sum(r.low > 1 for r in against), sum(r.high < 1 for r in against)
    return [1 + faster, len(walls) - slower]
