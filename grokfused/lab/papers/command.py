"""The commands `grokfused reproduce NAME`, made from the table of papers, and `grokfused reproduce index`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer

from grokfused.lab.papers import pages
from grokfused.lab.papers.frame import Interrupted, NotKept, Paper, perform
from grokfused.lab.papers.table import PAPERS
from grokfused.lab.terminal import console, refuse, say

Quick = Annotated[bool, typer.Option("--quick", help="Small, under 90 seconds: the direction, no finding.")]
Full = Annotated[bool, typer.Option("--full", help="With what takes long.")]
Seeds = Annotated[str | None, typer.Option(help="Which, as in 0,1,2. Default: those of the page.")]
Rows = Annotated[str | None, typer.Option(help="Of the table, these only, as in ema,adamw-1.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Out = Annotated[Path | None, typer.Option(help="Where runs and page go. Default: runs/NAME.")]
Threads = Annotated[int, typer.Option(min=1, help="Sums in torch depend on them, in the last bits.")]


def seed_numbers(seeds: str) -> list[int]:
    """Returns the seeds that an option lists, or refuses it."""
    try:
        numbers = [int(number) for number in seeds.split(",")]
    except ValueError as error:
        raise refuse(f"--seeds takes integers with commas between them, got {seeds!r}") from error
    if min(numbers) < 0 or len({*numbers}) < len(numbers):
        raise refuse(f"--seeds takes different integers from 0 on, got {seeds!r}")
    return numbers


def row_names(rows: str, known: Sequence[str]) -> list[str]:
    """Returns the rows that an option lists, or refuses it."""
    names = rows.split(",")
    unknown = [name for name in names if name not in known]
    if unknown:
        raise refuse(f"--rows has {', '.join(unknown)}; there are {', '.join(known)}")
    return names


def make(out: Path) -> None:
    """Makes the folder of an experiment, or refuses it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refuse(f"--out={out} cannot be made: {error.strerror}") from error


def check_device(device: str) -> None:
    """Refuses a device that torch does not know, was not built for or does not find."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise refuse(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error


def command(paper: Paper) -> Callable[..., None]:
    """Returns the command that reproduces a paper."""

    def reproduce(
        quick: Quick = False,
        full: Full = False,
        seeds: Seeds = None,
        rows: Rows = None,
        device: Device = "cpu",
        out: Out = None,
        threads: Threads = 1,
    ) -> None:
        if quick and full:
            raise refuse("--quick and --full contradict each other: leave one of them out")
        size = paper.experiment.sizes["quick" if quick else "full" if full else "usual"]
        numbers = list(size.seeds) if seeds is None else seed_numbers(seeds)
        if rows is not None:
            size = size._replace(rows=row_names(rows, size.rows))
        check_device(device)
        try:
            paper.experiment.needs()
        except ImportError as error:
            raise refuse(str(error)) from error
        folder = Path("runs") / paper.name if out is None else out
        make(folder)
        torch.set_num_threads(threads)
        try:
            record = perform(paper, size, numbers, folder, device)
        except Interrupted as interrupted:
            say("interrupted; the same command continues")
            raise typer.Exit(130) from interrupted
        except NotKept as error:
            raise refuse(str(error)) from error
        pages.write(paper, record, folder)
        console.print(pages.table(paper, record))
        say(f"files: {folder} (" + ", ".join(f"{paper.name}.{kind}" for kind in ("md", "json", "png")) + ")")

    what = f"{paper.about.title} ({paper.about.source}).\n\n{paper.about.claim}"
    reproduce.__doc__ = f"{what}\n\nThe same command continues what was interrupted."
    return reproduce


def index(
    folder: Annotated[Path, typer.Argument(help="With the records, NAME.json.")] = Path("docs/papers"),
) -> None:
    """Writes the papers' pages and their index anew, from the records in a folder."""
    if not folder.is_dir():
        raise refuse(f"{folder} is no folder")
    say(f"files: {folder} (index.md, {', '.join(pages.write_all(PAPERS, folder))})")


def add_to(app: typer.Typer) -> None:
    """Adds a command for every paper, and that of the index."""
    for name, paper in PAPERS.items():
        app.command(name)(command(paper))
    app.command("index")(index)
