"""The CUDA kernel without a GPU: the very source runs on the CPU, and compiles to the code it should."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy
import pytest
import torch.utils.cpp_extension
from grid import marked, reference

from bench.fma import Slice, compile_kernel
from grokfused import backends
from grokfused.backends.reference import Scalars, real_dtype
from grokfused.lab.agreement import Case, disagreements, run
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
    loaded.shim_chunk_size.restype = ctypes.c_int64
    loaded.shim_slice_bytes.restype = ctypes.c_int64
    assert loaded.shim_slice_bytes() == ctypes.sizeof(Slice)
    return loaded


def test_every_element_is_covered_once(shim) -> None:
    chunk = shim.shim_chunk_size()
    sizes = [0, 1, 7, chunk - 1, 0, 0, chunk, chunk + 1, 3 * chunk, 0, 5 * chunk + 13, 0]
    visits = [numpy.zeros(size, dtype=numpy.int32) for size in sizes]
    pointers = (ctypes.c_void_p * len(sizes))(*(array.ctypes.data for array in visits))
    shim.shim_cover((ctypes.c_int64 * len(sizes))(*sizes), len(sizes), pointers)
    assert [set(array.tolist()) for array in visits] == [{1} if size else set() for size in sizes]


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
    dtypes = [str(array[0].dtype).removeprefix("torch.") for array in (params, states["exp_avg"])]
    wrong = shim.shim_step(
        slices,
        len(params),
        (ctypes.c_int64 * len(rows))(*rows),
        *(ctypes.c_void_p(number if number is None else number.data_ptr()) for number in numbers),
        ctypes.c_uint32(seed),
        *(word.encode() for word in (*dtypes, state_rounding, param_rounding, grad_filter, decay)),
        int("max_exp_avg_sq" in states),
        int(how != "table in device memory"),
        int(not on_host),
    )
    assert not wrong
    for step, row in zip(steps if on_host else (), rows, strict=False):
        step.fill_(scalars[row, Scalars._fields.index("step")])


@pytest.fixture
def truth(case: Case) -> dict[str, torch.Tensor]:
    """Returns what the reference makes of the test's case, its steps numbered by the host."""
    return reference(case)


@pytest.fixture(params=["numbers on the host", "numbers on the device", "table in device memory"])
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
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    homes += [str(Path(sysconfig.get_path("purelib"), "nvidia", version)) for version in ("cu13", "cu12")]
    found = shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *(f"{home}/bin" for home in homes)]))
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
    found = re.findall(r"struct (\w+) \{\n  using States = StateRows<(.*)>;", header)
    return {name: len(rows.split(",")) if rows else 0 for name, rows in found}


STORAGE = (ROOT / "csrc" / "step" / "storage.h").read_text()
PARAM_FORMATS = re.findall(r"struct (\w+) \{\n  static constexpr Format", STORAGE)
# Of parameters and states: float64 stands beside float64 alone.
FORMATS = [
    (param, state)
    for param in PARAM_FORMATS
    for state in re.findall(r"use\((\w+)\{\}\)", STORAGE[STORAGE.index("void with_state_format") :])
    if (param == "Float64") == (state == "Float64")
]
ROWS = {**policies("grad_filter"), **policies("adamw")}
# With the table as the kernel's argument and in device memory.
KERNELS = 2 * len(FORMATS) * len(policies("grad_filter")) * len(policies("adamw"))
SOURCES = ("adamw_cuda", *map(str.lower, PARAM_FORMATS))


OTHERS = [pytest.param(name, marks=pytest.mark.slow) for name in ("sm_80", "sm_100")]


@pytest.fixture(scope="module", params=["sm_90", *OTHERS])
def compiled(request, tmp_path_factory) -> Compiled:
    """The launcher with all its kernels, compiled against a torch that need not know CUDA."""
    folder = tmp_path_factory.mktemp(request.param)
    headers = [word for path in torch.utils.cpp_extension.include_paths() for word in ("-isystem", path)]
    command = [tool("nvcc"), "-std=c++17", "-O3", "--fmad=false", f"-arch={request.param}", *headers]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-Werror=all-warnings", "-Xptxas=-v"]
    command += ["--keep", f"--keep-dir={folder}", "-cubin"]

    def compile_(name: str) -> str:
        written = ["-o", str(folder / f"{name}.cubin"), f"csrc/cuda/{name}.cu"]
        done = subprocess.run([*command, *written], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    with ThreadPoolExecutor() as pool:
        messages = "".join(pool.map(compile_, SOURCES))
    ptx = "".join((folder / f"{name}.ptx").read_text() for name in SOURCES)
    return Compiled(messages, ptx, [folder / f"{name}.cubin" for name in SOURCES[1:]])


def test_every_kernel_compiles_without_spills(compiled: Compiled) -> None:
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", compiled.messages)
    assert spills == [("0", "0")] * KERNELS


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


def test_the_body_moves_16_bytes_at_a_time(compiled: Compiled) -> None:
    kernels = []
    for cubin in compiled.cubins:
        command = [tool("nvdisasm"), "-c", str(cubin)]
        code = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        kernels += re.split(r"^\s*\.section\s+\.text\.", code, flags=re.MULTILINE)[1:]
    assert len(kernels) == KERNELS
    for kernel in kernels:
        name = kernel.splitlines()[0]
        # param, grad, two moments; KahanComp, which is read where it is asked for; what the policies add.
        has_rest = re.search(r"StoredStepINS_7Float(32|64)", name) is None
        arrays = 4 + has_rest + sum(rows for policy, rows in ROWS.items() if f"{len(policy)}{policy}" in name)
        assert len(re.findall(r"\bLDG\.E(?:\.\w+)*\.128", kernel)) >= arrays, name
        assert len(re.findall(r"\bSTG\.E(?:\.\w+)*\.128", kernel)) >= arrays - 1, name
        assert not re.findall(r"\b(?:LDL|STL|LD|ST)\.", kernel), f"local or generic memory in {name}"
