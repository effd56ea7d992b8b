"""Decay and filter apart: the four cells that a change of both needs, for the paper's other tasks."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from matplotlib.figure import Figure
from torch import nn

from grokfused import GrokAdam, GrokAdamW
from grokfused.lab.papers.frame import Record, rows_in, runs_of
from grokfused.lab.papers.pages import spread


class Row(NamedTuple):
    """An optimizer: GrokAdam where the decay is ``coupled``, else GrokAdamW."""

    what: str
    weight_decay: float
    coupled: bool = False
    grad_filter: str = "none"
    alpha: float = 0.98
    lamb: float = 2.0
    window_size: int = 100
    lr: float = 1e-3
    beta1: float = 0.9
    steps: int = 0  # 0: the setting's

    def optimizer(self, model: nn.Module, beta2: float = 0.999, **options: Any) -> GrokAdam:
        """Returns it on a model's parameters."""
        options |= {"weight_decay": self.weight_decay, "grad_filter": self.grad_filter}
        options |= {"alpha": self.alpha, "lamb": self.lamb, "window_size": self.window_size}
        kind = GrokAdam if self.coupled else GrokAdamW
        return kind(model.parameters(), self.lr, betas=(self.beta1, beta2), **options)


def four(low: float, high: float, alpha: float, lamb: float, lr: float) -> dict[str, Row]:
    """Returns the rows of two decays, each without and with the filter EMA(alpha, lamb)."""
    rows = {}
    for name, decay in (("low", low), ("high", high)):
        rows[name] = Row(f"decay {decay:g}, no filter", decay, lr=lr)
        what = f"decay {decay:g}, EMA({alpha:g}, {lamb:g})"
        rows[f"{name}-ema"] = Row(what, decay, grad_filter="ema", alpha=alpha, lamb=lamb, lr=lr)
    return rows


def draw_curves(record: Record, figure: Figure, name: str, labels: Mapping[str, str], **axis: Any) -> None:
    """Draws a measured number over steps: a colour a row, a line a seed; ``axis`` as for ``Axes.set``."""
    axes = figure.add_subplot()
    for number, (row, label) in enumerate(labels.items()):
        for at, one in enumerate(runs_of(record, row)):
            steps, values = ([point[key] for point in one["points"]] for key in ("step", name))
            axes.plot(steps, values, color=f"C{number}", linewidth=0.9, label=label if not at else None)
    axes.set(xlabel="steps", ylabel=name, **axis)
    # Beside the curves, which leave no corner free.
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def thinned(points: Sequence[Any], count: int = 100) -> list[Any]:
    """Returns about so many of the points, evenly, for a figure."""
    return list(points[:: max(1, len(points) // count)])


def table_of(rows: Mapping[str, Any], columns: Mapping[str, int]) -> Callable[[Record], list[list[str]]]:
    """Returns a function that makes a table: of each row its words, and for each column median and range."""

    def cells(record: Record) -> list[list[str]]:
        return [
            [
                rows[row].what,
                *(
                    spread([run[name] for run in runs_of(record, row)], digits)
                    for name, digits in columns.items()
                ),
            ]
            for row in rows_in(record)
        ]

    return cells


def mean_of(record: Record, row: str, name: str) -> float:
    """Returns the mean of a row's numbers; infinite where one is None or there are none."""
    found = [run[name] for run in runs_of(record, row)]
    return float("inf") if not found or None in found else float(statistics.mean(found))
