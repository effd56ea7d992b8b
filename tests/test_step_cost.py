"""What a step and an import cost: bytes of state, allocations, modules."""

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from stepping import OPTIONS, new_param, train

from grokfused import GrokAdamW


@pytest.mark.parametrize(("state_dtype", "bytes_each"), [(torch.float32, 12), (torch.bfloat16, 6)], ids=str)
def test_states_take_exactly_three_numbers_per_parameter(state_dtype, bytes_each) -> None:
    params = [new_param(31, 33), new_param(4097)]
    optimizer = GrokAdamW(params, state_dtype=state_dtype, **OPTIONS)
    train(optimizer, 2)
    arrays, steps = 0, set()
    for state in optimizer.state.values():
        for name, tensor in state.items():
            storage = tensor.untyped_storage()
            if name == "step":
                steps.add((storage.data_ptr(), storage.nbytes()))
            else:
                arrays += storage.nbytes()
    assert arrays == bytes_each * sum(param.numel() for param in params)
    assert sum(size for _, size in steps) == 4 * len(params)


def bytes_allocated(step: Callable[[], object], trace: str) -> int:
    """Counts the bytes that torch's CPU allocator hands out meanwhile, whether kept or given back."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profile:
        step()
    profile.export_chrome_trace(trace)
    with open(trace) as file:
        events = json.load(file)["traceEvents"]
    sizes = [event["args"]["Bytes"] for event in events if event["name"] == "[memory]"]
    return sum(size for size in sizes if size > 0)


def test_a_step_allocates_nothing_that_grows_with_the_model(tmp_path) -> None:
    def allocated(size: int, backend: str) -> int:
        optimizer = GrokAdamW([new_param(size), new_param(size + 1)], backend=backend, **OPTIONS)
        train(optimizer, 2)
        return bytes_allocated(optimizer.step, str(tmp_path / f"{size}.json"))

    assert allocated(100_000, "native") == allocated(10, "native") < 1024
    # The counter counts: the reference, written to be read, does allocate.
    assert allocated(100_000, "reference") > 4 * 100_000


IMPORTED = """
import json, sys, torch
before = set(sys.modules)
import grokfused
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_an_import_adds_nothing_but_its_own_python_modules() -> None:
    # What it takes is measured, not tested: bench/test_import.py.
    shown = subprocess.run(
        [sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True
    ).stdout
    added = json.loads(shown)
    assert "grokfused.step.engine" in added
    assert [name for name in added if name.split(".")[0] != "grokfused"] == []
    late = (
        "grokfused._C",
        "grokfused.triton_kernels",
        "grokfused.lab",
        "grokfused.compat",
        "grokfused.pruning",
    )
    assert [name for name in added if name.startswith(late)] == []
