"""The command `grokfused reproduce`: whole experiments, each with a table."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from grokfused.lab import (
    report,
    rounding_report,
    settings_report,
    state_dtypes,
    state_dtypes_report,
    tickets_report,
)
from grokfused.lab import rounding as rounding_
from grokfused.lab import settings as settings_
from grokfused.lab.data import digits, text_of
from grokfused.lab.papers import command as papers
from grokfused.lab.papers.command import make, seed_numbers
from grokfused.lab.run_folder import RunFolder, RunFolderError
from grokfused.lab.store import Store
from grokfused.lab.terminal import console, interruptible, refuse, say
from grokfused.lab.tickets import PAPER, QUICK, QUICK_ROWS, ROWS, THRESHOLD, Config, Run, Setting, State
from grokfused.lab.training import Evaluation

app = typer.Typer(no_args_is_help=True, help="Whole experiments.")
Seeds = Annotated[str, typer.Option(help="Which, as in 0,1,2.")]
CHECKPOINT_EVERY = 50  # evaluations


class SeedRuns:
    """The runs of one seed, each in a directory of its own; the dense one first, which others begin from."""

    def __init__(self, out: Path, seed: int, setting: Setting) -> None:
        self.out, self.seed, self.setting = out / f"seed{seed}", seed, setting

    def weights(self, epoch: int) -> State:
        """Returns the dense run's weights after so many epochs."""
        path = self.out / "dense" / f"weights_{epoch}.pt"
        if not path.exists():
            raise refuse(f"{path} is missing: run the row 'dense' first")
        state: State = torch.load(path, weights_only=True)
        return state

    def run(self, row: str) -> list[Evaluation]:
        """Trains one row to its end, or reads it where it has ended before."""
        config = Config(row, self.seed, self.setting)
        folder = RunFolder(self.out / row)
        run = Run(config, self.weights)
        if folder.holds_a_run():
            state = folder.load()
            if state["config"] != config.options():
                raise refuse(f"{folder.path} holds a run of other options; choose another --out")
            run.load_state_dict(state)
            folder.cut_metrics(run.iteration)
        else:
            folder.begin(config)
            folder.save(run.state_dict())
        before = folder.evaluations()
        if row != "dense" and before and before[-1].validation_accuracy >= THRESHOLD:
            return before
        with (
            interruptible() as interrupted,
            report.bar(console, f"seed {self.seed} {row}", config.budget) as bar,
        ):
            for number, evaluation in enumerate(run.evaluations(), 1):
                folder.append(evaluation)
                bar.show(evaluation)
                if row == "dense" and run.iteration in (self.setting.memorised_at, self.setting.dense_epochs):
                    torch.save(run.model.state_dict(), self.out / "dense" / f"weights_{run.iteration}.pt")
                if number % CHECKPOINT_EVERY == 0 or interrupted():
                    folder.save(run.state_dict())
                if interrupted():
                    say("interrupted; the same command continues")
                    raise typer.Exit(130)
        folder.save(run.state_dict())
        return folder.evaluations()


@app.callback()
def reproduce() -> None:
    """Whole experiments, each with a table."""


@app.command()
def tickets(
    quick: Annotated[
        bool, typer.Option("--quick", help="A small task and four rows: under a minute.")
    ] = False,
    seeds: Seeds = "0,1,2",
    out: Annotated[Path, typer.Option(help="Where the runs, the table and the figure go.")] = Path(
        "runs/tickets"
    ),
    lamb: Annotated[float, typer.Option(help="GrokAdamW's; 0 is the paper's AdamW.")] = 0.0,
    threads: Annotated[int, typer.Option(min=1, help="Whether and when a run groks depends on them.")] = 1,
) -> None:
    """Bridging Lottery Ticket and Grokking (arXiv:2310.19470): a + b mod 67, tickets and their controls.

    The same command continues what was interrupted. A whole seed takes about seven minutes on one core.
    """
    numbers = seed_numbers(seeds)
    torch.set_num_threads(threads)
    base = QUICK if quick else PAPER
    setting = Setting(**{**base.__dict__, "lamb": lamb})
    rows = QUICK_ROWS if quick else tuple(ROWS)
    found: dict[tuple[str, int], list[Evaluation]] = {}
    try:
        for seed in numbers:
            runs = SeedRuns(out, seed, setting)
            for row in rows:
                found[row, seed] = runs.run(row)
    except RunFolderError as error:
        raise refuse(str(error)) from error
    console.print(tickets_report.table(found))
    tickets_report.write(found, setting, out)
    say(f"files: {out} (tickets.md, tickets.json, tickets.png)")


@app.command()
def rounding(
    quick: Annotated[bool, typer.Option("--quick", help="A tiny model: seconds, and no finding.")] = False,
    seeds: Seeds = "0,1,2",
    out: Annotated[Path, typer.Option(help="Where the page and its figures go.")] = Path("runs/rounding"),
    threads: Annotated[int, typer.Option(min=1, help="Sums in torch depend on them, in the last bits.")] = 1,
) -> None:
    """Roundings of bfloat16 and float16 parameters: what each costs in bytes and gives in loss.

    A small language model, trained with each of them (after arXiv:2010.06192); about ten minutes on one core.
    """
    numbers = seed_numbers(seeds)
    torch.set_num_threads(threads)
    setting = rounding_.QUICK if quick else rounding_.FULL
    text = text_of(setting.held_out)
    make(out)
    found: dict[tuple[rounding_.Row, int], float] = {}
    for seed in numbers:
        for row in rounding_.ROWS:
            run = rounding_.Run(row, seed, setting, text)
            last = list(run.losses())[-1]
            found[row, seed] = run.held_out_loss()
            say(f"seed {seed} {row.name}: last batch {last:.4f}, held out {found[row, seed]:.4f}")
    sizes = {"parameters": sum(param.numel() for param in run.stored)}
    sizes |= {"train_bytes": len(text.train), "held_out_bytes": len(text.held_out)}
    recorded = rounding_report.record(found, setting, sizes)
    rounding_report.write(recorded, out)
    console.print(rounding_report.table(recorded))
    say(f"files: {out} (rounding.md, rounding.json)")


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
    make(out)
    store = Store(out / "runs.jsonl", setting)
    runs = []
    for task, seed, row in settings_.plan(numbers):
        run = store.find(task=task, row=row, seed=seed)
        if run is None:
            run = settings_.measure(task, row, seed, setting)
            store.add(run)
            say(f"seed {seed} {task}, {settings_.ROWS[row].what}: {run['value']} ({run['seconds']:.0f} s)")
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
    make(out)
    runs = [row for seed in numbers for row in state_dtypes.run(seed, say)]
    recorded = state_dtypes_report.record(runs)
    state_dtypes_report.write(recorded, out)
    console.print(state_dtypes_report.table(recorded))
    say(f"files: {out} (which-state-dtype.md, which-state-dtype.json)")


papers.add_to(app)
