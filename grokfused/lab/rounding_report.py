"""What the experiment of roundings shows: a table and its reading, both made from the recorded runs alone."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from grokfused.lab import page
from grokfused.lab.rounding import ROWS, Row, Setting

Found = Mapping[tuple[Row, int], float]
COLUMNS = ("parameters", "bytes held", "bytes moved", "held-out loss", "above float32", "smallest to largest")
BEGINNING = """# Roundings of 16-bit parameters: what each costs and gives

A byte-level language model ({parameters:,} parameters; the decoder of `grokfused/lab/model.py`) learns the
language reference that ships with Python {python}: {train_bytes:,} bytes to train on, the last
{held_out_bytes:,} held out. Forward and backward pass are computed in float32 from the widened parameters, so
that rows differ in nothing but what is stored: parameters, their gradients, states. `GrokAdamW` without the
filter, {steps:,} steps of {batch} windows of {context} bytes, lr {lr:g} falling to 0 on a cosine, weight
decay {weight_decay:g}; in a seed, all rows begin with the same weights and see the same windows.

```bash
{command}
```

Recorded at commit {commit} on torch {torch}, {threads} thread(s), {date:.10}, by the code that wrote this
page; every run is in [rounding.json](rounding.json). Bytes are per parameter: held in memory (parameter,
states, Kahan's rest), and moved by a step (all of these both ways, and the gradient). Losses are nats per
byte, means of {seeds} seeds; "above float32" is paired by seed, "smallest to largest" is over the seeds.
"""


def record(found: Found, setting: Setting, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Returns all that the page is made of, as plain values.

    Args:
        found: Row and seed -> loss on the text held out, nats per byte.
        setting: What all runs share.
        sizes: ``parameters`` of the model, ``train_bytes`` and ``held_out_bytes`` of the text.
    """
    runs = [{**row.options(), "seed": seed, "held_out_loss": loss} for (row, seed), loss in found.items()]
    return {**page.facts(), "setting": asdict(setting), **sizes, "runs": runs}


def _losses(recorded: Mapping[str, Any], row: Row) -> list[float]:
    """Returns the row's losses, in the order of the seeds."""
    options = row.options()
    runs = [run for run in recorded["runs"] if all(run[name] == options[name] for name in options)]
    return [run["held_out_loss"] for run in sorted(runs, key=lambda run: run["seed"])]


def above(recorded: Mapping[str, Any], row: Row) -> list[float]:
    """Returns by how much the row's loss is above that of float32, seed by seed."""
    return [
        loss - base for loss, base in zip(_losses(recorded, row), _losses(recorded, ROWS[0]), strict=True)
    ]


def cells(recorded: Mapping[str, Any]) -> list[list[str]]:
    """Returns the table, row by row."""
    found = []
    for row in ROWS:
        more = above(recorded, row)
        ends = [f"{statistics.mean(more):+.4f}", f"{min(more):+.4f} to {max(more):+.4f}"]
        mean = f"{statistics.mean(_losses(recorded, row)):.4f}"
        bytes_ = [f"{size:.4g}" for size in (row.held_bytes, row.moved_bytes)]
        found.append([row.name, *bytes_, mean, *(ends if row != ROWS[0] else ["", ""])])
    return found


def reading(recorded: Mapping[str, Any]) -> list[str]:
    """Returns what the figures say, and what they do not."""
    nearest, stochastic, kahan = ROWS[1:4]
    lost = statistics.mean(above(recorded, nearest))
    said = [
        f"bfloat16 rounded to nearest ends {lost:+.4f} nats per byte from float32, the mean of the seeds."
    ]
    for row in (stochastic, kahan):
        left = statistics.mean(above(recorded, row))
        share = f": {left / lost:.0%} of that" if left > 0 and lost > 0 else ""
        said.append(f"{row.name} ends {left:+.4f} from it{share}.")
    ranges = {row.name: above(recorded, row) for row in ROWS[1:]}
    equal = [name for name, more in ranges.items() if min(more) <= 0 <= max(more)]
    if equal:
        said.append(f"Seeds disagree on which side of float32 these end: {'; '.join(equal)}.")
    wins = sum(k < s for k, s in zip(ranges[kahan.name], ranges[stochastic.name], strict=True))
    said.append(
        f"Of {len(ranges[kahan.name])} seeds, {wins} end lower with bfloat16, kahan than with stochastic."
    )
    said.append(
        "What nearest loses depends on how small steps are beside parameters. This is one small model, "
        "one lr and few seeds: an order, no interval, and no statement about large models."
    )
    return said


def markdown(recorded: Mapping[str, Any]) -> str:
    """Returns the page."""
    seeds = len(_losses(recorded, ROWS[0]))
    lines = [BEGINNING.format(**{**recorded, **recorded["setting"], "seeds": seeds, "held_out": None})]
    lines += page.markdown_table(COLUMNS, cells(recorded))
    lines += ["", "## How to read it", "", *(f"- {sentence}" for sentence in reading(recorded))]
    return "\n".join(lines) + "\n"


def table(recorded: Mapping[str, Any]) -> Table:
    """Returns the same for the terminal."""
    return page.terminal_table("loss on text held out, nats per byte", COLUMNS, cells(recorded))


def write(recorded: Mapping[str, Any], out: Path) -> None:
    """Writes ``rounding.md`` and ``rounding.json``."""
    page.write(out, "rounding", recorded, markdown(recorded))
