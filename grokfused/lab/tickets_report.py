"""What the tickets' experiment shows: a table, a figure, and both as files."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib import pyplot
from rich.table import Table

from grokfused.lab import page
from grokfused.lab.tickets import ROWS, THRESHOLD, Setting
from grokfused.lab.training import Evaluation

Found = Mapping[tuple[str, int], Sequence[Evaluation]]
COLUMNS = ("run", "seed", "t_mem", "t_gen", "t_gen / t_mem", "dense t_gen / t_gen", "best test", "last epoch")


def first(evaluations: Sequence[Evaluation], name: str) -> int | None:
    """Returns the first epoch in which an accuracy has reached the threshold."""
    return next((e.iteration for e in evaluations if getattr(e, name) >= THRESHOLD), None)


def rows(found: Found) -> list[dict[str, Any]]:
    """Returns one entry per run; ``speedup`` is how many times sooner than the dense run of its seed."""
    entries = []
    for (row, seed), evaluations in found.items():
        memorised, generalised = (
            first(evaluations, name) for name in ("train_accuracy", "validation_accuracy")
        )
        dense = first(found[("dense", seed)], "validation_accuracy")
        entries.append(
            {
                "row": row,
                "seed": seed,
                "t_mem": memorised,
                "t_gen": generalised,
                "tau": generalised / memorised if generalised and memorised else None,
                "speedup": dense / generalised if generalised and dense else None,
                "best_test": max(e.validation_accuracy for e in evaluations),
                "last_epoch": evaluations[-1].iteration,
                "seconds": evaluations[-1].seconds,
            }
        )
    return entries


def _number(value: float | None, digits: int = 0) -> str:
    return "none" if value is None else f"{value:,.{digits}f}"


def _cells(found: Found) -> list[list[str]]:
    entries = sorted(rows(found), key=lambda entry: (list(ROWS).index(entry["row"]), entry["seed"]))
    return [
        [
            ROWS[e["row"]].what,
            str(e["seed"]),
            _number(e["t_mem"]),
            _number(e["t_gen"]),
            _number(e["tau"], 1),
            _number(e["speedup"], 1),
            f"{e['best_test']:.3f}",
            _number(e["last_epoch"]),
        ]
        for e in entries
    ]


def table(found: Found) -> Table:
    """Returns the runs: epochs to 95 % train (t_mem) and test accuracy (t_gen), first crossing."""
    return page.terminal_table(f"epochs to {100 * THRESHOLD:g} % accuracy", COLUMNS, _cells(found))


def draw(found: Found, path: Path) -> None:
    """Writes test accuracy over epochs, one panel per kind of run, seeds as thin lines, as PNG."""
    names = [row for row in ROWS if any(row == key for key, _ in found)]
    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    for number, row in enumerate(names):
        runs = [evaluations for (key, _), evaluations in found.items() if key == row]
        for index, evaluations in enumerate(runs):
            epochs = [e.iteration for e in evaluations]
            accuracies = [e.validation_accuracy for e in evaluations]
            style = "-" if number < 10 else "--"
            label = ROWS[row].what if index == 0 else None
            axes.plot(epochs, accuracies, style, color=f"C{number % 10}", linewidth=1.1, label=label)
    axes.axhline(THRESHOLD, color="0.7", linewidth=0.8, zorder=0)
    axes.set(xscale="log", xlabel="epochs", ylabel="test accuracy", ylim=(-0.03, 1.05))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def write(found: Found, setting: Setting, out: Path) -> None:
    """Writes ``tickets.md``, ``tickets.json`` and ``tickets.png``."""
    recorded = page.facts()
    lines = [f"`{recorded['command']}`, commit {recorded['commit']}, torch {recorded['torch']}, "]
    lines[0] += f"{recorded['threads']} thread(s), {recorded['date'][:10]}."
    lines += ["", *page.markdown_table(COLUMNS, _cells(found))]
    speedups = [e["speedup"] for e in rows(found) if e["row"] == "ticket" and e["speedup"]]
    if speedups:
        lines += ["", f"Tickets generalise {statistics.median(speedups):.1f} times sooner (median)."]
    record = {**recorded, "setting": asdict(setting), "rows": rows(found)}
    page.write(out, "tickets", record, "\n".join(lines) + "\n")
    draw(found, out / "tickets.png")
