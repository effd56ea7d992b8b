"""Where narrow states break: four cases, each optimizer's updates beside those of float32.

All are plain AdamW, without decay and without a filter, on the same gradients. What is compared is what a
parameter moves by, because that is what an optimizer is for, whatever it keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokfused import GrokAdamW
from grokfused.lab.bench.peers import AO, BNB, PEERS, PeerMissing

SIZE = (256, 256)  # of the parameter: bitsandbytes and torchao keep smaller ones in float32
LAST = 20  # steps that are compared, at the end
LR = 1e-3


class Case(NamedTuple):
    """A sequence of gradients.

    Attributes:
        what: What tables call it.
        steps: How many.
        beta2: Of all optimizers.
        grad: (step, source of random numbers) -> the gradient, float32 ``SIZE``.
        looked_at: Which elements are compared, bool ``SIZE``.
    """

    what: str
    steps: int
    beta2: float
    grad: Callable[[int, torch.Generator], Tensor]
    looked_at: Tensor


def _normal(_: int, random: torch.Generator) -> Tensor:
    return torch.randn(SIZE, generator=random) * 1e-3


def _with_outliers(times: float) -> Callable[[int, torch.Generator], Tensor]:
    def grad(step: int, random: torch.Generator) -> Tensor:
        found = _normal(step, random)
        found[OUTLIERS] *= times
        return found

    return grad


def _rare_rows(step: int, random: torch.Generator) -> Tensor:
    seen = torch.rand(SIZE[0], 1, generator=random) < 1 / 50
    return torch.where(seen, _normal(step, random), 0.0)


def _stopping(step: int, random: torch.Generator) -> Tensor:
    grad = _normal(step, random)
    if 200 <= step < RETURNS:
        grad[STOPPING] = 0
    return grad


def _columns(every: int) -> Tensor:
    """Returns a mask of every so-manieth column."""
    return (torch.arange(SIZE[1]) % every == 0).expand(SIZE)


RETURNS = 2_200  # the step
ALL, OUTLIERS, STOPPING = _columns(1), _columns(64), _columns(2)
CASES = {
    "plain": Case("plain gradients", 300, 0.999, _normal, ALL),
    "outlier": Case("1 of 64 is 100 times as large: the others", 300, 0.999, _with_outliers(1e2), ~OUTLIERS),
    "far": Case("1 of 64 is 1,000 times as large: the others", 300, 0.999, _with_outliers(1e3), ~OUTLIERS),
    "rows": Case("rows of an embedding, each in 1 of 50 steps", 1_000, 0.999, _rare_rows, ALL),
    "stop": Case(
        "half of the elements have no gradient for 2,000 steps: these, as it returns",
        RETURNS + LAST,
        0.999,
        _stopping,
        STOPPING,
    ),
    "slow": Case("beta2 = 0.9999", 2_000, 0.9999, _normal, ALL),
}
OURS = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "block8": "block8",
}
OTHERS = {"bitsandbytes AdamW8bit": BNB, "torchao AdamW8bit": AO}
NAMES = (*OURS, *OTHERS)


class Found(NamedTuple):
    """What a case made of an optimizer.

    Attributes:
        error: Root mean square of the difference to float32's updates, relative to that of these.
        size: Mean size of the updates, relative to float32's.
    """

    error: float
    size: float


def made(name: str, param: Tensor, beta2: float) -> torch.optim.Optimizer:
    """Returns the optimizer of a row; raises PeerMissing where it is not installed."""
    if name in OURS:
        options = {"lr": LR, "betas": (0.9, beta2), "weight_decay": 0.0, "grad_filter": "none"}
        return GrokAdamW([param], state_dtype=OURS[name], **options)  # type: ignore[arg-type]
    peer = PEERS[OTHERS[name]]
    own = peer._replace(options={"lr": LR, "betas": (0.9, beta2), "eps": 1e-8, "weight_decay": 0.0})
    return own.optimizer([param])


def updates(name: str, case: Case, seed: int) -> Iterator[Tensor]:
    """Yields by what the elements that are looked at move in each of the last steps, over lr."""
    param = torch.zeros(SIZE, requires_grad=True)
    optimizer = made(name, param, case.beta2)
    random = torch.Generator().manual_seed(seed)
    for step in range(case.steps):
        param.grad = case.grad(step, random)
        with torch.no_grad():
            param.zero_()  # so that a small update is not rounded away
        optimizer.step()
        if step >= case.steps - LAST:
            yield param.detach()[case.looked_at] / LR


def measure(name: str, case: Case, seed: int) -> Found:
    """Runs a case with an optimizer, and with float32 beside it."""
    pairs = list(zip(updates(name, case, seed), updates("float32", case, seed), strict=True))
    ours, truth = (torch.stack(each).double() for each in zip(*pairs, strict=True))
    error = float((ours - truth).square().mean().sqrt() / truth.square().mean().sqrt())
    return Found(error, float(ours.abs().mean() / truth.abs().mean()))


def run(seed: int, told: Callable[[str], None]) -> list[dict[str, Any]]:
    """Measures every case with every optimizer; one that is not installed has ``why_not``."""
    found: list[dict[str, Any]] = []
    for key, case in CASES.items():
        for name in NAMES[1:]:
            row: dict[str, Any] = {"case": key, "name": name, "seed": seed}
            try:
                error, size = measure(name, case, seed)
                row |= {"error": error, "size": size}
                told(f"{case.what}, {name}: error {error:.3f}, size {size:.3f}")
            except PeerMissing as error:
                row["why_not"] = str(error)
                told(f"{name}: {error}")
            found.append(row)
    return found


def is_finite(row: dict[str, Any]) -> bool:
    """True where a row has figures that can be shown."""
    return "why_not" not in row and math.isfinite(row["error"])
