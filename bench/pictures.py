"""The two pictures of the README, as SVG: drawn here from what was recorded, the same to the byte each time.

``python -m bench.pictures FOLDER ...`` first records the runs of ``grokfused grok`` in these folders.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grokfused.lab.bench.implementations import FOREACH_EMA, FUSED, NARROW, OURS, PYTHON_EMA
from grokfused.lab.page import facts

ROOT = Path(__file__).parent.parent
GROKKING = ROOT / "docs" / "grokking.json"
WIDTH = 600  # of both, in units of which text is 15 high: to be read on a phone too
COLORS = ("#2563eb", "#dc2626", "#6b7280")
STYLE = (
    "text{font:15px system-ui,sans-serif;fill:#1f2937}.small{font-size:13px}.axis{stroke:#9ca3af;fill:none}"
)
PAPER = '<rect width="100%" height="100%" fill="#fff"/>'
THRESHOLD = 0.95
# Whose step the chart shows, and what a reader calls it. The last one is the authors' file.
BARS = {
    OURS: "GrokAdamW",
    NARROW: "GrokAdamW, bfloat16 states",
    FUSED: "AdamW(fused=True)",
    FOREACH_EMA: "filter with torch._foreach, AdamW",
    PYTHON_EMA: "the authors' filter, AdamW",
}


def svg(height: float, title: str, parts: Sequence[str]) -> str:
    """Returns a picture; ``title`` is what a reader hears who does not see it."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img">'
    return (
        "\n".join([head, f"<title>{title}</title>", f"<style>{STYLE}</style>", PAPER, *parts, "</svg>"])
        + "\n"
    )


def text(x: float, y: float, said: str, kind: str = "", anchor: str = "start") -> str:
    """Returns a line of text that begins, or is centred or ends, at a place."""
    escaped = said.replace("&", "&amp;").replace("<", "&lt;")
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escaped}</text>'


def step_time(record: dict[str, Any]) -> str:
    """Returns the chart: how long a step takes beside AdamW(fused=True), for each case of the set "steps"."""
    rows = [row for row in record["rows"] if row["set"] == "steps" and row["implementation"] in BARS]
    longest = max(row["times_longer_than"][FUSED]["median"] for row in rows)
    parts, y, left = [], 20.0, 236
    scale = (WIDTH - left - 44) / longest
    for case in dict.fromkeys(row["case"] for row in rows):
        own = {row["implementation"]: row for row in rows if row["case"] == case}
        about = f"{own[OURS]['elements'] / 1e6:.1f} million parameters in {own[OURS]['tensors']:,} tensors"
        parts.append(text(4, y, f"{case}: {about}"))
        for name, label in BARS.items():
            y += 22
            ratio = own[name]["times_longer_than"][FUSED]["median"]
            color = COLORS[0] if name.startswith(OURS) else COLORS[2]
            parts += [
                text(left - 8, y, label, "small", "end"),
                f'<rect x="{left}" y="{y - 11:.1f}" width="{ratio * scale:.1f}" height="15" fill="{color}"/>',
                text(left + max(ratio, 1) * scale + 6, y, f"{ratio:.2f}", "small"),  # right of the line at 1
            ]
        y += 36
    line = f'<path class="axis" d="M{left + scale:.1f} 28V{y - 34:.1f}" stroke-dasharray="3 3"/>'
    machine = record["machine"]
    where = f"{machine['cpu']}, {machine['threads']} threads, float32, torch {machine['torch']}"
    notes = [
        text(4, y, "How long a step takes; 1 is AdamW(fused=True), which has no filter.", "small"),
        text(4, y + 18, where, "small"),
        text(4, y + 36, f"commit {machine['commit']}, {machine['date'][:10]}", "small"),
    ]
    return svg(y + 46, "Time of an optimizer step beside AdamW(fused=True)", [line, *parts, *notes])


def arrival(run: dict[str, Any]) -> int | None:
    """Returns the first recorded iteration with 95 % validation accuracy, or None."""
    return next((row[0] for row in run["evaluations"] if row[2] >= THRESHOLD), None)


def arrived(run: dict[str, Any]) -> str:
    """Says when a run reached 95 %."""
    when = arrival(run)
    last = run["evaluations"][-1][0]
    return f"95 % at iteration {when:,}" if when else f"not in {last:,} iterations"


def grokking(record: dict[str, Any]) -> str:
    """Returns the curves: accuracy over iterations, solid where it is of equations never trained on."""
    left, right, top, bottom, first = 56, WIDTH - 20, 92, 330, 20
    last = max(run["evaluations"][-1][0] for run in record["runs"])

    def place(iteration: float, accuracy: float) -> str:
        across = math.log(iteration / first) / math.log(last / first)
        return f"{left + across * (right - left):.1f} {bottom - accuracy * (bottom - top):.1f}"

    parts = [f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>']
    for accuracy in (0.0, 0.5, 1.0):
        parts.append(
            text(left - 6, bottom - accuracy * (bottom - top) + 4, f"{accuracy:.0%}", "small", "end")
        )
    for iteration in (20, 100, 300, 1_000, 3_000, 10_000):
        if iteration <= last:
            parts.append(
                text(float(place(iteration, 0).split()[0]), bottom + 16, f"{iteration:,}", "small", "middle")
            )
    for number, (run, color) in enumerate(zip(record["runs"], COLORS, strict=True)):
        for column, dashes in ((1, ' stroke-dasharray="4 4" stroke-opacity=".6"'), (2, "")):
            line = "L".join(place(row[0], row[column]) for row in run["evaluations"])
            parts.append(f'<path d="M{line}" fill="none" stroke="{color}" stroke-width="2"{dashes}/>')
        y = 24 + 22 * number
        parts.append(f'<path d="M10 {y - 5}h24" stroke="{color}" stroke-width="3"/>')
        parts.append(text(42, y, f"{run['called']}: {arrived(run)}"))
    legend = "accuracy over iterations; solid: unseen equations, dashed: those trained on"
    parts.append(text(10, bottom + 42, legend, "small"))
    return svg(bottom + 54, "Accuracy with and without the filter", parts)


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


# Each picture, and what it is drawn from.
PICTURES: dict[Path, Callable[[], str]] = {
    ROOT / "docs" / "step-time.svg": lambda: step_time(_read(ROOT / "bench" / "results" / "cpu.json")),
    ROOT / "docs" / "grokking.svg": lambda: grokking(_read(GROKKING)),
}


def recorded(folder: Path) -> dict[str, Any]:
    """Returns a run of ``grokfused grok`` with what the picture shows of it: iteration, both accuracies."""
    config = _read(folder / "config.json")
    decay = f"weight decay {config['weight_decay']:g}"
    filtered = "with the filter" if "alpha" in config else "without a filter"
    options = f"alpha {config['alpha']:g}, lamb {config['lamb']:g}" if "alpha" in config else "no filter"
    name = {"grokadam": "GrokAdam", "adamw": "torch.optim.AdamW"}[config["optimizer"]]
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    keys = ("iteration", "train_accuracy", "validation_accuracy")
    rows = [[round(line[key], 4) for key in keys] for line in lines]
    called = f"{name.rpartition('.')[2]} {filtered}, decay {config['weight_decay']:g}"
    return {"what": f"{name}, {decay}, {options}", "called": called, "config": config, "evaluations": rows}


def draw_all() -> None:
    """Writes both pictures."""
    for path, draw in PICTURES.items():
        path.write_text(draw())


def main() -> None:
    """Records the runs that are named, and draws both pictures."""
    if folders := [Path(name) for name in sys.argv[1:]]:
        about = facts() | {
            "command": "grokfused grok --filter ema; --filter none --budget 12000; --optimizer adamw"
        }
        runs = [recorded(folder) for folder in folders]
        body = ",\n".join(json.dumps(run) for run in runs)
        GROKKING.write_text(f'{{"recorded": {json.dumps(about)},\n"runs": [\n{body}\n]}}\n')
    draw_all()


if __name__ == "__main__":
    main()
