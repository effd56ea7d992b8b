"""The CUDA kernel without a GPU: the very source runs on the CPU, and compiles to the code it should."""

import ctypes
import math
import re
import subprocess
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy
import pytest
import torch.utils.cpp_extension
from grid import marked, reference

from bench import kernels
from bench.fma import Slice, compile_kernel
from grokfused import backends
from grokfused.backends.reference import Scalars, real_dtype
from grokfused.lab.agreement import Case, disagreements, run
from grokfused.lab.bench.cases import demo
from grokfused.step import engine, options

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shim(tmp_path_factory) -> ctypes.CDLL:
    """csrc/cuda/kernel.h, compiled for the CPU."""
    library = tmp_path_factory.mktemp("shim") / "cuda_shim.so"
    flags = ["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror"]
    command = ["c++", *flags, "-Wno-unknown-pragmas", "-Icsrc", "tests/cuda_shim.cpp", "-o", str(library)]
    subprocess.run(command, cwd=ROOT, check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.shim_slice_bytes.restype = ctypes.c_int64
    assert loaded.shim_slice_bytes() == ctypes.sizeof(Slice)
    return loaded


CHUNK = int(re.search(r"kSmallestChunk = (\d+)", (ROOT / "csrc/cuda/chunks.h").read_text())[1])
EDGES = [0, 1, 7, CHUNK - 1, 0, 0, CHUNK, CHUNK + 1, 3 * CHUNK, 0, 5 * CHUNK + 13, 0]


@pytest.mark.parametrize("processors", [1, 132, 100_000])
@pytest.mark.parametrize(
    ("sizes", "launches"),
    [(EDGES, 1), ([5_000_000, *EDGES], 1), (EDGES * 20, 2), ([3] * 448, 2), ([CHUNK] * 449, 3)],
    ids=["edges", "large", "many", "two full launches", "three"],
)
def test_every_element_is_covered_once(shim, sizes, launches, processors) -> None:
    visits = [numpy.zeros(size, dtype=numpy.int32) for size in sizes]
    begun = numpy.zeros(len(sizes), dtype=numpy.int32)
    pointers = (ctypes.c_void_p * len(sizes))(*(array.ctypes.data for array in visits))
    counts = (ctypes.c_int64 * len(sizes))(*sizes)
    assert (
        shim.shim_cover(counts, len(sizes), processors, pointers, begun.ctypes.data_as(ctypes.c_void_p))
        == launches
    )
    assert [set(array.tolist()) for array in visits] == [{1} if size else set() for size in sizes]
    assert set(begun.tolist()) == {1}  # and its counter is advanced by one block


def launched(shim: ctypes.CDLL, sizes: list[int], processors: int = 132) -> tuple[int, int]:
    """Returns the bytes of argument and the blocks of the first launch over tensors; 132: an H100's."""
    shim.shim_launch.restype = ctypes.c_int64
    chunks = ctypes.c_int64()
    counts = (ctypes.c_int64 * len(sizes))(*sizes)
    return shim.shim_launch(counts, len(sizes), processors, ctypes.byref(chunks)), chunks.value


def test_a_small_launch_copies_a_small_argument(shim) -> None:
    assert launched(shim, [500] * 30)[0] <= 4096 < launched(shim, [500] * 31)[0] <= 32764
    assert launched(shim, [math.prod(shape) for shape in demo()])[0] <= 4096


def test_small_models_fill_a_gpu_and_large_ones_need_few_waves(shim) -> None:
    assert launched(shim, [math.prod(shape) for shape in demo()])[1] > 2 * 132
    for size in (2**26, 2**31):
        assert 2 * 132 <= launched(shim, [size])[1] <= 16 * 132


def kernel_step_(
    shim: ctypes.CDLL,
    how: str,
    params,
    grads,
    steps,
    masks,
    states,
    scalars,
    rows,
    *,
    mask_modes,
    grad_filter,
    decay,
    state_rounding,
    param_rounding,
    seed,
    grad_scale=None,
    found_inf=None,
) -> None:
    """A backend's arguments, taken to the kernel on the CPU."""
    on_host = how == "numbers on the host"  # the step counters are then not the kernel's matter
    slices = (Slice * len(params))()
    for t in range(len(params)):
        slices[t].param, slices[t].grad = params[t].data_ptr(), grads[t].data_ptr()
        for place, array in enumerate(states.values()):
            slices[t].states[place] = array[t].data_ptr()
        slices[t].step = None if on_host else steps[t].data_ptr()
        slices[t].size = params[t].numel()
        if masks[t] is not None:
            slices[t].mask, slices[t].mask_mode = masks[t].data_ptr(), mask_modes[t]
    numbers = [scalars, grad_scale, found_inf]
    window = states.get("grad_window", states["exp_avg"])
    dtypes = [str(array[0].dtype).removeprefix("torch.") for array in (params, states["exp_avg"], window)]
    wrong = shim.shim_step(
        slices,
        len(params),
        (ctypes.c_int64 * len(rows))(*rows),
        *(ctypes.c_void_p(number if number is None else number.data_ptr()) for number in numbers),
        ctypes.c_uint32(seed),
        *(word.encode() for word in (*dtypes, state_rounding, param_rounding, grad_filter, decay)),
        int("max_exp_avg_sq" in states),
        len(window[0]) if "grad_window" in states else 0,
        1,  # processor: few blocks, of several packs a thread
        int(how == "numbers on the host"),  # a small table, where all fits there
        int(not on_host),
    )
    assert not wrong
    for step, row in zip(steps if on_host else (), rows, strict=False):
        step.fill_(scalars[row, Scalars._fields.index("step")])


@pytest.fixture
def truth(case: Case) -> dict[str, torch.Tensor]:
    """Returns what the reference makes of the test's case, its steps numbered by the host."""
    return reference(case)


@pytest.fixture(params=["numbers on the host", "numbers on the device"])
def kernel_is_a_backend(request, shim, truth, monkeypatch) -> None:
    """Lets ``backend="kernel"`` run the kernel, after the reference has run as it always does."""
    module = types.ModuleType("kernel_on_the_cpu")
    module.why_not = lambda kind: None if kind.dense else "gaps"
    module.adamw_step_ = lambda *arrays, **others: kernel_step_(shim, request.param, *arrays, **others)
    monkeypatch.setitem(sys.modules, "kernel_on_the_cpu", module)
    monkeypatch.setitem(backends.BACKENDS, "kernel", "kernel_on_the_cpu")
    monkeypatch.setitem(options.CHOICES, "backend", (*backends.NAMES, "kernel"))
    if request.param != "numbers on the host":
        monkeypatch.setattr(engine, "NUMBERING_DEVICES", ("cpu",))
    backends.choose.cache_clear()
    yield
    backends.choose.cache_clear()


@pytest.mark.usefixtures("kernel_is_a_backend")
@pytest.mark.parametrize("case", marked())
def test_the_kernel_equals_the_reference_bit_for_bit(case: Case, truth) -> None:
    if real_dtype(case.param_dtype) is torch.float64:  # numbered alike: see grokfused.lab.agreement.compare
        truth = run("reference", case)
    assert disagreements(run("kernel", case), truth) == {}


# --- compiled for GPUs -----------------------------------------------------------------------------------


def tool(name: str) -> str:
    """Returns where a program of the CUDA toolkit is, or skips and says how to get it."""
    found = kernels.tool(name)
    if found is None:
        pytest.skip(f"{name} is missing: install the CUDA toolkit, or pip install -r requirements-nvcc.txt")
    return found


class Compiled(NamedTuple):
    """What nvcc made of the kernels for one architecture."""

    messages: str  # of ptxas
    ptx: str
    cubins: list[Path]  # one per format of parameters


def policies(room: str) -> dict[str, int]:
    """Returns a room's structs for each of which kernels are compiled apart, and how many rows they have."""
    header = (ROOT / "csrc" / "step" / f"{room}.h").read_text()
    found = re.findall(r"struct (\w+) \{\n  static .* kName = .*;\n  using States = StateRows<(.*)>;", header)
    return {name: len(rows.split(",")) if rows else 0 for name, rows in found}


STORAGE = (ROOT / "csrc" / "step" / "storage.h").read_text()
PARAM_FORMATS = re.findall(r"struct (\w+) \{\n  static constexpr Format", STORAGE)
# Of parameters and states: float64 stands beside float64 alone; beside states in 8 bits the two of 16 bits
# are one, and the kernel asks which it is.
FORMATS = [
    (param, state)
    for param in PARAM_FORMATS
    for state in re.findall(r"use\((\w+)\{\}\)", STORAGE[STORAGE.index("void with_state_format") :])
    if (param == "Float64") == (state == "Float64")
] + [("Float32", "In8BitBlocks"), ("In16Bits", "In8BitBlocks")]
FILTERS = policies("grad_filter")
# With a small and with a large table.
KERNELS = 2 * len(FORMATS) * len(FILTERS)
SOURCES = ("adamw_cuda", "block8", *map(str.lower, PARAM_FORMATS))


ARCHITECTURES = [pytest.param(name, marks=pytest.mark.slow) for name in ("sm_80", "sm_90", "sm_100")]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def compiled(request, tmp_path_factory) -> Compiled:
    """The launcher with all its kernels, compiled against a torch that need not know CUDA."""
    folder = tmp_path_factory.mktemp(request.param)
    compile_ = partial(kernels.compiled_by_nvcc, tool("nvcc"), request.param, folder)
    compile_("rows")  # no kernel of a step: its powers are CUDA's own
    with ThreadPoolExecutor() as pool:
        messages = "".join(pool.map(compile_, SOURCES))
    ptx = "".join((folder / f"{name}.ptx").read_text() for name in SOURCES)
    return Compiled(messages, ptx, [folder / f"{name}.cubin" for name in SOURCES[1:]])


def test_every_kernel_compiles_without_spills_for_two_blocks_a_multiprocessor(compiled: Compiled) -> None:
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", compiled.messages)
    assert spills == [("0", "0")] * KERNELS
    registers = [int(count) for count in re.findall(r"Used (\d+) registers", compiled.messages)]
    assert len(registers) == KERNELS
    assert max(registers) <= 128  # of 65,536, for two blocks of 256 threads


def test_no_operation_is_fused_approximate_or_flushed(compiled: Compiled) -> None:
    instructions = set(re.findall(r"^\s+(?:@!?%p\d+ )?([a-z]+[.][a-z0-9._]+)", compiled.ptx, re.MULTILINE))
    assert {"div.rn.f32", "sqrt.rn.f32", "div.rn.f64", "sqrt.rn.f64"} <= instructions
    assert {name for name in instructions if re.search(r"fma|mad.*f(32|64)|approx|ftz", name)} == set()


def test_the_bench_compares_with_a_kernel_of_fused_operations(tmp_path) -> None:
    fused, unfused = (
        compile_kernel(tool("nvcc"), fused, "sm_90", tmp_path / f"{fused}.ptx", "-ptx").read_text()
        for fused in (True, False)
    )
    assert ("fma.rn.f32" in fused, "fma.rn.f32" in unfused) == (True, False)


# Bytes that a thread moves of an array at once: 16, or those of as many elements of 16 bits as of 32. Beside
# states in 8 bits half of that.
ACCESS = {"Float64": 16, "Float32": 16, "BFloat16": 8, "Float16": 8}
BESIDE_BLOCKS = {"Float32": 8, "In16Bits": 4}


def formats(kernel: str) -> tuple[str, str]:
    """Returns the formats of parameters and states in a kernel's mangled name."""
    param, state = re.search(r"StoredStepINS_\d+(\w+?)E(?:NS_\d+(\w+?)E|S\d*_)", kernel).groups()
    return param, state or param


def test_the_body_moves_a_pack_at_a_time(compiled: Compiled) -> None:
    found: dict[str, str] = {}
    for cubin in compiled.cubins:
        found |= kernels.disassembled(tool("nvdisasm"), cubin)
    assert len(found) == KERNELS
    for name, code in found.items():
        assert not re.findall(r"\b(?:LDL|STL|LD|ST)\.", code), f"local or generic memory in {name}"
        if "In8BitBlocks" in formats(name):
            continue
        param, state = (ACCESS[of] for of in formats(name))
        # The param, its rest (read where it is asked for) and grad; the moments, AMSGrad's (where it is asked
        # for), and what filters add. A window is of 16 bits or of real numbers, as its sum is.
        (of_filter,) = (rows for kind, rows in FILTERS.items() if f"{len(kind)}{kind}E" in name)
        rest, is_mean = param == 8, "4MeanE" in name
        moved = {"LDG": {8: 0, 16: 0}, "STG": {8: 0, 16: 0}}
        for access, arrays in {"LDG": 2 + rest, "STG": 1 + rest}.items():
            moved[access][param] += arrays
            moved[access][state] += 3 + (0 if is_mean else of_filter)
            if is_mean:
                moved[access][16] += 2
                moved[access][8] += formats(name)[0] != "Float64"
            for width, count in moved[access].items():
                assert kernels.wide(code, access, width) >= count, name


def test_threads_move_whole_sectors_of_a_block_of_states_in_8_bits(compiled: Compiled) -> None:
    found = kernels.disassembled(tool("nvdisasm"), compiled.cubins[0])
    assert len(found) == 2 * len(BESIDE_BLOCKS) * len(FILTERS)
    for name, code in found.items():
        param = BESIDE_BLOCKS[formats(name)[0]]
        (of_filter,) = (rows for kind, rows in FILTERS.items() if f"{len(kind)}{kind}E" in name)
        rest, is_mean = param == 4, "4MeanE" in name
        # Of each quarter of a block what lies element by element; and the words of the states, two at once.
        moved = {"LDG": {4: 0, 8: 0}, "STG": {4: 0, 8: 0}}
        for access, arrays in {"LDG": 2 + rest, "STG": 1 + rest}.items():
            moved[access][param] += 4 * arrays
            moved[access][8] += 3 + (8 if is_mean else of_filter)  # the sum, a window of float32
            moved[access][4] += 4 * is_mean  # one of bfloat16
            if access == "LDG" and compiled.cubins[0].parent.name.startswith("sm_100") and not is_mean:
                continue  # nvcc 13.0 reads pairs one by one for this architecture, for no other
            for width, count in moved[access].items():
                assert kernels.wide(code, access, width) >= count, name
