"""What a step and an import cost: bytes of state, allocations, time."""

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


# Each import in a process of its own, forked where torch is there already: importing that takes seconds.
MEASURE = """
import gc, os, sys, time, torch
gc.freeze()  # a collection in a forked process copies what torch has made, page by page
# The first import compiles the modules, which Python keeps, as it does of an installed package.
sys.pycache_prefix, sys.dont_write_bytecode = sys.argv[1], False
for _ in range(5):
    process = os.fork()
    if process:
        assert os.waitpid(process, 0)[1] == 0
        continue
    before = time.process_time()
    import grokfused
    seconds = time.process_time() - before
    print(seconds, *sorted({"triton", "grokfused._C"} & set(sys.modules)), flush=True)
    os._exit(0)
"""


def test_importing_adds_less_than_50_ms_and_loads_no_backend(tmp_path) -> None:
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    seconds = [float(line) for line in shown.splitlines()]  # a name beside it would be that of a backend
    assert len(seconds) == 5
    # Of the process, not of the clock: others may keep the machine busy. The least is what the import takes.
    assert min(seconds) < 0.05
