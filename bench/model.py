"""The memory model as tables: what a step moves, what that costs at a size, and how measured time agrees.

Nothing here is typed but the bandwidths of devices: bytes are asked of ``grokfused.lab.bench.traffic``, times
of recorded runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch

from grokfused.lab.bench import show
from grokfused.lab.bench.implementations import IMPLEMENTATIONS, OURS
from grokfused.lab.bench.traffic import Traffic, traffic

BF16 = torch.bfloat16
NARROW: dict[str, Any] = {"state_dtype": BF16}
IN_8_BITS: dict[str, Any] = {"state_dtype": "block8"}
MEAN: dict[str, Any] = {"grad_filter": "mean", "window_size": 100}


class Variant(NamedTuple):
    """Options of GrokAdamW and the dtype of its parameters."""

    options: dict[str, Any]
    dtype: torch.dtype = torch.float32

    @property
    def traffic(self) -> Traffic:
        """What a step moves per element."""
        return traffic(self.options, self.dtype)

    @property
    def held(self) -> float:
        """Bytes per element that lie in memory: parameter, gradient and states, all values of a window."""
        others = self.options.get("window_size", 1) - 1  # than the one that is written
        of_one = self.options.get("window_dtype", torch.float32).itemsize
        return self.traffic.written + self.dtype.itemsize + others * of_one


VARIANTS = {
    "float32": Variant({}),
    "float32, no filter (AdamW)": Variant({"grad_filter": "none"}),
    "float32, mean of 100": Variant(MEAN),
    "float32, mean of 100, bfloat16 window": Variant({**MEAN, "window_dtype": BF16}),
    "float32, amsgrad": Variant({"amsgrad": True}),
    "float32, max_grad_norm": Variant({"max_grad_norm": 1.0}),
    "float32, bfloat16 states": Variant(NARROW),
    "bfloat16": Variant({}, BF16),
    "bfloat16, bfloat16 states": Variant(NARROW, BF16),
    "bfloat16, bfloat16 states, kahan": Variant({**NARROW, "param_rounding": "kahan"}, BF16),
    "float32, 8-bit states": Variant(IN_8_BITS),
    "bfloat16, 8-bit states": Variant(IN_8_BITS, BF16),
}
# Peak memory bandwidth that the vendors state, in bytes per second, and memory in bytes.
DEVICES = {
    "NVIDIA A100 SXM 80 GB": (2.039e12, 80e9),
    "NVIDIA H100 SXM 80 GB": (3.35e12, 80e9),
    "NVIDIA H200 141 GB": (4.8e12, 141e9),
    "NVIDIA B200 180 GB": (8.0e12, 180e9),
    "AMD MI300X 192 GB": (5.3e12, 192e9),
    "2 x EPYC 9654, 24 x DDR5-4800": (9.216e11, 1.5e12),
}


def markdown(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    """Returns a table whose first column is text."""
    ruler = ["---", *["---:"] * (len(header) - 1)]
    rows = [header, ruler, *lines]
    return "".join(f"| {' | '.join(map(str, row))} |\n" for row in rows)


def bytes_table() -> str:
    """Returns what each variant reads, writes and holds per element."""
    header = ["parameters and options", "reads", "writes", "moves", "holds", "of which states"]
    lines = []
    for name, variant in VARIANTS.items():
        moved = variant.traffic
        states = variant.held - 2 * variant.dtype.itemsize
        lines.append(
            [name, *(f"{n:g}" for n in (moved.read, moved.written, moved.total, variant.held, states))]
        )
    return markdown(header, lines)


def cost_table(parameters: float, variants: Sequence[str]) -> str:
    """Returns the least milliseconds of a step at a size, on as few devices as hold what a step needs."""
    header = ["device", *(f"{name}: devices, ms" for name in variants)]
    lines = []
    for device, (bandwidth, memory) in DEVICES.items():
        cells = []
        for variant in (VARIANTS[name] for name in variants):
            count = -int(-parameters * variant.held // memory)
            cells.append(f"{count}, {parameters * variant.traffic.total / bandwidth / count * 1e3:.3g}")
        lines.append([device, *cells])
    return markdown(header, lines)


def check_table(rows: Sequence[dict[str, Any]]) -> str:
    """Returns, of ours in a recorded run, the time against GrokAdamW's: by the bytes, and measured."""
    base = next(row for row in rows if row["implementation"] == OURS)
    header = ["implementation", "bytes", "x by bytes", "x measured (quartiles)", "of limit"]
    lines = []
    for row in rows:
        if row["implementation"] not in IMPLEMENTATIONS or "times_longer_than" not in row:
            continue
        found = row["times_longer_than"][OURS]
        moved, share = row["bytes_per_element"], show.share_of(row)
        lines.append(
            [
                row["implementation"],
                f"{moved:g}",
                f"{moved / base['bytes_per_element']:.2f}",
                f"{found['median']:.2f} ({found['low']:.2f}-{found['high']:.2f})",
                f"{share['median']:.2f}" if share else "-",
            ]
        )
    return markdown(header, lines)


COMMON = ("float32", "bfloat16, bfloat16 states", "bfloat16, 8-bit states")
TABLES = {
    "bytes": bytes_table,
    "1B": lambda: cost_table(1e9, COMMON),
    "70B": lambda: cost_table(70e9, COMMON),
}
