"""The command `grokfused reproduce`: whole experiments of papers, resumable, with a table and a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from grokfused.lab import report, tickets_report
from grokfused.lab.run_folder import RunFolder, RunFolderError
from grokfused.lab.terminal import console, interruptible, refuse, say
from grokfused.lab.tickets import PAPER, QUICK, QUICK_ROWS, ROWS, THRESHOLD, Config, Run, Setting, State
from grokfused.lab.training import Evaluation

app = typer.Typer(no_args_is_help=True, help="Whole experiments of papers.")
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
    """Whole experiments of papers, resumable, with a table and a figure."""


@app.command()
def tickets(
    quick: Annotated[
        bool, typer.Option("--quick", help="A small task and four rows: under a minute.")
    ] = False,
    seeds: Annotated[str, typer.Option(help="Which, as in 0,1,2.")] = "0,1,2",
    out: Annotated[Path, typer.Option(help="Where the runs, the table and the figure go.")] = Path(
        "runs/tickets"
    ),
    lamb: Annotated[float, typer.Option(help="GrokAdamW's; 0 is the paper's AdamW.")] = 0.0,
    threads: Annotated[int, typer.Option(min=1, help="Whether and when a run groks depends on them.")] = 1,
) -> None:
    """Bridging Lottery Ticket and Grokking (arXiv:2310.19470): a + b mod 67, tickets and their controls.

    The same command continues what was interrupted. A whole seed takes about seven minutes on one core.
    """
    try:
        numbers = [int(number) for number in seeds.split(",")]
    except ValueError as error:
        raise refuse(f"--seeds takes integers with commas between them, got {seeds!r}") from error
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
