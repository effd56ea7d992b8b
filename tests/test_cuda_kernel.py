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

from bench.fma import compile_kernel
from grokfused import backends, buckets
from grokfused.lab.agreement import Case, cases, disagreements, run
from grokfused.reference import Scalars

ROOT = Path(__file__).parent.parent


class Slice(ctypes.Structure):
    """Field for field csrc/step/slice.h."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("param", "grad", "exp_avg", "exp_avg_sq")),
        *((name, ctypes.c_void_p) for name in ("max_exp_avg_sq", "grad_ema", "kahan_comp", "mask")),
        ("size", ctypes.c_int64),
        ("random_key", ctypes.c_uint32),
        ("first", ctypes.c_uint32),
        ("mask_mode", ctypes.c_uint32),
    )


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
    shim: ctypes.CDLL, how: str, *arguments, seed, state_rounding, param_rounding, mask_modes, **options
) -> None:
    """The op's arguments, taken to the kernel on the CPU."""
    *arrays, masks, steps, scalars, rows = arguments
    params, _, exp_avgs, *_ = arrays
    slices = (Slice * len(params))()
    for t in range(len(params)):
        slices[t] = Slice(*(array[t].data_ptr() if array else None for array in arrays))
        slices[t].size = params[t].numel()
        if masks and masks[t].numel():
            slices[t].mask, slices[t].mask_mode = masks[t].data_ptr(), mask_modes[t]
    numbers = [scalars, steps, options.get("grad_scale"), options.get("found_inf")]
    on_host = how == "numbers on the host"  # the launcher, not the kernel, then reads and advances them
    if on_host and numbers[-1] is not None and numbers[-1].item():
        return
    names = [str(array[0].dtype).removeprefix("torch.") for array in (params, exp_avgs)]
    words = [*names, state_rounding, param_rounding, options["grad_filter"], options["decay"]]
    wrong = shim.shim_step(
        slices,
        len(params),
        (ctypes.c_int64 * len(rows))(*rows),
        *(ctypes.c_void_p(number if number is None else number.data_ptr()) for number in numbers),
        ctypes.c_uint32(seed),
        *(word.encode() for word in words),
        int(options["amsgrad"]),
        int(how != "table in device memory"),
        int(not on_host),
    )
    assert not wrong
    if on_host:
        steps.copy_(scalars[rows, Scalars._fields.index("step")])


@pytest.fixture(scope="module")
def truths() -> dict[Case, dict[str, torch.Tensor]]:
    """Returns what the reference makes of each case, its steps numbered by the host."""
    return {case: run("reference", case) for case in cases()}


@pytest.fixture(params=["numbers on the host", "numbers on the device", "table in device memory"])
def native_is_the_kernel(request, shim, monkeypatch) -> None:
    """Puts the kernel in the place of the native backend."""
    module = types.ModuleType("kernel_on_the_cpu")
    module.why_not = lambda kind: None if kind.dense else "gaps"
    module.adamw_step_ = lambda *arguments, **options: kernel_step_(
        shim, request.param, *arguments, **options
    )
    monkeypatch.setitem(sys.modules, "kernel_on_the_cpu", module)
    monkeypatch.setitem(backends.BACKENDS, "native", "kernel_on_the_cpu")
    if request.param != "numbers on the host":
        monkeypatch.setattr(buckets, "NUMBERING_DEVICES", ("cpu",))
    backends.choose.cache_clear()
    yield
    backends.choose.cache_clear()


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_the_kernel_equals_the_reference_bit_for_bit(case: Case, truths, native_is_the_kernel) -> None:
    assert disagreements(run("native", case), truths[case]) == {}


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


# With the table as the kernel's argument and in device memory, the roundings of the formats, the states, and
# three choices between two.
KERNELS = 2 * (1 + 3 + 3) * 3 * 2**3
SOURCES = ("adamw_cuda", "float32", "bfloat16", "float16")


@pytest.fixture(scope="module", params=["sm_80", "sm_90", "sm_100"])
def compiled(request, tmp_path_factory) -> Compiled:
    """The launcher with all its kernels, compiled against a torch that need not know CUDA."""
    folder = tmp_path_factory.mktemp(request.param)
    headers = [word for path in torch.utils.cpp_extension.include_paths() for word in ("-isystem", path)]
    command = [tool("nvcc"), "-std=c++17", "-O3", "--fmad=false", f"-arch={request.param}", *headers]
    command += ["-DTORCH_TARGET_VERSION=0x020a000000000000", "-Werror=all-warnings", "-Xptxas=-v"]
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
    assert {"div.rn.f32", "sqrt.rn.f32"} <= instructions
    assert {name for name in instructions if re.search(r"fma|mad.*f32|approx|ftz", name)} == set()


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
        arrays = (
            4 + ("Ema" in name) + ("Largest" in name) + ("Kahan" in name)
        )  # param, grad, two moments, ...
        assert len(re.findall(r"\bLDG\.E(?:\.\w+)*\.128", kernel)) >= arrays, name
        assert len(re.findall(r"\bSTG\.E(?:\.\w+)*\.128", kernel)) >= arrays - 1, name
        assert not re.findall(r"\b(?:LDL|STL|LD|ST)\.", kernel), f"local or generic memory in {name}"
