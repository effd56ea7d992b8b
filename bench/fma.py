"""What the contract costs on a GPU: the kernel with fused multiply-adds allowed, beside the kernel as it is.

The numerical contract rounds every operation once; a compiler left alone would fuse a multiplication and
an addition into one instruction. Only this bench compiles it so.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch

from grokfused.lab.bench.timing import Turns, gpu_timed, in_turns, ratios, spread
from grokfused.step.scalars import Scalars

ROOT = Path(__file__).parent.parent
ELEMENTS = 64 * 2**20


class Slice(ctypes.Structure):
    """Field for field csrc/step/slice.h."""

    _fields_ = (
        ("param", ctypes.c_void_p),
        ("grad", ctypes.c_void_p),
        ("states", ctypes.c_void_p * 7),
        ("mask", ctypes.c_void_p),
        ("step", ctypes.c_void_p),
        ("size", ctypes.c_int64),
        ("first", ctypes.c_uint32),
        ("mask_mode", ctypes.c_uint32),
    )


def compile_kernel(nvcc: str, fused: bool, architecture: str, made: Path, *how: str) -> Path:
    """Compiles ``fma_step``, in which multiplications and additions may be fused or not; returns ``made``."""
    command = [nvcc, "-std=c++17", "-O3", f"--fmad={str(fused).lower()}", f"-arch={architecture}", "-Icsrc"]
    command += [*how, "bench/fma.cu", "-o", str(made)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return made


def stepper(library: Path, slice_: Slice, scalars: torch.Tensor) -> Any:
    """Returns a function that steps the slice once; raises RuntimeError where the launch fails."""
    loaded = ctypes.CDLL(str(library))

    def step() -> None:
        error = loaded.fma_step(ctypes.byref(slice_), ctypes.c_void_p(scalars.data_ptr()))
        if error:
            raise RuntimeError(f"bench/fma.cu cannot be launched: CUDA error {error}")

    return step


def cost(rounds: int = 31) -> dict[str, Any]:
    """Measures both kernels on 64 M float32 parameters, in turns.

    Returns:
        ``milliseconds`` of each, and ``unfused_over_fused``: how many times as long the contract takes; or
        ``why_not``: what could not run.
    """
    arrays = [torch.rand(ELEMENTS, device="cuda") for _ in range(5)]
    param, grad, *states = (array.data_ptr() for array in arrays)
    slice_ = Slice(param, grad, (ctypes.c_void_p * 7)(*states), size=ELEMENTS)
    row = Scalars(1.0, 1.0, 0.98, 0.02, 2.0, 0.01, 0.9999, 0.1, 0.999, 0.001, 1e-3, 1.0, 1e-8)
    scalars = torch.tensor(row)
    major, minor = torch.cuda.get_device_capability()
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    with tempfile.TemporaryDirectory() as name:
        library = ("-shared", "-Xcompiler=-fPIC")
        try:
            libraries = {
                key: compile_kernel(nvcc, key == "fused", f"sm_{major}{minor}", Path(name, key), *library)
                for key in ("fused", "unfused")
            }
        except (OSError, subprocess.CalledProcessError) as error:
            return {"why_not": f"{error} {getattr(error, 'stderr', '')}".strip()}
        steps = [stepper(path, slice_, scalars) for path in libraries.values()]
        turns = Turns(0.0, least=rounds)
        taken = in_turns(steps, turns, lambda step: gpu_timed(step, 4))
    times = dict(zip(libraries, taken, strict=True))
    return {
        "elements": ELEMENTS,
        "milliseconds": {key: spread(found)._asdict() for key, found in times.items()},
        "unfused_over_fused": ratios(times["unfused"], times["fused"])._asdict(),
    }
