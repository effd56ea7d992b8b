"""The page "which state dtype do I choose": a table of memory, one of failure cases, and how to read them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from grokfused.lab import page
from grokfused.lab.state_bytes import states_bytes
from grokfused.lab.state_dtypes import CASES, LAST, NAMES, SIZE, is_finite

# Bytes of a state per parameter: codes, and what a block shares, from the packages' own sources.
PEER_BYTES = {
    "torch.optim.AdamW (float32)": 8.0,
    "bitsandbytes AdamW8bit": 2 * (1 + 4 / 256),
    "torchao AdamW8bit": 2 * (1 + 4 / 256),
    "FlashOptim AdamW": 2 * (1 + 2 / 32),
}
MEMORY = ("optimizer", "bytes a parameter", "1 billion", "8 billion")
BEGINNING = """# Which `state_dtype` do I choose?

`GrokAdamW(..., state_dtype=...)` says in which numbers the moments and the slow gradient are kept. Parameters
and gradients stay as they are.

- **`torch.float32`**, the default: where memory is not what you lack. Others are measured by it.
- **`torch.bfloat16`**: half the memory, rounded stochastically. Take it first.
- **`"block8"`**: a quarter. Updates carry a noise of some {block8:.0%} of their size, which averages out over
  steps. Take it where states in bfloat16 do not fit. Its limit: second moments that are 65,536 times smaller
  than the largest of their 64 count as that much, so that such elements move too little.

A state of 8 bits is a float of 8 bits; 64 neighbours share the window of octaves in which they lie
(`grokfused/backends/block8.py`). It is always rounded stochastically: `state_rounding="nearest"` is refused,
because a second moment moves by less than half of what 4 bits tell apart, and would stand still. No size, no
divisibility and no layer is special. Under a mask of mode "freeze", a frozen state is rounded again where its
block has elements that are stepped and the window moves; its parameter is not touched. NaN and infinity
become the largest number that there is.

```python
import torch
from grokfused import GrokAdamW, decode_state

model = torch.nn.Linear(64, 64)
optimizer = GrokAdamW(model.parameters(), state_dtype="block8")
model(torch.randn(8, 64)).square().mean().backward()
optimizer.step()
numbers = decode_state(optimizer, model.weight)["exp_avg_sq"]  # float32, of the parameter's shape
```

`state_dict()` shows states of 8 bits as bfloat16, which holds them exactly, in the parameter's shape; so
checkpoints load with `weights_only=True`, on any number of processes, and into other dtypes. The dtype comes
with the checkpoint. To go on in another one, write it into the state dict before loading:
`saved["param_groups"][0]["state_dtype"] = "float32"`, or `"block8"` for one that was saved by
`torch.optim.AdamW` or in float32.

## Memory of the states

"""
FAILURES = """
## Where narrow states break

```bash
{command}
```

Recorded at commit {commit} on torch {torch}, {threads} thread(s), {date:.10}; every run is in
[which-state-dtype.json](which-state-dtype.json). One parameter of {rows} x {columns}; all optimizers are
plain AdamW with lr 0.001, betas (0.9, 0.999), no decay and no filter, and see the same normal gradients.
Figures are of the last {last} steps beside float32's, the mean of {seeds} seeds: first the root mean square
of the difference between updates, relative to that of float32's updates; then, in brackets, the mean size of
an update, relative to float32's, which shows a bias: 1.00 is none.

"""
READING = """
This is one tensor of made-up gradients: it shows what can happen, not what will. For whole trainings see
[the roundings page](rounding.md)."""


def record(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns all that the page is made of, as plain values."""
    return {**page.facts(), "runs": runs}


def memory() -> list[list[str]]:
    """Returns the table of memory, row by row: the states of AdamW, and ours with the slow gradient."""
    sizes = dict(PEER_BYTES)
    dtypes: dict[str, Any] = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "block8": "block8",
    }
    for states, what in (2, "without a filter"), (3, "with the filter"):
        for name, dtype in dtypes.items():
            sizes[f"GrokAdamW {what}, {name}"] = states_bytes(dtype, states)
    return [[name, f"{size:.4g}", f"{size:.1f} GB", f"{8 * size:.1f} GB"] for name, size in sizes.items()]


def figures(recorded: Mapping[str, Any], case: str, name: str) -> tuple[float, float] | None:
    """Returns the means over the seeds of a case's error and size; None where nothing was measured."""
    runs = [run for run in recorded["runs"] if (run["case"], run["name"]) == (case, name) and is_finite(run)]
    if not runs:
        return None
    return (statistics.mean(run["error"] for run in runs), statistics.mean(run["size"] for run in runs))


def cells(recorded: Mapping[str, Any]) -> list[list[str]]:
    """Returns the table of failure cases, row by row."""
    found = []
    for key, case in CASES.items():
        pairs = [figures(recorded, key, name) for name in NAMES[1:]]
        found.append([case.what, *(f"{pair[0]:.3f} ({pair[1]:.2f})" if pair else "-" for pair in pairs)])
    return found


def reading(recorded: Mapping[str, Any]) -> list[str]:
    """Returns what the figures say, a line an optimizer."""
    said = []
    for name in NAMES[1:]:
        found = {key: pair for key in CASES if (pair := figures(recorded, key, name))}
        if not found:
            said.append(f"- {name} was not installed.")
            continue
        worst = max(found, key=lambda key: found[key][0])
        plain, (error, size) = found["plain"][0], found[worst]
        said.append(
            f"- {name}: an error of {plain:.3f} on plain gradients; the largest, {error:.3g} with updates "
            f'{size:.2f} times the size, in "{CASES[worst].what}".'
        )
    return said


def markdown(recorded: Mapping[str, Any]) -> str:
    """Returns the page."""
    plain = figures(recorded, "plain", "block8")
    assert plain is not None, "ours needs no other package"
    seeds = len({run["seed"] for run in recorded["runs"]})
    head = FAILURES.format(**recorded, rows=SIZE[0], columns=SIZE[1], last=LAST, seeds=seeds)
    lines = [*page.markdown_table(MEMORY, memory()), head.rstrip(), ""]
    lines += page.markdown_table(("case", *NAMES[1:]), cells(recorded))
    lines += ["", *reading(recorded), *READING.split("\n")]
    return BEGINNING.format(block8=plain[0]) + "\n".join(lines) + "\n"


def table(recorded: Mapping[str, Any]) -> Table:
    """Returns the failure cases for the terminal."""
    return page.terminal_table("error of updates (their size)", ("case", *NAMES[1:]), cells(recorded))


def write(recorded: Mapping[str, Any], out: Path) -> None:
    """Writes ``which-state-dtype.md`` and ``which-state-dtype.json``."""
    page.write(out, "which-state-dtype", recorded, markdown(recorded))
