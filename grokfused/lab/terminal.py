"""How commands talk: one console, plain refusals, and a Ctrl-C that waits for a good moment."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

console = Console()


def refuse(message: str) -> typer.Exit:
    """Prints why a command cannot run and returns the exit to raise."""
    shown = f"[red]grokfused:[/red] {escape(message)}"
    Console(stderr=True).print(shown, highlight=False, soft_wrap=True)
    return typer.Exit(2)


def say(message: str) -> None:
    """Prints one line as it is: unbroken and without markup, so that a path in it can be copied."""
    console.print(message, markup=False, soft_wrap=True)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether Ctrl-C was pressed; a second Ctrl-C ends at once.

    A run may stop between two epochs only: in the middle of a step there is nothing to resume from. Where
    Ctrl-C was ignored from the start, as under ``nohup``, it stays ignored.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield lambda: False
        return
    pressed: list[int] = []

    def note(number: int, _: Any) -> None:
        if pressed:
            raise KeyboardInterrupt
        pressed.append(number)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)
