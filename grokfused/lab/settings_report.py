"""What the experiment of settings shows: one table per measure, made from the recorded runs alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from grokfused.lab import page
from grokfused.lab.settings import GROK_ROWS, ROWS, Setting

Recorded = Mapping[str, Any]
LOSSES = ("text", "tune", "images")
COLUMNS = ("optimizer", "text", "fine-tune", "images", "grokking, decay 1.0", "grokking, the paper's")
HEAD = """Each loss is compared with that of the run without filter of the same seed: the difference of the
held-out losses, in nats, mean of {seeds} seeds (smallest to largest). Below 0 is better than no filter. The
first row has the losses themselves. The last two columns are a task that groks: the iterations to 95 %
validation accuracy, mean (smallest to largest); "not in" counts the seeds that had not arrived by then, an
empty cell was not run.
"""
ABOUT = """The tasks:

- **text**: a byte-level decoder ({layers} layers, width {dim}) learns the language reference that ships with
  Python {python}: {text_steps} steps of {batch} windows of {context} bytes, lr {text_lr:g} falling to 0 on a
  cosine.
- **fine-tune**: that model, trained so without filter, goes on with the source code of three modules of
  Python: `OneCycleLR` with torch's defaults, {tune_steps} steps, largest lr {tune_lr:g}.
- **images**: a network of two convolutions learns 4,000 digits of MNIST, 1,000 are held out: {image_steps}
  steps of {batch} images, lr {image_lr:g} falling to 0 on a cosine.
- **grokking, decay {grok_decay}**: x * y mod {modulus}, half of the equations to train on, a decoder of one
  layer and width {grok_dim}, batches of {grok_batch}. `GrokAdamW` with lr {grok_lr:g} after 10 steps of
  warm-up, betas (0.9, 0.98) and decay {grok_decay}.
- **grokking, the paper's**: the same with the optimizer of the Grokfast paper, `GrokAdam` with lr
  {paper_lr:g} and weight decay {paper_decay:g}.

Weight decay is {weight_decay:g} in the first three, and the same in every row of a task. In a seed, all rows
of a task begin with the same weights and see the same batches. The learning rates of the first four were
chosen without the filter: the rows "no filter, lr / 3" and "no filter, lr * 3" show what others give. Halves
of the run, and the ramp, are shares of a task's steps ({grok_steps:,} and {paper_steps:,} where it groks).
"""


def record(runs: Sequence[Mapping[str, Any]], setting: Setting) -> dict[str, Any]:
    """Returns all that the page is made of, as plain values."""
    return {**page.facts(), "setting": asdict(setting), "runs": list(runs)}


def values(recorded: Recorded, task: str, row: str) -> list[float | None]:
    """Returns what was measured, in the order of the seeds: losses, or iterations and None where too many."""
    runs = [run for run in recorded["runs"] if (run["task"], run["row"]) == (task, row)]
    return [run["value"] for run in sorted(runs, key=lambda run: run["seed"])]


def above(recorded: Recorded, task: str, row: str) -> list[float]:
    """Returns by how much a row's losses are above those without filter, seed by seed."""
    pairs = zip(values(recorded, task, row), values(recorded, task, "none"), strict=True)
    return [loss - base for loss, base in pairs if loss is not None and base is not None]


def _loss_cell(recorded: Recorded, task: str, row: str) -> str:
    if row == "none":
        losses = [loss for loss in values(recorded, task, row) if loss is not None]
        return f"{statistics.mean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"
    more = above(recorded, task, row)
    return f"{statistics.mean(more):+.3f} ({min(more):+.3f} to {max(more):+.3f})"


def _grok_cell(recorded: Recorded, task: str, row: str) -> str:
    found = values(recorded, task, row)
    reached = [count for count in found if count is not None]
    missing = len(found) - len(reached)
    late = f"{missing} not in {recorded['setting'][task + '_steps']:,}" if missing else ""
    if not reached:
        return late
    ends = f" ({min(reached):,} to {max(reached):,})" if len(reached) > 1 else ""
    return f"{round(statistics.mean(reached)):,}{ends}" + (f", {late}" if late else "")


def cells(recorded: Recorded) -> list[list[str]]:
    """Returns the table, row by row."""
    return [
        [
            what.what,
            *(_loss_cell(recorded, task, row) for task in LOSSES),
            *(_grok_cell(recorded, task, row) for task in GROK_ROWS),
        ]
        for row, what in ROWS.items()
    ]


def markdown(recorded: Recorded) -> str:
    """Returns the measured part of the page."""
    setting = recorded["setting"]
    filled = {**recorded, **setting, "seeds": len(values(recorded, "text", "none"))}
    lines = [HEAD.format(**filled), *page.markdown_table(COLUMNS, cells(recorded)), ""]
    lines += [ABOUT.format(**filled)]
    lines += [
        "```bash",
        recorded["command"],
        "```",
        "",
        "Recorded at commit {commit} on torch {torch}, {threads} thread(s), {date:.10}; every run is in "
        "[which-settings.json](which-settings.json).".format(**recorded),
    ]
    return "\n".join(lines) + "\n"


def table(recorded: Recorded) -> Table:
    """Returns the same for the terminal."""
    return page.terminal_table("held-out loss against no filter, nats", COLUMNS, cells(recorded))


def write(recorded: Recorded, out: Path) -> None:
    """Writes ``which-settings.md`` and ``which-settings.json``."""
    page.write(out, "which-settings", recorded, markdown(recorded))
