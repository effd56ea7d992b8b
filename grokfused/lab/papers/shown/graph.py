"""What the page of `graph` shows."""

from __future__ import annotations

from matplotlib.figure import Figure

from grokfused.lab.papers.cells import draw_curves, mean_of, table_of
from grokfused.lab.papers.frame import Page, Record, Verdict, rows_in
from grokfused.lab.papers.graph import ROWS
from grokfused.lab.papers.pages import paired


def verdict(record: Record) -> Verdict:
    """Returns what came out: means over the seeds."""
    low, low_ema, high, high_ema = (mean_of(record, row, "best") for row in ROWS)
    times, decay, filtered = low / high_ema, low / high, high / high_ema
    wins = [more < 0 for more in paired(record, "high-ema", "high", "best")]
    holds = "yes" if all(wins) and filtered > 1.1 else "no" if times < 1.1 else "in part"
    return Verdict(
        holds,
        f"error ÷{times:.2f}, of which ÷{filtered:.2f} the filter's",
        [
            f"The smallest error held out changes from {low:.3f} (decay 0, no filter) to {high_ema:.3f} "
            f"(decay 0.01, EMA(0.9, 1)), means of the seeds: ÷{times:.2f}; the paper has ÷1.89.",
            f"Decay 0.01 alone is ÷{decay:.2f}; the filter is ÷{low / low_ema:.2f} without a decay and "
            f"÷{filtered:.2f} with that one, where it is better in {sum(wins)} of {len(wins)} seeds.",
            "Fifty molecules to learn from and fifty to judge by, and the smallest of many looks: this shows "
            "factors, not errors.",
        ],
    )


def draw(record: Record, figure: Figure) -> None:
    """Draws the error held out over steps."""
    labels = {row: ROWS[row].what for row in rows_in(record)}
    draw_curves(record, figure, "error", labels, xscale="log", yscale="log")


PAGE = Page(
    columns=("AdamW with", "smallest error", "at step", "error at the end", "training error at the end"),
    cells=table_of(ROWS, {"best": 3, "at": 0, "last": 3, "fit": 4}),
    verdict=verdict,
    draw=draw,
)
