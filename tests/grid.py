"""The agreement grid for several test files: its quick part, which `make test` covers, and what is true."""

from collections.abc import Iterator
from functools import cache
from itertools import combinations
from typing import Any

import pytest
from torch import Tensor

from grokfused.lab.agreement import Case, cases, run


def options(case: Case, together: int) -> set[Any]:
    """Returns the options of a case with their values, all of so many of them."""
    return set(combinations(zip(Case._fields, case, strict=True), together))


def covering(grid: list[Case], together: int) -> Iterator[Case]:
    """Yields few cases that hold any so many values of options that stand together in one of the grid."""
    left = set().union(*(options(case, together) for case in grid))
    while left:
        case = max(grid, key=lambda case: len(left & options(case, together)))
        left -= options(case, together)
        yield case


GRID = list(cases())
QUICK = list(covering(GRID, together=2))
FEWEST = list(covering(GRID, together=1))
# Of states of 8 bits few: a case takes Triton's interpreter 18 seconds.
FEW_OF_8_BITS = list(covering([case for case in GRID if case.state_dtype == "block8"], together=1))
FEWEST_THERE = [case for case in FEWEST if case.state_dtype != "block8"]
IN_THE_INTERPRETER = [case for case in GRID if case.state_dtype != "block8" or case in FEW_OF_8_BITS]


def marked() -> list[Any]:
    """Returns the grid as parameters of a test: `make test` takes the quick part, `make test-all` all."""
    return [
        pytest.param(case, id=str(case), marks=() if case in QUICK else pytest.mark.slow) for case in GRID
    ]


@cache
def reference(case: Case) -> dict[str, Tensor]:
    return run("reference", case)
