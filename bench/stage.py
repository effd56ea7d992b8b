"""One thing that a check does: the command that it runs, with a limit and a log, and what became of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TIME_OVER = 124
TOLD = 6000  # characters of what a failed command has printed


@dataclass
class Stage:
    """One thing that was to be done.

    ``verdict`` is "passed", "failed", "could not run", or, of what a killed check leaves, "not ended" or "not
    yet run".
    """

    name: str
    verdict: str
    why: str = ""
    seconds: float = 0.0
    found: dict[str, Any] = field(default_factory=dict)


def run(command: Sequence[str], limit: float, log: Path, **environment: str) -> tuple[int, str]:
    """Runs a command, and ends it with all that it has started where its time is over.

    Args:
        command: Program and arguments.
        limit: Seconds.
        log: What it prints is added here at once, so that it is there whatever happens to this process.
        environment: What to add to the environment.

    Returns:
        The exit status (``TIME_OVER`` where the limit ended it) and all that was printed.
    """
    print("$", *command, flush=True)
    with log.open("a") as written:
        print("$", *command, file=written, flush=True)
        begin = written.tell()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = TIME_OVER
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    with log.open(errors="replace") as all_of_it:
        all_of_it.seek(begin)
        return code, all_of_it.read()


def judged(name: str, code: int, output: str, **found: Any) -> Stage:
    """Returns the stage of a command that has run."""
    if code == 0:
        return Stage(name, "passed", found=found)
    print(output[-TOLD:])
    ended = "its time was over" if code == TIME_OVER else f"exit status {code}"
    return Stage(name, "failed", f"{ended}: {last_line(output)}", found={**found, "told": output[-TOLD:]})


def last_line(output: str) -> str:
    """Returns the last line that says something."""
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def counts(output: str) -> dict[str, int]:
    """Returns how many tests passed, failed, were skipped, ..., until then where pytest came to no end."""
    *_, last = [
        "",
        *re.findall(r"^.*\d+ (?:passed|failed|skipped|error).* in [\d.]+s.*$", output, re.MULTILINE),
    ]
    found = {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)s?\b", last)}
    if found:
        return found
    signs = "".join(re.findall(r"^([.FsE]+)(?:\s+\[\s*\d+%\])?$", output, re.MULTILINE))
    words = {".": "passed", "F": "failed", "s": "skipped", "E": "error"}
    return {word: signs.count(sign) for sign, word in words.items() if sign in signs}
