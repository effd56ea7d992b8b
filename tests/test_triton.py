"""The Triton mirror without a GPU: interpreted it equals the reference, compiled it is what it should be."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from grid import FEWEST_THERE, IN_THE_INTERPRETER
from test_cuda_kernel import tool

from grokfused import BackendUnavailable, GrokAdamW, backends

triton = pytest.importorskip("triton")
from bench import kernels  # noqa: E402
from grokfused.triton_kernels import launcher  # noqa: E402

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("part", ["fewest", pytest.param("whole", marks=pytest.mark.slow)])
def test_the_interpreted_kernel_equals_the_reference_bit_for_bit(part) -> None:
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    shown = subprocess.run(
        [sys.executable, "tests/triton_in_the_interpreter.py", part],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    wide = (torch.float64, torch.complex128)  # refused by name
    grid = [
        case
        for case in {"fewest": FEWEST_THERE, "whole": IN_THE_INTERPRETER}[part]
        if case.param_dtype not in wide
    ]
    assert json.loads(shown.stdout.splitlines()[-1]) == {"cases": len(grid), "wrong": {}}


def test_a_cpu_tensor_is_refused_by_name_and_auto_moves_on() -> None:
    param = torch.ones(3, requires_grad=True)
    param.grad = torch.ones(3)
    with pytest.raises(BackendUnavailable, match="TRITON_INTERPRET=1"):
        GrokAdamW([param], backend="triton").step()
    assert torch.equal(param, torch.ones(3))
    assert backends.choose("auto", backends.Kind("cpu", torch.float32, True)) == "native"


def test_an_unknown_filter_is_refused() -> None:
    tensors = [torch.ones(3)]
    with pytest.raises(ValueError, match=r"grad_filter must be one of .*'ema'.*, got 'median'"):
        launcher.adamw_step_(
            *(tensors, tensors, tensors, [None], {"exp_avg": tensors, "exp_avg_sq": tensors}),
            torch.ones(1, 13),
            [0],
            mask_modes=[0],
            grad_filter="median",
            decay="coupled",
            state_rounding="nearest",
            param_rounding="nearest",
            seed=0,
        )


SLOW = [pytest.param(capability, marks=pytest.mark.slow) for capability in (80, 100)]


# Of states of 8 bits `make test` compiles the smallest kernel alone: ptxas takes up to a minute for one.
COMPILED = [
    pytest.param(
        policies,
        masked,
        id=f"{policies}-{'masked' if masked else 'dense'}",
        marks=pytest.mark.slow if "block8" in policies and (masked or policies != "float32, block8") else (),
    )
    for policies in kernels.TRITON
    for masked in (False, True)
]


@pytest.mark.parametrize("capability", [90, *SLOW], ids="sm_{}".format)
@pytest.mark.parametrize(("policies", "masked"), COMPILED)
def test_the_kernel_compiles_to_wide_accesses_and_single_roundings(
    policies, masked, capability, tmp_path
) -> None:
    policies = kernels.triton_policies(policies)
    compiled = kernels.compiled_by_triton(policies, masked, capability)
    instructions = set(
        re.findall(r"^\s+(?:@!?%p\d+ )?([a-z]+[.][a-z0-9._]+)", compiled.asm["ptx"], re.MULTILINE)
    )
    assert {"div.rn.f32", "sqrt.rn.f32"} <= instructions
    assert {name for name in instructions if re.search(r"fma|mad.*f32|approx|ftz", name)} == set()
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    (code,) = kernels.disassembled(tool("nvdisasm"), cubin).values()
    # Bytes that a thread moves of an array at once: four elements; of states in 8 bits two words, and beside
    # them two elements of each quarter of a block.
    in_blocks = policies["STATE"] == launcher.STORAGE[torch.uint8]
    pack, quarters = (2, 4) if in_blocks else (4, 1)
    param, state, window, real = (
        pack * (4 if of == launcher.STORAGE[torch.float32] else 2)
        for of in (
            *(policies[name] for name in ("PARAM", "STATE", "WINDOW")),
            launcher.STORAGE[torch.float32],
        )
    )
    is_mean = policies["FILTER"] == launcher.FILTERS["mean"]
    has_rest = policies["PARAM_ROUNDING"] == launcher.PARAM_ROUNDING["kahan"]
    moved = {"LDG": {4: 0, 8: 0, 16: 0}, "STG": {4: 0, 8: 0, 16: 0}}
    for access, arrays in {"LDG": 2 + has_rest, "STG": 1 + has_rest}.items():
        moved[access][param] += quarters * arrays
        moved[access][8 if in_blocks else state] += 2 + policies["AMSGRAD"] + (not is_mean)
        if is_mean:  # and the sum, of float32
            moved[access][window] += quarters
            moved[access][real] += quarters
        for width, count in moved[access].items():
            assert kernels.wide(code, access, width) >= count
    assert not re.findall(r"\b(?:LDL|STL)\b", code), "registers are spilled to local memory"
