"""The command `grokfused reproduce`: whole experiments, each with a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from grokfused.lab import settings as settings_
from grokfused.lab import (
    settings_report,
    state_dtypes,
    state_dtypes_report,
)
from grokfused.lab.arguments import held, seed_numbers
from grokfused.lab.data import digits
from grokfused.lab.papers import command as papers
from grokfused.lab.store import Store
from grokfused.lab.terminal import console, refuse, say

app = typer.Typer(no_args_is_help=True, help="Whole experiments.")
Seeds = Annotated[str, typer.Option(help="Which, as in 0,1,2.")]


@app.callback()
def reproduce() -> None:
    """Whole experiments, each with a table."""


@app.command()
def settings(
    quick: Annotated[bool, typer.Option("--quick", help="A few steps of each: no finding.")] = False,
    seeds: Seeds = "0,1,2",
    out: Annotated[Path, typer.Option(help="Where the runs and the table go.")] = Path("runs/settings"),
    threads: Annotated[int, typer.Option(min=1, help="Sums in torch depend on them, in the last bits.")] = 1,
) -> None:
    """What alpha, lamb and a late filter do to short runs and to one that groks: which to choose.

    The same command continues what was interrupted. About forty minutes on one core.
    """
    numbers = seed_numbers(seeds)
    torch.set_num_threads(threads)
    setting = settings_.QUICK if quick else settings_.FULL
    try:
        digits()
    except ImportError as error:
        raise refuse(str(error)) from error
    with held(out):
        store = Store(out / "runs.jsonl", setting)
        runs = []
        for task, seed, row in settings_.plan(numbers):
            run = store.find(task=task, row=row, seed=seed)
            if run is None:
                run = settings_.measure(task, row, seed, setting)
                store.add(run)
                what = f"seed {seed} {task}, {settings_.ROWS[row].what}"
                say(f"{what}: {run['value']} ({run['seconds']:.0f} s)")
            runs.append(run)
        recorded = settings_report.record(runs, setting)
        settings_report.write(recorded, out)
    console.print(settings_report.table(recorded))
    say(f"files: {out} (which-settings.md, which-settings.json)")


@app.command("state-dtypes")
def state_dtypes_(
    seeds: Seeds = "0,1,2",
    out: Annotated[Path, typer.Option(help="Where the page and its figures go.")] = Path("runs/state-dtypes"),
    threads: Annotated[int, typer.Option(min=1, help="Sums in torch depend on them, in the last bits.")] = 1,
) -> None:
    """Where narrow states break: updates of 16 and 8 bits beside those of float32, in five cases.

    bitsandbytes and torchao take part where they are installed. A few minutes on one core.
    """
    numbers = seed_numbers(seeds)
    torch.set_num_threads(threads)
    with held(out):
        runs = [row for seed in numbers for row in state_dtypes.run(seed, say)]
        recorded = state_dtypes_report.record(runs)
        state_dtypes_report.write(recorded, out)
    console.print(state_dtypes_report.table(recorded))
    say(f"files: {out} (which-state-dtype.md, which-state-dtype.json)")


papers.add_to(app)
