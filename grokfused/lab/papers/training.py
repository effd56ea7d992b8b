"""One network in training, and its curve: what every paper's runs are made of."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from grokfused.lab.papers.frame import Run
from grokfused.lab.papers.watch import Watch

Points = list[Run]


class Batches:
    """Rows of a data set, in epochs that are shuffled anew, without end.

    Args:
        count: Rows there are.
        size: Rows of a batch; the last one of an epoch may have fewer. 0 is all, in their order.
        seed: Decides the order.
        device: Where the rows' numbers live.
    """

    def __init__(self, count: int, size: int, seed: int, device: str = "cpu") -> None:
        self.count, self.size, self.device = count, size, device
        self.random = torch.Generator().manual_seed(seed)
        self.left = torch.arange(0)

    def next(self) -> Tensor:
        """Returns the numbers of the next rows, int64."""
        if not self.size:
            return torch.arange(self.count, device=self.device)
        if not len(self.left):
            self.left = torch.randperm(self.count, generator=self.random)
        rows, self.left = self.left[: self.size], self.left[self.size :]
        return rows.to(self.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Returns the place in the epoch."""
        return {"left": self.left, "random": self.random.get_state()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from there."""
        self.left = state["left"]
        self.random.set_state(state["random"])


class Training:
    """A model, its optimizer, and the batches that it sees; all of it can be saved between two steps.

    Args:
        model: In training.
        optimizer: On the model's parameters.
        batches: Which rows come next.
        loss: Rows -> loss [] of the model.
        scale: Updates done -> what the learning rate is multiplied by. (default: 1 throughout)
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        batches: Batches,
        loss: Callable[[Tensor], Tensor],
        scale: Callable[[int], float] = lambda update: 1.0,
    ) -> None:
        self.model, self.optimizer, self.batches, self.loss = model, optimizer, batches, loss
        self.schedule = LambdaLR(optimizer, scale)
        self.steps = 0

    def step(self) -> Tensor:
        """Takes one step; returns the loss before it, []."""
        loss = self.loss(self.batches.next())
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        self.steps += 1
        return loss.detach()

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a continued training depends on."""
        parts = {name: getattr(self, name).state_dict() for name in ("model", "optimizer", "batches")}
        updates = {name: value for name, value in self.schedule.state_dict().items() if name != "lr_lambdas"}
        return {**parts, "schedule": updates, "random": torch.get_rng_state(), "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where ``state_dict`` was taken."""
        for name in ("model", "optimizer", "batches"):
            getattr(self, name).load_state_dict(state[name])
        self.schedule.load_state_dict({"lr_lambdas": [None], **state["schedule"]})
        torch.set_rng_state(state["random"])
        self.steps = state["steps"]


def curve(
    training: Training,
    watch: Watch,
    steps: int,
    every: int,
    measure: Callable[[], Run],
    enough: Callable[[Points], bool] = lambda points: False,
    part: str = "",
) -> Points:
    """Trains, and returns what was measured every few steps.

    Args:
        training: What to train; goes on from the watch's checkpoint, bit for bit.
        watch: Shows how far it is, and keeps the checkpoint.
        steps: At most.
        every: Steps between two measurements.
        measure: Returns numbers by name; the first one is shown.
        enough: Says whether to stop after the last point. (default: never)
        part: Tells apart the curves of a run. (default: "")

    Returns:
        A point per measurement: ``step`` and the measured numbers.
    """
    points: Points = []
    saved = watch.saved(part)
    if saved:
        training.load_state_dict(saved["training"])
        points = saved["points"]
    while training.steps < steps and not (points and enough(points)):
        for _ in range(min(every, steps - training.steps)):
            training.step()
        measured = measure()
        points.append({"step": training.steps, **measured})
        name, value = next(iter(measured.items()))
        watch.show(training.steps / steps, f"step {training.steps:,}, {name} {value:.3f}")
        watch.save(part, lambda: {"training": training.state_dict(), "points": points})
    return points


def crossings(points: Sequence[Run], name: str, threshold: float) -> tuple[int | None, int | None]:
    """Returns the steps of the first and of the stable crossing of a threshold, None where there is none.

    The stable one is the first point from which on no point is below the threshold.
    """
    above = [point[name] >= threshold for point in points]
    first = next((point["step"] for point, is_above in zip(points, above, strict=True) if is_above), None)
    below = max((at for at, is_above in enumerate(above) if not is_above), default=-1)
    stable = points[below + 1]["step"] if below + 1 < len(points) else None
    return first, stable


def has_stayed(name: str, threshold: float, steps: int) -> Callable[[Points], bool]:
    """Returns a function that says whether so many steps have passed since the first crossing."""

    def enough(points: Points) -> bool:
        first, _ = crossings(points, name, threshold)
        return first is not None and points[-1]["step"] >= first + steps

    return enough


@torch.no_grad()
def accuracy(model: nn.Module, questions: Tensor, answers: Tensor) -> float:
    """Returns the share of questions, [n, ...], whose largest output is the answer, int64 [n]."""
    parts = zip(questions.split(1024), answers.split(1024), strict=True)
    return sum(int((model(part).argmax(1) == truth).sum()) for part, truth in parts) / len(answers)


def falling(steps: int) -> Callable[[int], float]:
    """Returns the scale of a learning rate that falls to 0 on a cosine."""
    return lambda update: (1 + math.cos(math.pi * min(update, steps) / steps)) / 2
