"""Turns recorded runs into the tables of the documents: ``python -m bench.report`` writes them there.

A document says which by a pair of comments, ``<!-- measured: RUN SET -->`` and ``<!-- /measured -->``: what
stands between them is the set ``SET`` of ``bench/results/RUN.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import aims
from grokfused.lab.bench import plots, show

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "bench" / "RESULTS.md")
SECTION = re.compile(r"(<!-- measured: (\w+) (\w+) -->\n).*?(<!-- /measured -->)", re.DOTALL)


def recorded(run: str) -> dict[str, Any]:
    """Returns the run called ``run``."""
    record: dict[str, Any] = json.loads((RESULTS / f"{run}.json").read_text())
    return record


def of_aims(found: Sequence[aims.Aim]) -> str:
    """Returns a list of aims, kept and missed."""
    lines = ["What was aimed at, and what this run measured:", ""]
    for aim in found:
        verdict = "kept" if aim.kept else "**missed**"
        lines.append(f"- {aim.what}: {aim.measured:.2f} (aim {aim.sign} {aim.bound}; {verdict})")
    return "\n".join(lines) + "\n"


def section(record: dict[str, Any], name: str) -> str:
    """Returns a set of a recorded run: where, every row, and what was aimed at."""
    rows = [row for row in record["rows"] if row["set"] == name]
    parts = [f"{show.where(record['machine'])} {show.LEGEND}\n", show.markdown(rows)]
    if found := aims.of_set(name, rows):
        parts.append(of_aims(found))
    return "\n".join(parts)


def written_into(document: str) -> str:
    """Returns a document with its measured parts replaced."""
    return SECTION.sub(lambda m: m[1] + section(recorded(m[2]), m[3]) + m[4], document)


def main() -> None:
    """Writes the documents and the figures of all recorded runs, and prints the aims."""
    for path in DOCUMENTS:
        path.write_text(written_into(path.read_text()))
    console = Console()
    for path in sorted(RESULTS.glob("cpu*.json")):
        rows = json.loads(path.read_text())["rows"]
        plots.draw(rows, path.with_suffix(".png"))
        for name in dict.fromkeys(row["set"] for row in rows):
            aims.show(console, aims.of_set(name, [row for row in rows if row["set"] == name]))


if __name__ == "__main__":
    main()
