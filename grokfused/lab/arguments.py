"""What commands ask of their options before they begin; who does not give it is refused with the reason."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from grokfused.lab.terminal import refuse

try:
    import fcntl
except ImportError:  # not there on Windows, where nothing is held
    fcntl = None  # type: ignore[assignment]


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


def check_device(device: str) -> None:
    """Refuses a device that torch does not know, was not built for or does not find."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise refuse(f"--device {device} cannot be used: {str(error).splitlines()[0]}") from error


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Makes a folder where there is none, and keeps it for this process; a kill gives it back.

    Two processes that write there would make every run twice, and overwrite each other's checkpoints. Refused
    is a folder that cannot be made or written to, or that another process keeps.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):  # before hours are spent on what cannot be kept
            opened = os.open(out, os.O_RDONLY) if fcntl else -1
    except OSError as error:
        raise refuse(f"{out} cannot be written to ({error.strerror}); choose another --out") from error
    try:
        if fcntl:
            _lock(opened, out)
        yield
    finally:
        if fcntl:
            os.close(opened)


def _lock(opened: int, out: Path) -> None:
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise refuse(f"another process works in {out}: wait for its end, or choose another --out") from error
    except OSError:  # some file systems lock nothing
        return
