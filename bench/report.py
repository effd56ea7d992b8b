"""Makes tables of recorded runs and of the memory model: ``python -m bench.report`` writes the documents.

A document says which by a pair of comments, ``<!-- KIND: WHICH -->`` and ``<!-- /KIND -->``. What stands
between them, by kind:

- ``measured: RUN SET``: the set ``SET`` of ``bench/results/RUN.json``.
- ``repeated: RUN RUN ...``: what is aimed at, in several runs side by side.
- ``checked: RUN SET CASE``: the memory model beside a case of a run.
- ``computed: NAME``: a table of ``bench.model``.
- ``summary: RUN SET`` and ``summary: grokking``: sentences.

The pictures of the README are drawn too.
"""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import aims, model, pictures
from grokfused.lab.bench import plots, show, summary

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "bench" / "RESULTS.md", ROOT / "docs" / "performance.md")
SECTION = re.compile(
    r"(<!-- (measured|checked|computed|repeated|summary): (.*?) -->\n).*?(<!-- /\2 -->)", re.DOTALL
)


def recorded(run: str) -> dict[str, Any]:
    """Returns the run called ``run``; where there is none, one without rows."""
    path = RESULTS / f"{run}.json"
    record: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
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
    if not rows:
        return "Not recorded yet.\n"
    parts = [f"{show.where(record['machine'])}\n", show.markdown(rows)]
    if found := aims.of_run(record["machine"], name, rows):
        parts.append(of_aims(found))
    return "\n".join(parts)


def check(record: dict[str, Any], name: str, case: str) -> str:
    """Returns the memory model beside what a case of a recorded run took."""
    rows = [row for row in record["rows"] if (row["set"], row["case"]) == (name, case)]
    return f"{show.where(record['machine'])}\n\n{model.check_table(rows)}"


def repeated(records: Sequence[dict[str, Any]]) -> str:
    """Returns what was aimed at, beside what each of some runs measured."""
    found = [
        [
            aim
            for name in dict.fromkeys(row["set"] for row in record["rows"])
            for aim in aims.of_run(
                record["machine"], name, [row for row in record["rows"] if row["set"] == name]
            )
        ]
        for record in records
    ]
    dates = " | ".join(f"{r['machine']['commit']}, {r['machine']['date'][:10]}" for r in records)
    lines = [f"| what | aim | {dates} | median |", "| --- | --- |" + " ---: |" * len(records) + " --- |"]
    for several in zip(*found, strict=True):
        aim = several[0]
        median = aim._replace(measured=statistics.median(each.measured for each in several))
        figures = " | ".join(f"{each.measured:.2f}" for each in several)
        verdict = "kept" if median.kept else "**missed**"
        lines.append(f"| {aim.what} | {aim.sign} {aim.bound} | {figures} | {verdict} |")
    return "\n".join(lines) + "\n"


def sentences(record: dict[str, Any], name: str) -> str:
    """Returns a set of a recorded run in sentences, one for each case."""
    rows = [row for row in record["rows"] if row["set"] == name]
    said = [found for _, own in show.groups(rows) if (found := summary.sentence(own))]
    return "".join(f"- {one}\n" for one in said)


def grokking() -> str:
    """Returns what the first picture shows, in words."""
    record = json.loads(pictures.GROKKING.read_text())
    about = record["recorded"]
    lines = [f"- {run['what']}: {pictures.arrived(run)}.\n" for run in record["runs"]]
    where = f"torch {about['torch']}, {about['threads']} thread(s), commit {about['commit']}"
    lines += [
        f"\nAccuracy on equations never seen, one seed, the authors' batches; {where}, {about['date'][:10]}. "
    ]
    return "".join([*lines, "[Every figure](docs/grokking.json).\n"])


KINDS: dict[str, Callable[..., str]] = {
    "measured": lambda run, name: section(recorded(run), name),
    "checked": lambda run, name, case: check(recorded(run), name, case),
    "computed": lambda name: model.TABLES[name](),
    "repeated": lambda *runs: repeated([recorded(run) for run in runs]),
    "summary": lambda run, *name: sentences(recorded(run), *name) if name else grokking(),
}


def written_into(document: str) -> str:
    """Returns a document with its tables replaced."""
    return SECTION.sub(lambda m: m[1] + KINDS[m[2]](*m[3].split()) + m[4], document)


def main() -> None:
    """Writes the documents and the figures of all recorded runs, and prints the aims."""
    for path in DOCUMENTS:
        path.write_text(written_into(path.read_text()))
    pictures.draw_all()
    console = Console()
    for path in sorted(RESULTS.glob("cpu*.json")):
        record = json.loads(path.read_text())
        rows = record["rows"]
        plots.draw(rows, path.with_suffix(".png"))
        for name in dict.fromkeys(row["set"] for row in rows):
            own = [row for row in rows if row["set"] == name]
            aims.show(console, aims.of_run(record["machine"], name, own))


if __name__ == "__main__":
    main()
