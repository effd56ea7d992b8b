"""The commands `grokfused reproduce NAME`, made from the table of papers, and `grokfused reproduce index`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from grokfused.lab.arguments import check_device, held, row_names, seed_numbers
from grokfused.lab.papers import pages
from grokfused.lab.papers.frame import Paper, Size, perform
from grokfused.lab.papers.table import PAPERS
from grokfused.lab.papers.watch import Interrupted, NotKept
from grokfused.lab.terminal import console, refuse, say

Quick = Annotated[bool, typer.Option("--quick", help="Small, under 90 seconds: the direction, no finding.")]
Full = Annotated[bool, typer.Option("--full", help="With what takes long.")]
Seeds = Annotated[str | None, typer.Option(help="Which, as in 0,1,2. Default: those of the page.")]
Rows = Annotated[str | None, typer.Option(help="Of the table, these only, as in ema,adamw-1.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")]
Out = Annotated[Path | None, typer.Option(help="Where runs and page go. Default: runs/NAME.")]
Threads = Annotated[int, typer.Option(min=1, help="Sums in torch depend on them, in the last bits.")]


def performed(paper: Paper, size: Size, seeds: Sequence[int], out: Path, device: str) -> dict[str, Any]:
    """Returns the record of all runs; ends the command where they are interrupted or lack something."""
    try:
        return perform(paper, size, seeds, out, device)
    except Interrupted as interrupted:
        say("interrupted; the same command continues")
        raise typer.Exit(130) from interrupted
    except NotKept as error:
        raise refuse(str(error)) from error


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
        torch.set_num_threads(threads)
        with held(folder):
            record = performed(paper, size, numbers, folder, device)
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
