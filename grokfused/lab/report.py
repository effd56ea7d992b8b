"""What a run shows: a live bar while it goes on, a figure and a table at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from grokfused.lab.training import Config, Evaluation

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

# Lee et al. 2024, arXiv:2405.20233, one GTX 1080 Ti: iterations to 95 % validation accuracy.
PUBLISHED = {
    "Grokfast-MA, Adam": (790, 292.0),
    "Grokfast-EMA, Adam": (910, 137.0),
    "Adam without weight decay": (39_890, 5_984.0),
}
HONESTY = (
    "The published baseline is Adam [bold]without[/bold] weight decay. AdamW with weight decay 1.0 and no "
    "filter reaches 95 % at iteration 1,180 (seed 0; docs/grokking.json has the run); that is the baseline "
    "to compare with."
)


@dataclass(frozen=True)
class Run:
    """A finished or interrupted run, ready to be shown."""

    config: Config
    evaluations: Sequence[Evaluation]

    def arrival(self, accuracy: float = 0.95) -> Evaluation | None:
        """Returns the first evaluation with at least this validation accuracy."""
        return next((e for e in self.evaluations if e.validation_accuracy >= accuracy), None)


class Bar:
    """One bar; on a terminal it is live, elsewhere a plain line now and then takes its place."""

    def __init__(self, console: Console, progress: Progress, title: str, budget: int) -> None:
        self.console, self.progress, self.title = console, progress, title
        self.task = progress.add_task(title, total=budget, numbers="")
        self.next_line, self.distance = 0, max(100, budget // 50)

    def show(self, e: Evaluation) -> None:
        """Moves the bar to an evaluation."""
        numbers = f"loss {e.loss:.3f}  train {e.train_accuracy:6.1%}  validation {e.validation_accuracy:6.1%}"
        self.progress.update(self.task, completed=e.iteration, numbers=numbers)
        if not self.console.is_terminal and e.iteration >= self.next_line:
            line = f"{self.title}: iteration {e.iteration:>5}  {numbers}  {e.seconds:.0f} s"
            self.console.print(line, soft_wrap=True)
            self.next_line = e.iteration + self.distance

    def advance(self) -> None:
        """Moves the bar by one."""
        self.progress.advance(self.task)


@contextmanager
def bar(console: Console, title: str, budget: int) -> Iterator[Bar]:
    """Shows a bar over ``budget`` iterations while the block runs."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:>6.0f}  {task.fields[numbers]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bar(console, progress, title, budget)


def percent(share: float) -> str:
    """Returns 0.95 as "95 %"; no digit of a finer threshold is lost."""
    return f"{100 * share:g} %"


def _draw_run(axes: Axes, run: Run, color: str, threshold: float) -> None:
    """Adds a run's two curves; the legend, where nothing can cover it, says when the threshold is reached."""
    iterations = [e.iteration for e in run.evaluations]
    train = [e.train_accuracy for e in run.evaluations]
    validation = [e.validation_accuracy for e in run.evaluations]
    arrived = run.arrival(threshold)
    when = f"{percent(threshold)} at {arrived.iteration:,}" if arrived else f"below {percent(threshold)}"
    axes.plot(iterations, train, "--", color=color, label=f"{run.config.optimizer}, train")
    axes.plot(iterations, validation, color=color, label=f"{run.config.optimizer}, validation ({when})")
    if arrived:
        axes.plot(arrived.iteration, arrived.validation_accuracy, "o", color=color)


def draw(runs: Sequence[Run], path: Path, threshold: float = 0.95) -> None:
    """Writes the accuracies over the iterations, on a logarithmic axis, as PNG."""
    figure, axes = pyplot.subplots(figsize=(8, 4.8), layout="constrained")
    for number, run in enumerate(runs):
        _draw_run(axes, run, f"C{number}", threshold)
    axes.axhline(threshold, color="0.7", linewidth=0.8, zorder=0)
    axes.text(
        0.01, threshold, percent(threshold), transform=axes.get_yaxis_transform(), va="bottom", color="0.5"
    )
    axes.set(xscale="log", xlabel="iterations", ylabel="accuracy", ylim=(-0.03, 1.05))
    task = f"x · y mod {runs[0].config.modulus}"
    axes.set_title("\n".join([task, *(run.config.name() for run in runs)]), fontsize=10)
    axes.legend(loc="center left", frameon=False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def table(runs: Sequence[Run], threshold: float = 0.95) -> Table:
    """Returns the runs above the published figures, which are for 95 % whatever the threshold."""
    device = runs[0].config.device
    shown = Table(
        title=f"iterations to {percent(threshold)} validation accuracy, here on {device}",
        caption="published: Lee et al. 2024, arXiv:2405.20233, one GTX 1080 Ti",
        title_justify="left",
        caption_justify="left",
    )
    shown.add_column("run", overflow="fold")
    shown.add_column("iterations", justify="right", no_wrap=True)
    shown.add_column("seconds", justify="right", no_wrap=True)
    for run in runs:
        arrived = run.arrival(threshold)
        last = arrived or run.evaluations[-1]
        iterations = f"{last.iteration:,}" if arrived else f"not in {last.iteration:,}"
        shown.add_row(run.config.name(), iterations, f"{last.seconds:.1f}")
    shown.add_section()
    for name, (published, duration) in PUBLISHED.items():
        shown.add_row(f"published, to 95 %: {name}", f"{published:,}", f"{duration:,.0f}")
    return shown
