"""What an experiment has measured: a JSON line per run, so that one that was killed continues."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any


def short_name(plain: Any) -> str:
    """Returns letters that are a name for plain values: equal for equals, and for no others that are met."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def whole_lines(path: Path) -> list[str]:
    """Returns a file's lines, none where it is not there; one that a kill cut short is taken out of it."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    if not lines or lines[-1].endswith("\n"):
        return lines
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(lines[:-1]))
    temporary.replace(path)
    return lines[:-1]


class Store:
    """The runs of a file, each a line.

    Args:
        path: The file; made with the first line.
        setting: A dataclass: what all runs share. Lines of another one are not taken.
    """

    def __init__(self, path: Path, setting: Any) -> None:
        self.path, self.setting = path, json.loads(json.dumps(asdict(setting)))
        whole = [json.loads(line) for line in whole_lines(path)]
        self.runs = [run for run in whole if run.pop("setting") == self.setting]

    def find(self, **asked: Any) -> dict[str, Any] | None:
        """Returns the run with these entries, or None where it has not been made."""
        return next((run for run in self.runs if asked.items() <= run.items()), None)

    def add(self, run: dict[str, Any]) -> None:
        """Keeps a run, in the file too."""
        self.runs.append(run)
        with self.path.open("a") as file:
            file.write(json.dumps({**run, "setting": self.setting}) + "\n")
