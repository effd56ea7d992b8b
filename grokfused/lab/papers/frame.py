"""The frame of all reproductions: what a paper is, and how its runs are made, killed and continued.

A paper is a row of ``about.ABOUT``, a file of this folder with its task, its rows and a function that makes
one run, and a file of the same name in ``shown/`` with what its page shows; none has 150 lines. All else
is here: which runs there are, the lines in which they are kept, the checkpoint of the run that is under way,
progress with the time that is left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from rich.progress import BarColumn, Progress, TextColumn

from grokfused.lab import page
from grokfused.lab.papers.about import ABOUT, About
from grokfused.lab.store import Store, short_name
from grokfused.lab.terminal import console, interruptible, say

Run = dict[str, Any]
Record = Mapping[str, Any]
SAVE_EVERY = 15.0  # seconds of a run that a kill may cost
LINE_EVERY = 30.0  # seconds between two lines where there is no terminal


class Interrupted(Exception):
    """Ctrl-C was pressed, and everything is saved."""


class NotKept(Exception):
    """A run needs what another one keeps, which was not run; the message says what to do."""


class Size(NamedTuple):
    """How much of an experiment is run.

    Attributes:
        setting: A dataclass: sizes, steps, learning rates; what all runs share.
        rows: Keys of the paper's rows, in the order in which they run: one may need what others kept.
        seeds: Which, where the command names none.
        only: Row -> how many of the seeds it is run with, the first ones; all where it is not named.
    """

    setting: Any
    rows: Sequence[str]
    seeds: Sequence[int] = (0, 1, 2)
    only: Mapping[str, int] = MappingProxyType({})

    def plan(self, seeds: Sequence[int]) -> list[tuple[int, str]]:
        """Returns seed and row of each run, in their order."""
        pairs = product(range(len(seeds)), self.rows)
        return [(seeds[at], row) for at, row in pairs if at < self.only.get(row, len(seeds))]


class Verdict(NamedTuple):
    """What came out; ``holds`` is "yes", "no" or "in part", ``factor`` is the headline's, as measured."""

    holds: str
    factor: str
    reading: Sequence[str]


class Experiment(NamedTuple):
    """What a paper's file has: its runs.

    Attributes:
        rows: Key -> NamedTuple whose ``what`` the table shows; its other fields decide the run.
        run: (row key, seed, setting, watch) -> what was measured, as plain values.
        sizes: "quick", "usual", "full" -> Size.
        needs: Raises ImportError where a package is missing.
    """

    rows: Mapping[str, Any]
    run: Callable[[str, int, Any, Watch], Run]
    sizes: dict[str, Size]
    needs: Callable[[], object] = lambda: None


class Page(NamedTuple):
    """What the file of that name in ``shown`` has: how the runs are shown.

    Attributes:
        columns: Of the table.
        cells: Record -> the table, row by row.
        verdict: Record -> Verdict.
        draw: (record, figure) -> draws into the figure.
    """

    columns: Sequence[str]
    cells: Callable[[Record], list[list[str]]]
    verdict: Callable[[Record], Verdict]
    draw: Callable[[Record, Figure], object]


class Paper(NamedTuple):
    """A row of ``about.ABOUT``, which names command and files, with its runs and its page."""

    name: str
    experiment: Experiment
    page: Page

    @property
    def about(self) -> About:
        """What its page says of it before there are figures."""
        return ABOUT[self.name]


class Watch:
    """What a run is given: where it runs, who shows it, and the checkpoint that it may go on from.

    Args:
        out: The experiment's folder.
        device: As torch names it.
        total: Runs that there will be.
        interrupted: Says whether Ctrl-C was pressed.
        setting: What all runs share; what one keeps for others is kept apart for each.

    Attributes:
        kept_in: The folder of what is kept.
    """

    def __init__(
        self, out: Path, device: str, total: int, interrupted: Callable[[], bool], setting: Any = None
    ) -> None:
        self.out, self.device, self.total, self.interrupted = out, device, total, interrupted
        self.kept_in = out / "kept" / short_name(setting)
        self.done, self.title = 0.0, ""
        self.key: dict[str, Any] = {}
        self.began = self.saved_at = time.perf_counter()
        self.spent, self.clock = 0.0, time.process_time()
        self.span = 0.0, 1.0  # which part of the run is shown: where it begins, and how long it is
        self.line_at = 0.0
        self.skipped = 0  # runs that were there already: they say nothing of how long the others take
        columns = (BarColumn(bar_width=24), TextColumn("{task.percentage:.0f} %  {task.description}"))
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=total)

    def begin(self, title: str, key: dict[str, Any]) -> None:
        """Says which run is the next; ``key`` is all that decides it."""
        self.title, self.key = title, key
        self.saved_at = time.perf_counter()
        self.spent, self.clock = 0.0, time.process_time()
        self.span = 0.0, 1.0
        found = self._checkpoint()
        if found and found["key"] == key:
            self.spent, self.clock = found["seconds"], time.process_time()

    def seconds(self) -> float:
        """Returns the processor's seconds of this run, those before it was cut short included."""
        return self.spent + time.process_time() - self.clock

    def end(self, skipped: bool = False) -> None:
        """Counts a run."""
        self.done, self.skipped = round(self.done) + 1.0, self.skipped + skipped
        self.bar.update(self.task, completed=self.done)

    def show(self, share: float, note: str) -> None:
        """Shows how far the run is, in [0, 1], and the time that all runs together will still take."""
        begin, length = self.span
        now, done = time.perf_counter(), self.done + begin + length * share
        if done <= self.skipped:
            return
        left = (now - self.began) / (done - self.skipped) * (self.total - done)
        told = f"{self.title}: {note}; about {_clock(left)} left"
        self.bar.update(self.task, completed=done, description=told)
        if not console.is_terminal and now - self.line_at >= LINE_EVERY:
            say(f"run {int(self.done) + 1} of {self.total}, {told}")
            self.line_at = now

    def keep(self, name: str, tensors: Any) -> None:
        """Keeps tensors for other runs."""
        self.kept_in.mkdir(parents=True, exist_ok=True)
        _write(self.kept_in / f"{name}.pt", tensors)

    def kept(self, name: str) -> Any:
        """Returns what another run kept.

        Raises:
            NotKept: It has not.
        """
        path = self.kept_in / f"{name}.pt"
        if not path.exists():
            raise NotKept(f"{self.title} needs {path}, which another row of its seed keeps: run all rows")
        return torch.load(path, weights_only=True, map_location=self.device)

    def saved(self, part: str) -> Any:
        """Returns the checkpoint of this part of this very run, or None."""
        found = self._checkpoint()
        return found["state"] if found and (found["key"], found["part"]) == (self.key, part) else None

    def _checkpoint(self) -> Any:
        path = self.out / "checkpoint.pt"
        return torch.load(path, weights_only=True, map_location="cpu") if path.exists() else None

    def save(self, part: str, state: Callable[[], Any]) -> None:
        """Writes a checkpoint where it is time to; stops here where Ctrl-C was pressed."""
        stop = self.interrupted()
        if stop or time.perf_counter() - self.saved_at >= SAVE_EVERY:
            about = {"key": self.key, "part": part, "seconds": self.seconds()}
            _write(self.out / "checkpoint.pt", {**about, "state": state()})
            self.saved_at = time.perf_counter()
        if stop:
            raise Interrupted


def _write(path: Path, state: Any) -> None:
    """Writes so that at every moment a whole file, old or new, is there."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def _clock(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


def options_of(row: Any) -> dict[str, Any]:
    """Returns what decides a row, as plain values: all but the words that tables show."""
    return {name: value for name, value in row._asdict().items() if name != "what"}


def key_of(paper: Paper, row: str, seed: int) -> dict[str, Any]:
    """Returns by what a line is found again."""
    return {"row": row, "seed": seed, "options": page.plain(options_of(paper.experiment.rows[row]))}


@contextmanager
def watching(out: Path, device: str, total: int, setting: Any = None) -> Iterator[Watch]:
    """Yields a watch whose bar is live."""
    with interruptible() as interrupted:
        watch = Watch(out, device, total, interrupted, setting)
        with watch.bar:
            yield watch


def perform(paper: Paper, size: Size, seeds: Sequence[int], out: Path, device: str = "cpu") -> dict[str, Any]:
    """Makes the runs that are not there yet, and returns the record of all.

    Raises:
        Interrupted: By Ctrl-C; the same call goes on from there.
    """
    out.mkdir(parents=True, exist_ok=True)
    facts = page.facts()
    store = Store(out / "runs.jsonl", size.setting)
    plan = size.plan(seeds)
    runs = []
    with watching(out, device, len(plan), store.setting) as watch:
        for seed, row in plan:
            key = key_of(paper, row, seed)
            found = store.find(**key)
            if found is None:
                watch.begin(
                    f"seed {seed}, {paper.experiment.rows[row].what}", {**key, "setting": store.setting}
                )
                measured = page.plain(paper.experiment.run(row, seed, size.setting, watch))
                clock = {"seconds": round(watch.seconds(), 2), "commit": facts["commit"]}
                found = {**key, **measured, **clock}
                store.add(found)
                watch.end()
            else:
                watch.end(skipped=True)
            runs.append(found)
    return {"paper": paper.name, **facts, "device": device, "setting": store.setting, "runs": runs}


def runs_of(record: Record, row: str) -> list[Run]:
    """Returns a row's runs, in the order of the seeds; none where it was not run."""
    return sorted((run for run in record["runs"] if run["row"] == row), key=lambda run: run["seed"])


def rows_in(record: Record) -> list[str]:
    """Returns the rows that were run, in the order of the runs."""
    return list(dict.fromkeys(run["row"] for run in record["runs"]))
