"""What the page of `tickets` shows."""

from __future__ import annotations

import statistics

from matplotlib.figure import Figure

from grokfused.lab.papers.frame import Page, Record, Verdict, rows_in, runs_of
from grokfused.lab.papers.pages import spread
from grokfused.lab.papers.tickets import NETS, ROWS


def speedups(record: Record, row: str) -> list[float | None]:
    """Returns how many times sooner than the dense run of its seed each run generalises, None where never."""
    net = ROWS[row].net
    dense = {run["seed"]: run["t_gen"] for run in runs_of(record, f"{net}-dense")}
    pairs = [(dense.get(run["seed"]), run["t_gen"]) for run in runs_of(record, row)]
    return [slow / fast if slow and fast else None for slow, fast in pairs]


def median_of(record: Record, row: str) -> float:
    """Returns the median of a row's speedups, of which one that never generalises counts as 0."""
    return statistics.median([times or 0.0 for times in speedups(record, row)] or [0.0])


def cells(record: Record) -> list[list[str]]:
    """Returns the table: medians of the seeds with their ranges."""
    found = []
    for row in [row for row in ROWS if row in rows_in(record)]:
        runs = runs_of(record, row)
        numbers = [spread([run[name] for run in runs]) for name in ("t_mem", "t_gen")]
        best = spread([run["best"] for run in runs], 3)
        last = f"{max(run['last'] for run in runs):,}"
        found.append([ROWS[row].what, *numbers, spread(speedups(record, row), 1), best, last])
    return found


def verdict(record: Record) -> Verdict:
    """Returns what came out, network by network."""
    nets = [net for net in NETS if f"{net}-ticket" in rows_in(record)]
    times = {net: speedups(record, f"{net}-ticket") for net in nets}
    middle = {net: median_of(record, f"{net}-ticket") for net in nets}
    others = {
        net: max(run["best"] for kind in ("random", "memorised") for run in runs_of(record, f"{net}-{kind}"))
        for net in nets
    }
    sooner = [min(each or 0.0 for each in found) > 1 for found in times.values()]
    sparse = [run["best"] for row in rows_in(record) if row.endswith("-81") for run in runs_of(record, row)]
    dense = [run for net in nets for run in runs_of(record, f"{net}-dense") if run.get("moved")]
    peaks = [max(run["moved"], key=lambda pair: pair[1])[0] / run["last"] for run in dense]
    movement = (
        f"Without decay, tickets of 19 % reach {spread(sparse, 2)} test accuracy; the paper has them "
        f"generalise. Masks of dense runs move most after {spread(peaks, 2)} of their steps."
    )
    beaten = {net: random for net in nets if (random := median_of(record, f"{net}-random")) > middle[net]}
    return Verdict(
        "yes" if all(sooner) and min(sparse, default=1.0) >= 0.95 else "in part" if any(sooner) else "no",
        ", ".join(f"{net} {middle[net]:.1f}x" for net in nets),
        [
            "Tickets generalise sooner than the dense network they were found in by these factors (median of "
            "the seeds): " + ", ".join(f"{net} {spread(times[net], 1)}" for net in nets) + ".",
            "Random masks and the largest weights when only memorised reach at best these test accuracies: "
            + ", ".join(f"{net} {others[net]:.3f}" for net in nets)
            + ".",
            *(f"On {net} random masks are sooner still: {times:.1f}." for net, times in beaten.items()),
            *([movement] if sparse and peaks else []),
        ],
    )


def draw(record: Record, figure: Figure) -> None:
    """Draws when each run generalises, and how far the masks of dense runs move."""
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    rows = [row for row in reversed(ROWS) if row in rows_in(record)]
    for height, row in enumerate(rows):
        for run in runs_of(record, row):
            reached = run["t_gen"] is not None
            left.plot(
                run["t_gen"] or run["last"], height, "o" if reached else "x", color="C0" if reached else "0.7"
            )
    left.set_yticks(range(len(rows)), [ROWS[row].what for row in rows], fontsize=5)
    left.set(xscale="log", xlabel="steps to generalisation (x: not by then)")
    for number, net in enumerate(NETS):
        for at, run in enumerate(runs_of(record, f"{net}-dense")):
            if run.get("moved"):
                steps, moved = zip(*run["moved"], strict=True)
                right.plot(
                    [step / steps[-1] for step in steps], moved, f"C{number}", label=None if at else net
                )
    right.set(xlabel="share of the dense run", ylabel="Jaccard distance of masks, a twentieth apart")
    if right.get_legend_handles_labels()[0]:
        right.legend(frameon=False, fontsize=7)


PAGE = Page(
    columns=("run", "t_mem", "t_gen", "sooner than dense", "best test", "last step"),
    cells=cells,
    verdict=verdict,
    draw=draw,
)
