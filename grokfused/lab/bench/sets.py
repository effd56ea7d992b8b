"""Chosen sets: which implementations are measured on which cases, to answer which question."""

from __future__ import annotations

from typing import NamedTuple

from grokfused.lab.bench.cases import CASES, PARAMETERS, TENSORS, Shapes
from grokfused.lab.bench.implementations import (
    CLIP_FIRST,
    CLIP_FUSED,
    CLIPPING,
    COPY,
    EIGHT_BITS,
    FOREACH_EMA,
    FUSED,
    MASKED_FUSED,
    NARROW,
    NARROWEST,
    OURS,
    PYTHON_EMA,
)
from grokfused.lab.bench.peers import ALL, AO, BNB
from grokfused.lab.bench.windows import WINDOWED


class BenchSet(NamedTuple):
    """A question, and what answers it; ``implementations`` are names in ``peers.ALL``."""

    question: str
    cases: dict[str, Shapes]
    implementations: list[str]


def _cases(*names: str) -> dict[str, Shapes]:
    return {name: CASES[name] for name in names}


MASKED = [name for name, each in ALL.items() if name.endswith(" kept")]
FEW = [OURS, NARROW, FUSED, FOREACH_EMA, COPY]
SETS: dict[str, BenchSet] = {
    "steps": BenchSet(
        "what a step costs beside torch's AdamW, alone and after Grokfast",
        _cases("gpt-30m", "demo", "1000 x 1024"),
        [OURS, NARROW, f"{NARROW}, nearest", NARROWEST, FUSED, FOREACH_EMA, PYTHON_EMA, COPY],
    ),
    "masks": BenchSet(
        "what masks cost and save, over density",
        _cases("gpt-30m"),
        [OURS, *MASKED, MASKED_FUSED, FUSED, COPY],
    ),
    "clipping": BenchSet(
        "what it costs to limit the gradients' norm, in the step's pass and before it",
        _cases("gpt-30m", "demo"),
        [OURS, CLIPPING, CLIP_FIRST, FUSED, CLIP_FUSED, COPY],
    ),
    "8-bit": BenchSet(
        "what states of 8 bits cost",
        _cases("gpt-30m"),
        [OURS, NARROW, EIGHT_BITS, FUSED, BNB, AO, COPY],
    ),
    "windows": BenchSet(
        "what the mean of a window of gradients costs, over the window's size",
        _cases("gpt-30m", "4 x 1 M", "one of 1 M"),
        [OURS, *WINDOWED, COPY],
    ),
    "peers": BenchSet(
        "who else there is, doing the same work",
        _cases("gpt-30m", "demo"),
        [name for name in ALL if name not in (*MASKED, *WINDOWED)],
    ),
    "models": BenchSet(
        "models and other benches' cases",
        _cases(
            "gpt-2 small", "resnet-50", "32 x 2048 x 2048", "one of 64 M", "10 x 1 M", "5000 x 1000", "demo"
        ),
        FEW,
    ),
    "parameters": BenchSet("time against parameters, in one tensor", PARAMETERS, FEW),
    "tensors": BenchSet("time against the number of tensors that 2^20 parameters are in", TENSORS, FEW),
}
