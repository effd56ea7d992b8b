"""What a paper's runs become: a page, a figure, a table for the terminal, and the index of all papers."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from rich.table import Table

from grokfused.lab import page
from grokfused.lab.papers.frame import Paper, Record, runs_of

PAGE = """# {title}

After {source}. The page and its figure are written by `grokfused reproduce {name}` from
[{name}.json]({name}.json), which has every run.

**What is claimed.** {claim}

**What we ran, and what differs.** {ran}

**Does it hold here?** {holds}{factor}

![{name}]({name}.png)

{table}

## How to read it

{reading}

## Recorded with

```bash
{command}
```

Commit {commits}; torch {torch}, Python {python}; {machine}; {date:.10}. {runs} runs, seconds of
processor time: {seconds}; seeds {seeds}.
"""
INDEX = """# Papers, reproduced

Each row is an experiment, over seeds and with controls, made by `grokfused reproduce NAME`. "Holds here" is
about what we ran, which is smaller than what the papers ran: the pages say how. "Factor" is the headline's
figure as measured here; "seconds" are the processor's, of all runs.

"""
COLUMNS = ("paper", "claim", "holds here", "factor", "seeds", "seconds", "picture")


def spread(values: Sequence[float | None], digits: int = 0, of: int | None = None) -> str:
    """Returns a median with its range, and how many are not None: "820 (640 to 920), 5 of 6"."""
    there = [value for value in values if value is not None]
    count = len(values) if of is None else of
    rate = f"{len(there)} of {count}"
    if not there:
        return rate
    ends = [f"{value:,.{digits}f}" for value in (statistics.median(there), min(there), max(there))]
    shown = f"{ends[0]} ({ends[1]} to {ends[2]})" if len(there) > 1 else ends[0]
    return shown if len(there) == count else f"{shown}, {rate}"


def paired(record: Record, row: str, base: str, name: str) -> list[float]:
    """Returns by how much a row's numbers are above those of another row, seed by seed."""
    bases = {run["seed"]: run[name] for run in runs_of(record, base)}
    return [run[name] - bases[run["seed"]] for run in runs_of(record, row) if run["seed"] in bases]


def _commits(record: Record) -> str:
    return ", ".join(dict.fromkeys(run["commit"] for run in record["runs"]))


def _seeds(record: Record) -> list[int]:
    return sorted({run["seed"] for run in record["runs"]})


def _seconds(record: Record) -> str:
    found = [run["seconds"] for run in record["runs"] if run["seconds"] is not None]
    part = f" ({len(found)} of {len(record['runs'])} runs)" if len(found) < len(record["runs"]) else ""
    return f"{sum(found):,.0f}{part}" if found else "not recorded"


def machine(record: Record) -> str:
    """Returns what computed it."""
    where = "" if record["device"] == "cpu" else f", {record['device']}"
    return f"{record['cpu']}, {record['threads']} thread(s){where}"


def markdown(paper: Paper, record: Record) -> str:
    """Returns the page."""
    verdict = paper.page.verdict(record)
    return PAGE.format(
        **{name: record[name] for name in ("command", "torch", "python", "date")},
        **{name: getattr(paper.about, name) for name in ("title", "source", "claim")},
        name=paper.name,
        ran=" ".join(paper.about.ran.format(**record["setting"]).split()),
        holds=verdict.holds.capitalize(),
        factor=f": {verdict.factor}." if verdict.factor else ".",
        table="\n".join(page.markdown_table(paper.page.columns, paper.page.cells(record))),
        reading="\n".join(f"- {line}" for line in verdict.reading),
        commits=_commits(record),
        machine=machine(record),
        runs=len(record["runs"]),
        seconds=_seconds(record),
        seeds=", ".join(map(str, _seeds(record))),
    )


def index(papers: Mapping[str, Paper], records: Mapping[str, Record]) -> str:
    """Returns the page of all papers; those without a record are left out."""
    cells = []
    for name, paper in papers.items():
        if name in records:
            record, verdict = records[name], paper.page.verdict(records[name])
            picture = f'<img src="{name}.png" width="240" alt="{name}">'
            link, numbers = (
                f"[{paper.about.title}]({name}.md)",
                (str(len(_seeds(record))), _seconds(record)),
            )
            cells.append([link, paper.about.claim, verdict.holds, verdict.factor, *numbers, picture])
    return INDEX + "\n".join(page.markdown_table(COLUMNS, cells)) + "\n"


def table(paper: Paper, record: Record) -> Table:
    """Returns the table for the terminal."""
    return page.terminal_table(
        f"{paper.name} ({paper.about.source})", paper.page.columns, paper.page.cells(record)
    )


def write(paper: Paper, record: Record, out: Path) -> None:
    """Writes ``NAME.md``, ``NAME.json`` and ``NAME.png``."""
    page.write(out, paper.name, record, markdown(paper, record))
    figure = pyplot.figure(figsize=(8, 4.5), layout="constrained")
    paper.page.draw(record, figure)
    figure.savefig(out / f"{paper.name}.png", dpi=110)
    pyplot.close(figure)


def records_in(folder: Path, papers: Mapping[str, Paper]) -> dict[str, Any]:
    """Returns the records of a folder by the paper's name."""
    paths = {name: folder / f"{name}.json" for name in papers}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def write_all(papers: Mapping[str, Paper], folder: Path) -> list[str]:
    """Writes every page of a folder and the index anew, from the records there; returns their names."""
    records = records_in(folder, papers)
    for name, record in records.items():
        write(papers[name], record, folder)
    (folder / "index.md").write_text(index(papers, records))
    return list(records)
