"""What the page of `grokfast` shows."""

from __future__ import annotations

import statistics

from matplotlib.figure import Figure

from grokfused.lab.papers.cells import draw_curves, mean_of
from grokfused.lab.papers.frame import Page, Record, Verdict, rows_in, runs_of
from grokfused.lab.papers.grokfast import CONTROLS, ROWS, SEARCHED, row_found
from grokfused.lab.papers.pages import spread

COLUMNS = ("optimizer", "first crossing", "stable crossing", "mean first", "best accuracy", "seeds")


def cells(record: Record) -> list[list[str]]:
    """Returns the table: iterations to the threshold, medians with their ranges."""
    found = []
    for row in (row for row in rows_in(record) if "search" not in row):
        runs = runs_of(record, row)
        mean = mean_of(record, row, "first")
        numbers = [spread([run[name] for run in runs]) for name in ("first", "stable")]
        best = spread([run["best"] for run in runs], 3)
        what = ROWS[row].what
        if runs[0].get("found"):
            what = f"{what}: {row_found(row, runs[0]['found']).what}"
        found.append([what, *numbers, f"{mean:,.0f}" if mean < float("inf") else "", best, str(len(runs))])
    return found


def firsts(record: Record, row: str) -> list[int]:
    """Returns the first crossings; a run that did not arrive counts as its last iteration."""
    setting = record["setting"]
    last = setting["add_steps"] if row.startswith("add-") else ROWS[row].steps or setting["steps"]
    return [run["first"] or last for run in runs_of(record, row)]


def iterations(record: Record, row: str) -> float:
    """Returns the mean of them."""
    return statistics.mean(firsts(record, row))


def factor(record: Record, plain: str, filtered: str) -> float:
    """Returns how many times fewer iterations a row with a filter takes, on average."""
    return iterations(record, plain) / iterations(record, filtered)


def best_plain(record: Record, task: str) -> str:
    """Returns the row without a filter that takes the fewest iterations on average, of what was found."""
    there = [row for row in (f"{task}-best-none", f"{task}-best-ema-off") if row in rows_in(record)]
    return min(there, key=lambda row: iterations(record, row))


def best_of(record: Record, filters: bool) -> str:
    """Returns the control that takes the fewest iterations on average, of those with or without a filter."""
    rows = [
        row for row in rows_in(record) if row in CONTROLS and (ROWS[row].grad_filter != "none") == filters
    ]
    return min(rows, key=lambda row: mean_of(record, row, "first"))


def published(record: Record) -> list[str]:
    """Returns what the paper's runs and their controls say."""
    plain, filtered = best_of(record, False), best_of(record, True)
    runs = {
        "EMA": ("ema", "paper: 910"),
        "MA": ("ma", "790"),
        "Adam with the EMA's decay and no filter, within 1,200,": ("adam", ""),
        "and with beta1 raised": ("adam-beta1", ""),
    }
    said = [
        f"{what} {spread([run['first'] for run in runs_of(record, row)])}"
        + (f" ({theirs})" if theirs else "")
        for what, (row, theirs) in runs.items()
        if row in rows_in(record)
    ]
    plain_mean = f"{mean_of(record, plain, 'first'):,.0f}"
    against = f"the paper's EMA is {factor(record, plain, 'ema'):.2f}x"
    if filtered != "ema":
        against += f", the best filter ({ROWS[filtered].what}) {factor(record, plain, filtered):.2f}x"
    return [
        f"First crossings of the paper's runs, iterations: {', '.join(said)}.",
        f"{ROWS[plain].what}, takes {plain_mean} iterations on average: against it {against}. The published "
        "44x is against Adam without decay: `--full`.",
    ]


def searched(record: Record, task: str) -> str:
    """Returns what the searches on a task came to."""
    with_one, without = (
        f"{iterations(record, row):,.0f} ({min(firsts(record, row)):,} to {max(firsts(record, row)):,})"
        for row in (f"{task}-best-ema", best_plain(record, task))
    )
    return f"{SEARCHED[task]} takes {with_one} iterations with a filter and {without} without"


def told(met: bool) -> str:
    """Returns whether an aim was met, in words."""
    return "was met" if met else "was not met"


def verdict(record: Record) -> Verdict:
    """Returns what came out: means of the first crossings."""
    there = rows_in(record)
    tasks = [task for task in SEARCHED if f"{task}-best-ema" in there]
    times = [factor(record, best_plain(record, task), f"{task}-best-ema") for task in tasks]
    reading = published(record) if "ema" in there else []
    factors = [f"{each:.2f}x on {SEARCHED[task]}" for task, each in zip(tasks, times, strict=True)]
    sooner = len(tasks) == len(SEARCHED) and min(times) >= 1.3
    soon = "multiply" in tasks and iterations(record, "multiply-best-ema") <= 600
    if tasks:
        took = "; ".join(searched(record, task) for task in tasks)
        reading += [
            f"Searched alike, and judged by seeds that no search had seen, {took}: {', '.join(factors)}.",
            "There, without a filter is the better of two: that search's best, and the filter's best without "
            "its filter. A run that did not arrive counts as its last iteration. Of the aims, at most 600 "
            f"iterations on x * y {told(soon)}, and 1.3x on both {told(sooner)}.",
        ]
    if "ema" in there:
        factors.insert(0, f"{factor(record, best_of(record, False), 'ema'):.2f}x for the paper's EMA")
    holds = "yes" if soon and sooner else "in part" if "ema" in there else "no"
    return Verdict(holds, ", ".join(factors), reading)


def draw(record: Record, figure: Figure) -> None:
    """Draws validation accuracy over iterations, a colour a row, a thin line a seed."""
    rows = [row for row in rows_in(record) if row in CONTROLS] or ["add-best-none", "add-best-ema"]
    labels = {row: ROWS[row].what for row in rows}
    draw_curves(record, figure, "validation", labels)


PAGE = Page(columns=COLUMNS, cells=cells, verdict=verdict, draw=draw)
