"""The pytest-benchmark suite: every implementation on every case, ``make bench``.

Groups are cases, so that pytest-benchmark's own tools compare implementations (``--benchmark-compare``,
``--benchmark-histogram``); ``-k demo`` measures one case. It does not interleave: where a difference is
small, ``grokfused bench`` decides.
"""

from __future__ import annotations

import math

import pytest
import torch

from grokfused.lab.bench.cases import CASES, elements
from grokfused.lab.bench.implementations import Place
from grokfused.lab.bench.peers import ALL
from grokfused.lab.bench.rows import ready, reason

SECONDS, MOST_ROUNDS = 0.5, 201  # of one benchmark
DTYPES = (torch.float32, torch.bfloat16)

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' own


@pytest.mark.parametrize("implementation", ALL.values(), ids=ALL)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES)
def test_step(case, dtype, implementation, benchmark) -> None:
    benchmark.group = f"{case}, {str(dtype).removeprefix('torch.')}"
    try:
        contender = ready(implementation, CASES[case], Place(dtype=dtype))
    except Exception as error:  # what a peer raises is its row
        pytest.skip(f"{implementation.name}: {reason(error)}")
    count = elements(CASES[case])
    moved = contender.bytes_per_element
    benchmark.extra_info.update(elements=count, bytes_per_element=moved, bytes=count * moved)
    rounds = max(5, min(MOST_ROUNDS, math.ceil(SECONDS / contender.seconds)))
    benchmark.pedantic(contender.step, setup=contender.reset, rounds=rounds, warmup_rounds=2)
