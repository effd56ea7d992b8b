"""The command ``grokfused bench``."""

from __future__ import annotations

import json
import os
import shlex
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from grokfused.lab.bench import plots, show
from grokfused.lab.bench.cases import CASES
from grokfused.lab.bench.implementations import COPY, Place
from grokfused.lab.bench.peers import ALL
from grokfused.lab.bench.probes import machine
from grokfused.lab.bench.rows import Row, measure
from grokfused.lab.bench.sets import SETS, BenchSet
from grokfused.lab.bench.summary import sentence
from grokfused.lab.bench.timing import CLOCKS, Turns
from grokfused.lab.terminal import console, refuse, say

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# Who needs more seconds for one step, and more than this share of a case's, takes no turns.
SLOWEST, SLOWEST_SHARE = 1.0, 0.1


def _checked(what: str, given: list[str], known: Any) -> None:
    """Exits where a name is not among those there are."""
    for name in given:
        if name not in known:
            raise refuse(f"there is no {what} {name!r}; there are: {', '.join(known)}")


def chosen(names: list[str], cases: list[str], only: list[str]) -> dict[str, BenchSet]:
    """Returns the sets with those names, restricted to these cases and implementations.

    Args:
        names: Of sets.
        cases: Names of cases, those of ``CASES`` or of the sets. All of a set, if none is named.
        only: Texts; an implementation whose name holds one is measured, of all there are. The sets' own, if
            none is given.
    """
    _checked("set", names, SETS)
    known = {**CASES, **{case: shapes for name in names for case, shapes in SETS[name].cases.items()}}
    _checked("case", cases, known)
    for text in only:
        if not text or not any(text in name for name in ALL):
            raise refuse(f"no implementation's name holds {text!r}; there are: {'; '.join(ALL)}")
    return {
        name: BenchSet(
            SETS[name].question,
            {case: known[case] for case in cases} or SETS[name].cases,
            [each for each in ALL if each == COPY or any(text in each for text in only)]
            if only
            else SETS[name].implementations,
        )
        for name in names
    }


def run(sets: dict[str, BenchSet], places: list[Place], turns: Turns) -> Iterator[list[Row]]:
    """Measures, shows each case as soon as it is done, and yields its rows."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[doing]}", markup=False),
    )
    cases = [
        (name, case, shapes, place, [ALL[each] for each in bench.implementations])
        for name, bench in sets.items()
        for place in places
        for case, shapes in bench.cases.items()
    ]
    total = sum(len(who) + 1 for *_, who in cases)
    with (
        warnings.catch_warnings(),
        Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as progress,
    ):
        warnings.filterwarnings("ignore", module="(?!grokfused)")  # the peers' own
        task = progress.add_task("bench", total=total, doing="")
        for name, case, shapes, place, who in cases:

            def note(doing: str, case: str = case) -> None:
                progress.update(task, advance=1, description=case, doing=doing)

            found = measure(case, shapes, who, place, turns, note)
            for title, own in show.groups(found):
                if summary := sentence(own):
                    say(summary)
                show.print_table(console, title, own)
            yield [{"set": name, **row} for row in found]


def _said(names: list[str], **options: list[Any] | None) -> str:
    """Returns the command that measures the same; where it writes is nobody's business."""
    words = ["grokfused", "bench", *names]
    words += [
        word for name, values in options.items() for v in values or [] for word in (f"--{name}", str(v))
    ]
    return shlex.join(words)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Exits where a file cannot be written, before anything is measured or on a disk that is full by now."""
    try:
        yield
    except OSError as error:
        raise refuse(f"{path} cannot be written ({error.strerror}): name a file that can be") from error


def _check_writable(path: Path) -> None:
    """Exits where a file cannot be written, and leaves none that was not there."""
    file = Path(os.path.realpath(path))  # of a link to a file that is not there, that file
    with _writing(path):
        new = not file.exists()
        file.open("ab").close()  # os.access says yes of /proc, and to root of every folder
        if new:
            file.unlink()


def _measured(runs: Iterator[list[Row]], note: Callable[[list[Row]], None]) -> tuple[list[Row], bool]:
    """Returns the rows of all cases, or of those before a Ctrl-C, and whether there was one."""
    rows: list[Row] = []
    try:
        for found in runs:
            rows += found
            note(rows)
    except KeyboardInterrupt:
        return rows, True
    return rows, False


def bench(
    names: Annotated[
        list[str] | None, typer.Argument(help=f"Sets: {', '.join(SETS)}.", metavar="SET")
    ] = None,
    case: Annotated[list[str] | None, typer.Option(help="Only this case; may be repeated.")] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Those whose name holds this text instead of the set's; repeatable."),
    ] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="Of the parameters; may be repeated.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    seconds: Annotated[float, typer.Option(min=0.0, help="Of turns, for each case.")] = 10.0,
    json_file: Annotated[Path | None, typer.Option("--json", help="Writes every row there.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Writes the table there.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Writes rooflines and curves there, as PNG.")] = None,
) -> None:
    """Measures optimizer steps side by side: time, bandwidth, launches and memory, on this machine."""
    names, dtypes = names or ["steps"], list(dict.fromkeys(dtype or ["float32"]))
    _checked("device", [device], CLOCKS)
    _checked("dtype", dtypes, DTYPES)
    if device == "cuda" and not torch.cuda.is_available():
        raise refuse("--device cuda: torch finds no NVIDIA GPU here")
    sets = chosen(names, case or [], only or [])
    files = [path for path in (json_file, markdown, plot) if path]
    if len({os.path.realpath(path) for path in files}) < len(files):
        raise refuse("--json, --markdown and --plot must name different files")
    for path in files:
        _check_writable(path)
    turns = Turns(seconds, slowest=max(SLOWEST, SLOWEST_SHARE * seconds))
    where = machine(
        _said(names, case=case, only=only, dtype=dtypes, device=[device], seconds=[seconds]), device
    )

    def keep(rows: list[Row]) -> None:
        if json_file:  # after each case: what was measured is not lost when a later one is killed
            with _writing(json_file):
                json_file.write_text(json.dumps({"machine": where, "rows": rows}, indent=1) + "\n")

    rows, interrupted = _measured(run(sets, [Place(device, DTYPES[each]) for each in dtypes], turns), keep)
    if interrupted and not rows:
        say("interrupted in the first case; nothing was written")
        raise typer.Exit(130)
    console.print(show.LEGEND, highlight=False, markup=False)
    if markdown:
        with _writing(markdown):
            markdown.write_text(f"{show.where(where)}\n{show.LEGEND}\n\n{show.markdown(rows)}")
    try:
        if plot:
            with _writing(plot):
                plots.draw(rows, plot)
    except ValueError as error:  # nobody could run
        raise refuse(f"{plot} was not written: {error}") from error
    for path in files:
        say(f"written: {path}")
    if interrupted:
        say("interrupted; the cases above are complete, others are missing")
        raise typer.Exit(130)
