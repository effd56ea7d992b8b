"""What a run is given: where it runs, who shows it, its checkpoint, and what runs keep for each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn

from grokfused.lab.store import short_name
from grokfused.lab.terminal import console, interruptible, say

SAVE_EVERY = 15.0  # seconds of a run that a kill may cost
LINE_EVERY = 30.0  # seconds between two lines where there is no terminal


class Interrupted(Exception):
    """Ctrl-C was pressed, and everything is saved."""


class NotKept(Exception):
    """A run needs what another one keeps, which was not run; the message says what to do."""


class Watch:
    """What a run is given: where it runs, who shows it, and the checkpoint that it may go on from.

    Args:
        out: The experiment's folder.
        device: As torch names it.
        works: How long each of the runs will take, beside the others.
        interrupted: Says whether Ctrl-C was pressed.
        setting: What all runs share; what one keeps for others is kept apart for each.

    Attributes:
        kept_in: The folder of what is kept.
    """

    def __init__(
        self,
        out: Path,
        device: str,
        works: Sequence[float],
        interrupted: Callable[[], bool],
        setting: Any = None,
    ) -> None:
        self.out, self.device, self.works, self.interrupted = out, device, works, interrupted
        self.kept_in = out / "kept" / short_name(setting)
        self.runs, self.title = 0, ""  # runs that are there
        self.key: dict[str, Any] = {}
        self.began = self.saved_at = time.perf_counter()
        self.spent, self.clock = 0.0, time.process_time()
        self.span = 0.0, 1.0  # which part of the run is shown: where it begins, and how long it is
        self.line_at = 0.0
        self.skipped = 0.0  # work that was there already: it says nothing of how long the rest takes
        self.resumed = False
        columns = (BarColumn(bar_width=24), TextColumn("{task.percentage:.0f} %  {task.description}"))
        self.bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self.task = self.bar.add_task("", total=sum(works))

    def begin(self, title: str, key: dict[str, Any]) -> None:
        """Says which run is the next; ``key`` is all that decides it."""
        self.title, self.key = title, key
        self.saved_at = time.perf_counter()
        self.spent, self.clock = 0.0, time.process_time()
        self.span = 0.0, 1.0
        found = self._checkpoint()
        self.resumed = bool(found) and found["key"] == key
        if self.resumed:
            self.spent, self.clock = found["seconds"], time.process_time()

    def seconds(self) -> float:
        """Returns the processor's seconds of this run, those before it was cut short included."""
        return self.spent + time.process_time() - self.clock

    def end(self, skipped: bool = False) -> None:
        """Counts a run."""
        self.skipped += self.works[self.runs] if skipped else 0.0
        self.runs += 1
        self.bar.update(self.task, completed=sum(self.works[: self.runs]))

    def show(self, share: float, note: str) -> None:
        """Shows how far the run is, in [0, 1], and the time that all runs together will still take."""
        begin, length = self.span
        of_run = self.works[self.runs] * (begin + length * share)
        if self.resumed:  # the first look of this start
            self.skipped, self.resumed = self.skipped + of_run, False
        now, done = time.perf_counter(), sum(self.works[: self.runs]) + of_run
        if done <= self.skipped:
            return
        left = (now - self.began) / (done - self.skipped) * (sum(self.works) - done)
        told = f"{self.title}: {note}; about {_clock(left)} left"
        self.bar.update(self.task, completed=done, description=told)
        if not console.is_terminal and now - self.line_at >= LINE_EVERY:
            say(f"run {self.runs + 1} of {len(self.works)}, {told}")
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


@contextmanager
def watching(out: Path, device: str, works: Sequence[float], setting: Any = None) -> Iterator[Watch]:
    """Yields a watch whose bar is live."""
    with interruptible() as interrupted:
        watch = Watch(out, device, works, interrupted, setting)
        with watch.bar:
            yield watch
