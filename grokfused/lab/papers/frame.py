"""The frame of all reproductions: what a paper is, and how its runs are made, killed and continued.

A paper is a row of ``about.ABOUT``, a file of this folder with its task, its rows and a function that makes
one run, and a file of the same name in ``shown/`` with what its page shows; none has 150 lines. Here is
which runs there are, and the lines in which they are kept. What a run is given while it is under way, its
checkpoint and its progress, is in ``watch.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from grokfused.lab import page
from grokfused.lab.papers.about import ABOUT, About
from grokfused.lab.papers.watch import Watch, watching
from grokfused.lab.store import Store

Run = dict[str, Any]
Record = Mapping[str, Any]


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
        work: (row key, setting) -> how long a run of it takes, beside those of other rows.
    """

    rows: Mapping[str, Any]
    run: Callable[[str, int, Any, Watch], Run]
    sizes: dict[str, Size]
    needs: Callable[[], object] = lambda: None
    work: Callable[[str, Any], float] = lambda row, setting: 1.0


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


def options_of(row: Any) -> dict[str, Any]:
    """Returns what decides a row, as plain values: all but the words that tables show."""
    return {name: value for name, value in row._asdict().items() if name != "what"}


def key_of(paper: Paper, row: str, seed: int) -> dict[str, Any]:
    """Returns by what a line is found again."""
    return {"row": row, "seed": seed, "options": page.plain(options_of(paper.experiment.rows[row]))}


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
    works = [paper.experiment.work(row, size.setting) for _, row in plan]
    with watching(out, device, works, store.setting) as watch:
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
