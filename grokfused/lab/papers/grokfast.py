"""Grokfast (arXiv:2405.20233) on x * y mod 97: its two runs, and the controls that it lacks."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy

from grokfused.lab.model import Decoder
from grokfused.lab.papers.cells import Row, draw_curves, thinned
from grokfused.lab.papers.frame import Paper, Record, Run, Size, Verdict, Watch, rows_in, runs_of
from grokfused.lab.papers.pages import spread
from grokfused.lab.papers.training import Batches, Training, accuracy, crossings, curve, has_stayed
from grokfused.lab.task import modular_multiplication
from grokfused.lab.training import WARM_UP


@dataclass(frozen=True)
class Setting:
    """What all runs share: the task, the network, and how long a run is."""

    modulus: int = 97
    dim: int = 128
    layers: int = 2
    batch: int = 512
    threshold: float = 0.95
    every: int = 20
    after: int = 100  # steps after the first crossing, to see whether it is stable
    steps: int = 1_600


ROWS = {
    "ema": Row("Adam, decay 0.005, EMA(0.98, 2): the paper's", 0.005, True, "ema"),
    "ma": Row("Adam, decay 0.01, MA(100, 5): the paper's", 0.01, True, "mean", lamb=5.0),
    "adam": Row("Adam, decay 0.005, no filter", 0.005, True, steps=1_200),
    # The mean age of a gradient in a step is then that of EMA(0.98, 2) and beta1 0.9: 9 + 2/3 * 49 steps.
    "adam-beta1": Row("Adam, decay 0.005, no filter, beta1 0.977", 0.005, True, beta1=0.977, steps=1_200),
    "adamw-1": Row("AdamW, decay 1, no filter", 1.0),
    "adamw-2": Row("AdamW, decay 2, no filter", 2.0),
    "adamw-2-beta1": Row("AdamW, decay 2, no filter, beta1 0.931", 2.0, beta1=0.931),
    "adamw-2-ema": Row("AdamW, decay 2, EMA(0.9, 1)", 2.0, grad_filter="ema", alpha=0.9, lamb=1.0),
    "adam-0": Row("Adam, decay 0, no filter: the paper's baseline", 0.0, True, steps=60_000),
}
CONTROLS = tuple(ROWS)[:-1]


def train(row: Row, seed: int, setting: Setting, watch: Watch, steps: int, part: str = "") -> list[Run]:
    """Trains the decoder with a row's optimizer; returns the curve of its validation accuracy."""
    torch.manual_seed(seed)
    model = Decoder(setting.modulus + 2, setting.dim, setting.layers).to(watch.device)
    task = modular_multiplication(torch.Generator().manual_seed(seed), setting.modulus, watch.device)
    training = Training(
        model,
        row.optimizer(model, beta2=0.98),
        Batches(len(task.train), setting.batch, seed, watch.device),
        lambda rows: cross_entropy(model(task.train[rows]), task.train_answers[rows]),
        lambda update: min(1.0, update / WARM_UP),
    )
    return curve(
        training,
        watch,
        steps,
        setting.every,
        lambda: {"validation": accuracy(model, task.validation, task.validation_answers)},
        has_stayed("validation", setting.threshold, setting.after),
        part,
    )


def run(name: str, seed: int, setting: Setting, watch: Watch) -> Run:
    """Makes one run."""
    row = ROWS[name]
    points = train(row, seed, setting, watch, row.steps or setting.steps)
    first, stable = crossings(points, "validation", setting.threshold)
    best = max(point["validation"] for point in points)
    seconds = points[-1]["seconds"]
    return {"first": first, "stable": stable, "best": best, "points": thinned(points), "seconds": seconds}


def firsts(record: Record, row: str) -> list[int | None]:
    """Returns the first crossings of a row, seed by seed."""
    return [run["first"] for run in runs_of(record, row)]


COLUMNS = ("optimizer", "first crossing", "stable crossing", "mean first", "best accuracy", "seeds")


def cells(record: Record) -> list[list[str]]:
    """Returns the table: iterations to the threshold, medians with their ranges."""
    found = []
    for row in rows_in(record):
        runs = runs_of(record, row)
        reached = [first for first in firsts(record, row) if first is not None]
        mean = f"{statistics.mean(reached):,.0f}" if len(reached) == len(runs) else ""
        found.append(
            [
                ROWS[row].what,
                *(spread([run[name] for run in runs]) for name in ("first", "stable")),
                mean,
                spread([run["best"] for run in runs], 3),
                str(len(runs)),
            ]
        )
    return found


def mean_first(record: Record, row: str) -> float:
    """Returns the mean first crossing of a row; infinite where a seed has none."""
    found = firsts(record, row)
    reached = [first for first in found if first is not None]
    return statistics.mean(reached) if found and len(reached) == len(found) else float("inf")


def best_of(record: Record, filtered: bool) -> str:
    """Returns the row with the smallest mean first crossing, of those with or without a filter."""
    rows = [row for row in rows_in(record) if (ROWS[row].grad_filter != "none") == filtered]
    return min(rows, key=lambda row: mean_first(record, row))


def verdict(record: Record) -> Verdict:
    """Returns what came out."""
    return Verdict("in part", "", [])


def draw(record: Record, figure: Figure) -> None:
    """Draws validation accuracy over iterations, a colour a row, a thin line a seed."""
    draw_curves(record, figure, "validation", {row: ROWS[row].what for row in rows_in(record)})


USUAL = Size(Setting(), CONTROLS, (0, 1, 2, 3, 4))
QUICK = Size(Setting(modulus=23, dim=32, layers=1, steps=400, after=0), ("adamw-1", "ema"), (0,))
PAPER = Paper(
    name="grokfast",
    rows=ROWS,
    run=run,
    sizes={"quick": QUICK, "usual": USUAL, "full": USUAL._replace(rows=tuple(ROWS))},
    columns=COLUMNS,
    cells=cells,
    verdict=verdict,
    draw=draw,
)
