"""The pytest-benchmark suite, ``make bench``: whom the sets of ``grokfused bench`` compare, case by case.

Groups are cases, so that pytest-benchmark's own tools compare implementations (``--benchmark-compare``,
``--benchmark-histogram``); ``-k demo`` measures one case. It does not interleave: where a difference is
small, or another combination of case and implementation is asked for, ``grokfused bench`` decides.
"""

from __future__ import annotations

import math

import pytest
import torch

from grokfused.lab.bench.cases import CASES, elements
from grokfused.lab.bench.implementations import Place
from grokfused.lab.bench.peers import ALL
from grokfused.lab.bench.rows import ready, reason
from grokfused.lab.bench.sets import SETS

SECONDS, MOST_ROUNDS = 0.5, 201  # of one benchmark
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
PAIRS = sorted(
    {
        (case, name)
        for bench in SETS.values()
        for case in bench.cases
        if case in CASES  # those of a curve differ in one number: a figure shows them
        for name in bench.implementations
    },
    key=lambda pair: (list(CASES).index(pair[0]), list(ALL).index(pair[1])),
)

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' own


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("case", "name"), PAIRS)
def test_step(case, name, dtype, benchmark) -> None:
    benchmark.group = f"{case}, {dtype}"
    try:
        contender = ready(ALL[name], CASES[case], Place(dtype=DTYPES[dtype]))
    except Exception as error:  # what a peer raises is its row
        pytest.skip(f"{name}: {reason(error)}")
    count = elements(CASES[case])
    moved = contender.bytes_per_element
    benchmark.extra_info.update(elements=count, bytes_per_element=moved, bytes=count * moved)
    rounds = max(5, min(MOST_ROUNDS, math.ceil(SECONDS / contender.seconds)))
    benchmark.pedantic(contender.step, setup=contender.reset, rounds=rounds, warmup_rounds=1)
