"""What the pages of experiments share: with what they were recorded, tables, and the two files."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

import grokfused
from grokfused.lab.bench import probes

Cells = Iterable[Sequence[str]]


def facts() -> dict[str, Any]:
    """Says with what a run was recorded."""
    return {
        "command": " ".join(["grokfused", *_without_folders(sys.argv[1:])]),
        "commit": probes.commit(),
        "grokfused": grokfused.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": probes.cpu_name(),
        "threads": torch.get_num_threads(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def plain(value: Any) -> Any:
    """Returns what a JSON file gives back: tuples as lists, dtypes by name; of eight digits."""
    if isinstance(value, float):
        return float(f"{value:.8g}")
    if isinstance(value, Mapping):
        return {str(name): plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, str | int) else str(value).removeprefix("torch.")


def _without_folders(arguments: Sequence[str]) -> list[str]:
    """Returns the arguments of a command but where its files went, which is nobody else's folder."""
    pairs = zip(arguments, ["", *arguments], strict=False)
    return [one for one, before in pairs if "--out" not in (one, before) and not one.startswith("--out=")]


def markdown_table(columns: Sequence[str], cells: Cells) -> list[str]:
    """Returns the lines of a table."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    return lines + [f"| {' | '.join(row)} |" for row in cells]


def terminal_table(title: str, columns: Sequence[str], cells: Cells) -> Table:
    """Returns the same for the terminal, figures to the right."""
    shown = Table(title=title)
    for number, column in enumerate(columns):
        shown.add_column(column, justify="right" if number else "left")
    for row in cells:
        shown.add_row(*row)
    return shown


def write(out: Path, name: str, recorded: Mapping[str, Any], text: str) -> None:
    """Writes the record as ``name.json`` and its page as ``name.md``."""
    (out / f"{name}.json").write_text(json.dumps(recorded, indent=1) + "\n")
    (out / f"{name}.md").write_text(text)
