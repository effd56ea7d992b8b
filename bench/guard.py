"""Compares the step's time in two commits, and fails when a case got slower: ``make bench-guard``.

Both are built beside each other, and in each case three processes take turns: the base, the base once more,
and the new commit. How far the base is from itself is the noise of this machine now; a case is slower when
the median of new over base is above 1 by more than that and 5 %. CPU only.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import track
from rich.table import Table

from grokfused.lab.bench.cases import CASES
from grokfused.lab.bench.timing import Spread, ratios, spread

ROOT = Path(__file__).parent.parent
BUILDS = ROOT / "build" / "guard"
ALLOWED = 0.05
TIMING = 2e-3  # seconds that one timing lasts at least


class Case(NamedTuple):
    """What is stepped: shapes, GrokAdamW's options, and the masks that all parameters are under, if any."""

    shapes: Sequence[tuple[int, ...]]
    options: Mapping[str, Any] = MappingProxyType({})
    density: float | None = None
    layout: str = "unstructured"


LARGE = CASES["gpt-30m"]
GUARDED = {
    "demo": Case(CASES["demo"]),
    "1000 x 1024": Case(CASES["1000 x 1024"]),
    "gpt-30m": Case(LARGE),
    "gpt-30m, no filter": Case(LARGE, {"grad_filter": "none"}),
    "gpt-30m, bfloat16 states": Case(LARGE, {"state_dtype": "bfloat16"}),
    "gpt-30m, clipped": Case(LARGE, {"max_grad_norm": 1.0}),
    "gpt-30m, 10% kept": Case(LARGE, density=0.1),
    "gpt-30m, 10% of rows kept": Case(LARGE, density=0.1, layout="rows"),
}


class CannotStep(RuntimeError):
    """What a commit could not do, and the folder it is in."""

    def __init__(self, folder: Path, why: str) -> None:
        super().__init__(why)
        self.folder = folder


class Worker:
    """A process that steps the optimizer of the commit in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        script = Path(__file__).with_name("guard_worker.py")
        path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            env={**os.environ, "PYTHONPATH": path},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        found = Path(self._answer())
        if not found.is_relative_to(folder):
            self.close()
            raise RuntimeError(f"the worker for {folder} imported {found} instead")

    def ask(self, **question: Any) -> float:
        """Returns the seconds per step that the worker answers, or raises what it could not do."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        if isinstance(answer, str):
            raise CannotStep(self.folder, answer)
        return float(answer)

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise CannotStep(self.folder, f"a worker ended with exit code {self.process.wait()}")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


@contextmanager
def workers(folders: Sequence[Path]) -> Iterator[list[Worker]]:
    """Yields one worker per folder."""
    with ExitStack() as stack:
        made = []
        for folder in folders:
            made.append(Worker(folder))
            stack.callback(made[-1].close)
        yield made


def built(commit: str) -> Path:
    """Returns a folder with a commit's files and its native code, kept for the next comparison."""
    name = subprocess.run(
        ["git", "rev-parse", "--short", f"{commit}^{{commit}}"], cwd=ROOT, capture_output=True, text=True
    )
    if name.returncode:
        raise typer.BadParameter(f"{commit!r} is no commit of this repository: {name.stderr.strip()}")
    folder = BUILDS / name.stdout.strip()
    if not list(folder.glob("grokfused/_C*.so")):
        folder.mkdir(parents=True, exist_ok=True)
        files = subprocess.run(["git", "archive", commit], cwd=ROOT, capture_output=True, check=True).stdout
        subprocess.run(["tar", "-x", "-C", str(folder)], input=files, check=True)
        build = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        said = subprocess.run(build, cwd=folder, capture_output=True, text=True)
        if not list(folder.glob("grokfused/_C*.so")):
            raise RuntimeError(f"the native code of {commit} was not built in {folder}:\n{said.stderr}")
    return folder


def times(case: Case, folders: Sequence[Path], seconds: float) -> list[list[float]]:
    """Returns, for new processes in these folders, the times of one step in rounds over ``seconds``."""
    shuffled, begin = random.Random(0), time.monotonic()
    with workers(folders) as found:
        first = [
            worker.ask(case={**case._asdict(), "options": dict(case.options)}, calls=1) for worker in found
        ]
        calls = max(1, round(TIMING / min(first)))
        taken: list[list[float]] = [[] for _ in found]
        while len(taken[0]) < 5 or time.monotonic() - begin < seconds:
            for number in shuffled.sample(range(len(found)), len(found)):
                taken[number].append(found[number].ask(calls=calls))
    return taken


class Verdict(NamedTuple):
    """What a comparison found: milliseconds of both, new over base, and the base's distance from itself."""

    base: float
    new: float
    ratio: Spread
    noise: float

    @property
    def slower(self) -> bool:
        """Whether the new commit is slower by more than the noise and what is allowed."""
        return self.ratio.median > 1 + self.noise + ALLOWED


def verdict(base: list[float], again: list[float], new: list[float]) -> Verdict:
    """Judges the times of the base, of the base once more and of the new commit, in seconds, by rounds."""
    own = ratios(again, base)
    noise = max(abs(own.low - 1), abs(own.high - 1))
    return Verdict(spread(base).median * 1e3, spread(new).median * 1e3, ratios(new, base), noise)


def compared(case: Case, base: Path, new: Path, seconds: float, restarts: int) -> Verdict:
    """Compares two folders in new processes, several times: where memory lies differs between processes."""
    joined: list[list[float]] = [[], [], []]
    for _ in range(restarts):
        for values, more in zip(joined, times(case, [base, base, new], seconds / restarts), strict=True):
            values.extend(more)
    return verdict(*joined)


def main(
    base: Annotated[str, typer.Option(help="The commit to compare with.")] = "HEAD~1",
    new: Annotated[str, typer.Option(help="The commit that must not be slower.")] = "HEAD",
    seconds: Annotated[float, typer.Option(help="How long a case is measured.", min=0)] = 12.0,
    restarts: Annotated[int, typer.Option(help="In how many new processes.", min=1)] = 3,
) -> None:
    """Compares the step's time in two commits; exits with 1 when a case got slower or lost, or none ran."""
    folders = built(base), built(new)
    shown = Table(title=f"{new} against {base}, one step on the CPU")
    for column in ("case", f"{base} ms", f"{new} ms", "ratio (quartiles)", "noise", ""):
        shown.add_column(column)
    judged = slower = 0
    for name, case in track(GUARDED.items(), "measuring", transient=True):
        try:
            found = compared(case, *folders, seconds, restarts)
        except CannotStep as error:
            lost = error.folder == folders[1] != folders[0]  # the base, which is asked first, can do it
            slower += lost
            what = "[red]lost[/red]" if lost else "not compared"
            shown.add_row(name, "", "", "", "", f"{what}: {escape(str(error))}")
            continue
        judged, slower = judged + 1, slower + found.slower
        median, low, high = found.ratio
        numbers = f"{found.base:.3g}", f"{found.new:.3g}", f"{median:.3f} ({low:.3f}-{high:.3f})"
        shown.add_row(name, *numbers, f"{found.noise:.3f}", "[red]slower[/red]" if found.slower else "kept")
    Console().print(shown)
    raise typer.Exit(int(slower > 0 or judged == 0))


if __name__ == "__main__":
    typer.run(main)
