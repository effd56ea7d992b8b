"""Run with TRITON_INTERPRET=1: prints, as JSON, what in the agreement grid differs from the reference.

Of the grid the argument "whole" takes all that it has time for, and any other, or none, the fewest cases.

A process of its own, because Triton decides at import whether it compiles or interprets.
"""

import json
import sys
import warnings
from itertools import product

import torch
from grid import FEWEST_THERE, IN_THE_INTERPRETER
from stepping import OPTIONS, values

from grokfused import GrokAdamW
from grokfused.lab.agreement import cases_of, differing_bits, disagreements, run

SPECIAL = [0.0, -0.0, 1e-45, 1.1754944e-38, 2.98e-08, 6.1e-05, 65504.0, 65520.0, 3.3895314e38, 1.00390625]
SPECIAL += [float("inf"), float("-inf"), float("nan")]


def special_values(
    backend: str, dtype: torch.dtype, rounding: str, param_rounding: str
) -> dict[str, torch.Tensor]:
    """Returns parameters and states after three steps on every pair of special values."""
    grid = torch.tensor(SPECIAL)
    start, grads = torch.cartesian_prod(grid, grid).to(dtype).unbind(1)
    param = start.clone().requires_grad_()
    state = {"state_dtype": "block8"} if rounding == "block8" else {"state_dtype": torch.bfloat16}
    rest = {"amsgrad": True, "seed": 3, "param_rounding": param_rounding, **state}
    rest["state_rounding"] = "stochastic" if rounding == "block8" else rounding
    optimizer = GrokAdamW([param], **OPTIONS, **rest, backend=backend)
    for factor in (1.0, -0.5, 3.0):
        param.grad = (grads.float() * factor).to(dtype)  # elsewhere each time: with another table
        optimizer.step()
    return values(optimizer)


def main() -> None:
    """Prints the number of cases and those that differ."""
    warnings.filterwarnings("ignore", "overflow encountered")  # numpy's, for unsigned scalars that wrap
    whole = sys.argv[1:] == ["whole"]
    takes = set(cases_of("triton", "cpu"))
    grid = [case for case in (IN_THE_INTERPRETER if whole else FEWEST_THERE) if case in takes]
    wrong = {}
    for case in grid:
        # Three steps: the first, another, and one that overflows under a loss scale.
        differing = disagreements(run("triton", case, steps=3), run("reference", case, steps=3))
        if differing:
            wrong[str(case)] = differing
    dtypes, roundings = (torch.float32, torch.bfloat16, torch.float16), ("nearest", "stochastic", "kahan")
    states = ("nearest", "stochastic", "block8")
    few = [*zip(dtypes, states, roundings, strict=True), (torch.float32, "block8", "nearest")]
    for options in {*product(dtypes, states[:2], roundings), *few} if whole else few:
        truth, found = (special_values(backend, *options) for backend in ("reference", "triton"))
        counts = {name: n for name in truth if (n := differing_bits(found[name], truth[name]))}
        if counts:
            wrong[f"special {options}"] = counts
    print(json.dumps({"cases": len(grid), "wrong": wrong}))


if __name__ == "__main__":
    main()
