"""Grokfast (arXiv:2405.20233) on x * y mod 97: its two runs, the controls that it lacks, and a search."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grokfused.lab.papers import search
from grokfused.lab.papers.arithmetic import Setting, add, multiply
from grokfused.lab.papers.cells import Row, thinned
from grokfused.lab.papers.frame import Experiment, Run, Size
from grokfused.lab.papers.training import crossings
from grokfused.lab.papers.watch import Watch

SEARCH_SEED = 100  # and the next ones: no claim uses them
ROWS = {
    "ema": Row("Adam, decay 0.005, EMA(0.98, 2): the paper's", 0.005, True, "ema"),
    "adamw-1": Row("AdamW, decay 1, no filter", 1.0),
    "adamw-2": Row("AdamW, decay 2, no filter", 2.0),
    "adamw-2-ema": Row("AdamW, decay 2, EMA(0.9, 1)", 2.0, grad_filter="ema", alpha=0.9, lamb=1.0),
    "ma": Row("Adam, decay 0.01, MA(100, 5): the paper's", 0.01, True, "mean", lamb=5.0),
    # Mean age of a gradient in a step: 9 + 1/2 * 9 steps, as with EMA(0.9, 1) and beta1 0.9.
    "adamw-2-beta1": Row("AdamW, decay 2, no filter, beta1 0.931", 2.0, beta1=0.931),
    "adam": Row("Adam, decay 0.005, no filter, 1,200 iterations", 0.005, True, steps=1_200),
    # 9 + 2/3 * 49 steps, as with EMA(0.98, 2) and beta1 0.9.
    "adam-beta1": Row(
        "Adam, decay 0.005, no filter, beta1 0.977, 1,200 iterations", 0.005, True, beta1=0.977, steps=1_200
    ),
    "adam-0": Row("Adam, decay 0, no filter: the paper's baseline", 0.0, True, steps=60_000),
}
CONTROLS = tuple(ROWS)[:-1]
SEARCHED = {"add": "a + b mod 31", "multiply": "x * y mod 97"}
# What was found -> by which search, with which filter, and its words. A search may be luckier than another:
# so what was found with a filter runs without it too.
BEST = {
    "none": ("none", "none", "the best found without a filter"),
    "ema": ("ema", "ema", "the best found with one"),
    "ema-off": ("ema", "none", "that one's filter left out"),
}

for _task, _words in SEARCHED.items():
    ROWS |= {f"{_task}-search-{kind}": Row(f"{_words}, search", 0.0) for kind in search.SPACES}
    ROWS |= {f"{_task}-best-{kind}": Row(f"{_words}, {what}", 0.0) for kind, (*_, what) in BEST.items()}
TASKS = {"add": (add, 3), "multiply": (multiply, 2)}  # and the seeds of a trial


def run(name: str, seed: int, setting: Setting, watch: Watch) -> Run:
    """Makes one run, or the trials of a search."""
    row = ROWS[name]
    task, _, kind = name.rpartition("-search-")
    if task:
        return searched(task, kind, setting, watch)
    task, _, kind = name.rpartition("-best-")
    found: dict[str, Any] = watch.kept(f"{task}-{BEST[kind][0]}") if task else {}
    train = TASKS[task][0] if task else multiply
    steps = setting.add_steps if task == "add" else row.steps or setting.steps
    points = train(row_found(name, found) if task else row, seed, setting, watch, steps)
    first, stable = crossings(points, "validation", setting.threshold)
    best = max(point["validation"] for point in points)
    return {"first": first, "stable": stable, "best": best, "points": thinned(points), "found": found}


def row_found(name: str, found: Mapping[str, float]) -> Row:
    """Returns the optimizer of a row, of what was found for it."""
    return search.row_of(found, BEST[name.rpartition("-best-")[2]][1])


def searched(task: str, kind: str, setting: Setting, watch: Watch) -> Run:
    """Searches one kind of optimizer on one task, with seeds that no claim uses."""
    train, seeds = TASKS[task]
    steps, trials = (
        (setting.add_steps, setting.add_trials) if task == "add" else (800, setting.multiply_trials)
    )

    def cost(row: Row, trial: int) -> float:
        costs = []
        for seed in range(SEARCH_SEED, SEARCH_SEED + seeds):
            points = train(row, seed, setting, watch, steps, f"{trial}-{seed}")
            first, _ = crossings(points, "validation", setting.threshold)
            # Who has not arrived is ranked by how far it is.
            costs.append(first or steps * (2 - max(point["validation"] for point in points)))
        return sum(costs) / len(costs)

    return search.search(f"{task}-{kind}", kind, trials, cost, watch, SEARCH_SEED)


def work(name: str, setting: Setting) -> float:
    """Returns how long a run or a search takes, beside a run on x * y mod 97; one on a + b is short."""
    task = name.partition("-")[0]
    if task not in TASKS:
        return (ROWS[name].steps or setting.steps) / setting.steps
    trials = {"add": setting.add_trials, "multiply": setting.multiply_trials}[task] * TASKS[task][1]
    return {"add": 0.01, "multiply": 1.0}[task] * (trials if "search" in name else 1)


ADDITION = tuple(row for row in ROWS if row.startswith("add-"))
MULTIPLICATION = tuple(row.replace("add", "multiply") for row in ADDITION)
ONCE = {row: 1 for row in ROWS if "search" in row}
USUAL = Size(Setting(), (*ADDITION, *CONTROLS), tuple(range(10)), {**ONCE, **dict.fromkeys(CONTROLS, 5)})
EXPERIMENT = Experiment(
    rows=ROWS,
    run=run,
    sizes={
        "quick": Size(Setting(add_trials=3, add_steps=1_500), ADDITION, (0, 1), ONCE),
        "usual": USUAL,
        "full": USUAL._replace(rows=(*ADDITION, *MULTIPLICATION, *CONTROLS, "adam-0")),
    },
    needs=search.needs,
    work=work,
)
