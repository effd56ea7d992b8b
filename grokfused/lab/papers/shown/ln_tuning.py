"""What the page of `ln-tuning` shows."""

from __future__ import annotations

from matplotlib.figure import Figure

from grokfused.lab.papers.cells import mean_of
from grokfused.lab.papers.frame import Page, Record, Verdict, rows_in, runs_of
from grokfused.lab.papers.ln_tuning import ROWS
from grokfused.lab.papers.pages import spread

COLUMNS = ("tuned", "shifted images", "images of before", "parameters", "tensors", "step")


def cells(record: Record) -> list[list[str]]:
    """Returns the table, accuracies in per cent."""
    found = []
    for row in rows_in(record):
        runs = runs_of(record, row)
        if ROWS[row].time:
            each = [spread([run[who] for run in runs]) for who in ("ours", "theirs")]
            shown = ["", "", "102,400", "100", f"GrokAdamW {each[0]} µs, torch fused {each[1]} µs"]
        else:
            accuracies = [spread([100 * run[name] for run in runs], 1) for name in ("shifted", "before")]
            shown = [*accuracies, *(f"{runs[0][name]:,}" for name in ("tuned", "tensors")), ""]
        found.append([ROWS[row].what, *shown])
    return found


def verdict(record: Record) -> Verdict:
    """Returns what came out: means over the seeds."""
    names = ("probe", "lora", "full", "ln", "ln-terms")
    mean = {row: 100 * mean_of(record, row, "shifted") for row in names}
    kept = {row: 100 * mean_of(record, row, "before") for row in names}
    above_probe, above_full = mean["ln"] - mean["probe"], mean["ln"] - mean["full"]
    terms = mean["ln-terms"] - mean["ln"]
    share = runs_of(record, "ln")[0]["tuned"] / runs_of(record, "full")[0]["tuned"]
    faster = mean_of(record, "time", "theirs") / mean_of(record, "time", "ours")
    wins = [above_probe > 1, above_full > -1, terms > 0]
    return Verdict(
        "yes" if all(wins) else "in part" if any(wins) else "no",
        f"LayerNorms {above_probe:+.1f} points over the probe, {above_full:+.1f} over everything",
        [
            f"LayerNorms and the head ({share:.1%} of the parameters) give {mean['ln']:.1f} % on shifted "
            f"images, the head alone {mean['probe']:.1f}, LoRA {mean['lora']:.1f}, everything "
            f"{mean['full']:.1f}.",
            f"L2-normalised features with the three terms change LayerNorm tuning by {terms:+.1f} points. On "
            f"the images of before, LayerNorms keep {kept['ln']:.1f} %, everything {kept['full']:.1f}.",
            f"A step of 100 tensors of 1,024 takes torch's fused AdamW {faster:.2f} times as long as ours "
            "(a wall clock, in turn, on a machine that was not idle).",
        ],
    )


def draw(record: Record, figure: Figure) -> None:
    """Draws each kind of tuning: accuracy on shifted images beside that on the images of before."""
    axes = figure.add_subplot()
    for row in (row for row in rows_in(record) if not ROWS[row].time):
        pairs = [(100 * run["before"], 100 * run["shifted"]) for run in runs_of(record, row)]
        axes.plot(*zip(*pairs, strict=True), "o", label=ROWS[row].what)
    axes.set(xlabel="accuracy on images of before, %", ylabel="accuracy on shifted images, %")
    axes.legend(frameon=False, fontsize=8)


PAGE = Page(columns=COLUMNS, cells=cells, verdict=verdict, draw=draw)
