"""What a GPU check has found so far, as a JSON file, as a Markdown page, and as the one table of it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.aims import Aim
from bench.report import of_aims
from bench.stage import Stage
from grokfused.lab.bench import show
from grokfused.lab.bench.implementations import FOREACH_EMA, FUSED, OURS
from grokfused.lab.bench.rows import Row

BACKENDS = {"native": OURS, "triton": f"{OURS}, backend=triton", FUSED: FUSED, FOREACH_EMA: FOREACH_EMA}
LEGEND = "Each cell: share of the bandwidth of copy_; the host's ms per step; launches per step."


def cell(row: Row | None) -> str:
    """Returns share of copy, host time and launches of a row, or that it has none."""
    if row is None:
        return "-"
    if "why_not" in row:
        return "could not run"
    share = f"{row['share_of_copy']['median']:.2f}" if row["share_of_copy"] else "-"
    return f"{share}; {row['host_milliseconds']['median']:.3g} ms; {row['launches']}"


def table(rows: Sequence[Row]) -> str:
    """Returns one line per case and dtype and one column per backend, aligned for a terminal and a page."""
    found = {(row["case"], row["dtype"], row["implementation"]): row for row in rows}
    lines = [["case", "dtype", *BACKENDS]]
    for case, dtype in dict.fromkeys((case, dtype) for case, dtype, _ in found):
        lines.append([case, dtype, *(cell(found.get((case, dtype, name))) for name in BACKENDS.values())])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    rows_of_text = (" | ".join(text.ljust(w) for text, w in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(f"| {line} |" for line in rows_of_text)


def why_nots(rows: Sequence[Row]) -> list[str]:
    """Returns one line for each reason why something could not be measured."""
    reasons = dict.fromkeys((row["implementation"], row["why_not"]) for row in rows if "why_not" in row)
    return [f"{name} could not run: {reason}" for name, reason in reasons]


def markdown(record: dict[str, Any]) -> str:
    """Returns the record as a page: where, each stage, the one table, each promise, each row."""
    lines = ["# GPU check", ""]
    lines += [f"- {key}: {value}" for key, value in record["machine"].items()]
    lines += ["", "| stage | verdict | seconds | |", "|---|---|---|---|"]
    for stage in record["stages"]:
        why = stage["why"].replace("|", "\\|").replace("\n", " ")
        lines.append(f"| {stage['name']} | {stage['verdict']} | {stage['seconds']:.0f} | {why} |")
    found = {stage["name"]: stage["found"] for stage in record["stages"]}
    measured = found.get("bench", {})
    if rows := measured.get("rows"):
        lines += ["", LEGEND, "", table(rows), "", *why_nots(rows)]
    if measured.get("aims"):
        aims = [Aim(**{name: aim[name] for name in Aim._fields}) for aim in measured["aims"]]
        lines += ["", of_aims(aims)]
    if "fma" in measured:
        lines += ["", f"What the contract costs (fused multiply-adds allowed or not): {measured['fma']}"]
    if found.get("grok"):
        lines += ["", f"Demonstration in one graph: {found['grok']}"]
    if measured.get("rows"):
        lines += ["", show.LEGEND, "", show.markdown(measured["rows"])]
    return "\n".join(lines) + "\n"


def write(out: Path, machine: dict[str, Any], stages: Sequence[Stage]) -> None:
    """Writes both files; what was there before stays whole until they are."""
    record = {"machine": machine, "stages": [asdict(stage) for stage in stages]}
    texts = {"gpu_check.json": json.dumps(record, indent=1) + "\n", "gpu_check.md": markdown(record)}
    for name, text in texts.items():
        unfinished = out / f"{name}.new"
        unfinished.write_text(text)
        os.replace(unfinished, out / name)
