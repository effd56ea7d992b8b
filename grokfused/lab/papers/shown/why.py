"""What the page of `why` shows."""

from __future__ import annotations

from matplotlib.figure import Figure

from grokfused.lab.papers.frame import Page, Record, Run, Verdict, rows_in, runs_of
from grokfused.lab.papers.pages import spread
from grokfused.lab.papers.why import MEASURES, ROWS


def at(run: Run, when: str, name: str) -> float | None:
    """Returns a measure where the run has memorised or generalised, None if it never has."""
    return next((point[name] for point in run["points"] if point["step"] == run[when]), None)


def cells(record: Record) -> list[list[str]]:
    """Returns the table: each measure where the network has memorised, and where it generalises."""
    found = []
    for row in rows_in(record):
        runs = runs_of(record, row)
        times = [spread([run[when] for run in runs]) for when in ("memorised", "generalised")]
        found.append([ROWS[row].what, "step", *times, ""])
        for name, what in MEASURES.items():
            begin, end = ([at(run, when, name) for run in runs] for when in ("memorised", "generalised"))
            falls = sum(b < a for a, b in zip(begin, end, strict=True) if a is not None and b is not None)
            found.append(["", what, spread(begin, 2), spread(end, 2), f"{falls} of {len(runs)}"])
    return found


def falls(record: Record, row: str, name: str) -> list[bool]:
    """Returns of each run that generalised whether a measure fell from memorising to generalising."""
    pairs = [(at(run, "memorised", name), at(run, "generalised", name)) for run in runs_of(record, row)]
    return [b < a for a, b in pairs if a is not None and b is not None]


def verdict(record: Record) -> Verdict:
    """Returns which of the papers' directions hold in every run."""
    claims = {"rank": True, "complexity": True, "alignment": False, "weight norm": True}
    holds = {
        name: [fell == falling for row in rows_in(record) for fell in falls(record, row, name)]
        for name, falling in claims.items()
    }
    always = [name for name, found in holds.items() if found and all(found)]
    steps = [spread([run["generalised"] for run in runs_of(record, row)]) for row in ROWS]
    rates = ", ".join(f"{MEASURES[name]} {sum(found)} of {len(found)}" for name, found in holds.items())
    return Verdict(
        "yes" if len(always) == len(claims) else "in part" if always else "no",
        f"{len(always)} of {len(claims)} directions in all runs",
        [
            "From memorising to generalising, rank, complexity and weight norm should fall and the alignment "
            f"rise. Runs in which they do: {rates}.",
            f"The network generalises after {steps[0]} steps without and {steps[1]} with the filter (median, "
            "smallest to largest).",
            "A measure that moves while a network groks need not be why: all of them are read off one small "
            "network on one task, on its training data.",
        ],
    )


def draw(record: Record, figure: Figure) -> None:
    """Draws each measure over steps, beside the accuracies: a colour a row, a line a seed."""
    axes = figure.subplots(3, 3, sharex=True).flatten()
    for panel, name in zip(axes, ["test", *MEASURES], strict=True):
        for number, row in enumerate(rows_in(record)):
            for seed, one in enumerate(runs_of(record, row)):
                steps, values = ([point[key] for point in one["points"]] for key in ("step", name))
                label = None if seed else ROWS[row].what
                panel.plot(steps, values, color=f"C{number}", linewidth=0.8, label=label)
        panel.set_title(f"{name}{' accuracy' if name == 'test' else ''}", fontsize=8)
        panel.tick_params(labelsize=6)
    axes[0].legend(frameon=False, fontsize=6)


PAGE = Page(
    columns=("run", "measure", "memorised", "generalises", "falls in"),
    cells=cells,
    verdict=verdict,
    draw=draw,
)
