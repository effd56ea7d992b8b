"""What a program that changes things between steps pays: other gradients in each step, thousands of groups.

python -m bench.changing prints, for each, the time of a step beside AdamW(fused=True), taken in turns.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from grokfused import GrokAdamW

Optimizer = torch.optim.Optimizer


def params(count: int, size: int) -> list[Tensor]:
    made = [torch.randn(size).requires_grad_() for _ in range(count)]
    for param in made:
        param.grad = torch.randn_like(param) * 1e-3
    return made


def pair(ours: list[Tensor], theirs: list[Tensor], groups: int = 1) -> tuple[Optimizer, Optimizer]:
    """Returns both optimizers; of as many groups as are asked for, each with a learning rate of its own."""

    def split(some: list[Tensor]) -> list[dict[str, object]]:
        return [{"params": some[n::groups], "lr": 1e-3 * (1 + n / groups)} for n in range(groups)]

    return GrokAdamW(split(ours)), torch.optim.AdamW(split(theirs), fused=True)


def timed(step: Callable[[], object]) -> float:
    begin = time.perf_counter()
    step()
    return time.perf_counter() - begin


def shown(name: str, ours: list[float], theirs: list[float]) -> None:
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4)
    milliseconds = [1e3 * statistics.median(times) for times in (ours, theirs)]
    print(
        f"{name}: {milliseconds[0]:.3f} ms, AdamW(fused) {milliseconds[1]:.3f} ms, "
        f"ratio {middle:.2f} ({low:.2f}-{high:.2f})"
    )


def other_gradients(count: int, size: int, rounds: int) -> None:
    """A random half of the parameters has a gradient in each step."""
    sides = [params(count, size) for _ in range(2)]
    grads = [[param.grad for param in side] for side in sides]
    optimizers, times = pair(*sides), ([], [])
    for _ in range(rounds):
        chosen = set(random.sample(range(count), count // 2))
        for side, own in zip(sides, grads, strict=True):
            for number, (param, grad) in enumerate(zip(side, own, strict=True)):
                param.grad = grad if number in chosen else None
        for optimizer, taken in zip(optimizers, times, strict=True):
            taken.append(timed(optimizer.step))
    shown(f"random half of {count} x {size}", *(taken[rounds // 4 :] for taken in times))


def many_groups(groups: int, rounds: int) -> None:
    """The first step, which makes the states, and the second one, of groups of one parameter each."""
    first, second = ([], []), ([], [])
    for _ in range(rounds):
        for side, optimizer in enumerate(pair(params(groups, 8), params(groups, 8), groups)):
            first[side].append(timed(optimizer.step))
            second[side].append(timed(optimizer.step))
    shown(f"first step of {groups} groups", *first)
    shown(f"second step of {groups} groups", *second)


def main() -> None:
    """Prints a line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=400)
    rounds = parser.parse_args().rounds
    random.seed(0)
    other_gradients(200, 1024, rounds)
    many_groups(4000, max(3, rounds // 80))


if __name__ == "__main__":
    main()
