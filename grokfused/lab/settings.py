"""What alpha, lamb and a late filter do in short runs: three small real tasks, and one that groks.

Each row is an optimizer, each task a model and its data. In a seed, all rows of a task begin with the same
weights and see the same batches.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from grokfused import GrokAdam
from grokfused.lab import settings_tasks
from grokfused.lab.settings_tasks import FULL, QUICK, Setting, Task

__all__ = ["FULL", "QUICK", "ROWS", "TASKS", "Row", "Setting", "measure", "plan"]

TASKS: dict[str, Callable[[int, Setting], Task]] = {
    "text": settings_tasks.language_model,
    "tune": settings_tasks.fine_tune,
    "images": settings_tasks.images,
    "grok": settings_tasks.grokking,
    "paper": settings_tasks.grokking_of_the_paper,
}


@dataclass(frozen=True)
class Row:
    """An optimizer: its filter, and its learning rate as a multiple of the task's.

    ``begins`` is the share of the run before which lamb is 0; with ``ramped`` it grows linearly from 0 to its
    value at the end of the run.
    """

    what: str
    alpha: float = 0.98
    lamb: float = 2.0
    lr: float = 1.0
    begins: float = 0.0
    ramped: bool = False

    def lamb_at(self, share: float) -> float:
        """Returns lamb after this share of the run, in [0, 1)."""
        if share < self.begins:
            return 0.0
        return self.lamb * share if self.ramped else self.lamb

    def optimizer(self, task: Task) -> GrokAdam:
        """Returns it on the task's model, with lamb written into the group before each step."""
        made = task.optimizer(
            task.model.parameters(),
            lr=self.lr * task.lr,
            betas=task.betas,
            weight_decay=task.weight_decay,
            grad_filter="ema" if self.lamb else "none",
            alpha=self.alpha,
            lamb=self.lamb,
        )
        steps = iter(range(task.steps))

        def write_lamb(optimizer: Any, args: Any, kwargs: Any) -> None:
            optimizer.param_groups[0]["lamb"] = self.lamb_at(next(steps) / task.steps)

        made.register_step_pre_hook(write_lamb)
        return made


ROWS = {
    "none": Row("no filter", lamb=0.0),
    "none-low": Row("no filter, lr / 3", lamb=0.0, lr=1 / 3),
    "none-high": Row("no filter, lr * 3", lamb=0.0, lr=3.0),
    "default": Row("alpha 0.98, lamb 2: the default"),
    "default-low": Row("alpha 0.98, lamb 2, lr / 3 (= 1 + lamb)", lr=1 / 3),
    "lamb-1": Row("alpha 0.98, lamb 1", lamb=1.0),
    "lamb-0.5": Row("alpha 0.98, lamb 0.5", lamb=0.5),
    "alpha-0.9": Row("alpha 0.9, lamb 2", alpha=0.9),
    "alpha-0.8": Row("alpha 0.8, lamb 2", alpha=0.8),
    "both": Row("alpha 0.9, lamb 0.5", alpha=0.9, lamb=0.5),
    "late": Row("alpha 0.98, lamb 2 in the second half only", begins=0.5),
    "ramp": Row("alpha 0.98, lamb from 0 to 2, linearly", ramped=True),
}
# A task that groks takes a minute: of these rows only.
GROK_ROWS = {
    "grok": ("none", "none-low", "default", "default-low", "lamb-1", "alpha-0.9", "both", "late", "ramp"),
    "paper": ("none", "default", "alpha-0.9", "both"),
}


def plan(seeds: Sequence[int]) -> Iterator[tuple[str, int, str]]:
    """Yields task, seed and row of each run, in an order in which runs share what they begin with."""
    for task, seed in product(TASKS, seeds):
        yield from ((task, seed, row) for row in GROK_ROWS.get(task, ROWS))


def measure(task_name: str, row_name: str, seed: int, setting: Setting) -> dict[str, Any]:
    """Trains, and returns the run; its value is a held-out loss, or the steps to 95 % and None if never."""
    task = TASKS[task_name](seed, setting)
    begin = time.perf_counter()
    value = task.train(ROWS[row_name].optimizer(task))
    seconds = time.perf_counter() - begin
    return {"task": task_name, "row": row_name, "seed": seed, "value": value, "seconds": round(seconds, 1)}
