"""Builds the extension `grokfused._C`; everything else about the package stands in pyproject.toml.

A machine without a working C++ compiler still gets a working package: the compiler's own words are
kept in `grokfused/_build_error.txt` and shown when the reference backend has to step in.
"""

import os
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
BUILD_ERROR = ROOT / "grokfused" / "_build_error.txt"
VERSION = {}
exec((ROOT / "grokfused" / "_version.py").read_text(), VERSION)

# -fno-math-errno: without it nothing vectorises, because sqrtf may set errno. -ffp-contract=off and
# --fmad=false: one rounding per operation is the contract. -fvisibility=hidden: pybind11 asks for it.
# -g0: Python's own -g would nearly double the time of a build.
CXX = "-std=c++17 -O3 -fopenmp-simd -fno-math-errno -fno-trapping-math -ffp-contract=off -fvisibility=hidden"
FLAGS = {"cxx": [*CXX.split(), "-g0"], "nvcc": ["-std=c++17", "-O3", "--fmad=false"]}
TORCH_TARGET = "0x020b000000000000"  # the stable ABI of torch 2.11: one build for every later torch


@contextmanager
def everything_printed():
    """Yields a file that receives all output of this process and its children, compilers included."""
    with tempfile.TemporaryFile("w+") as log:
        kept = [os.dup(descriptor) for descriptor in (1, 2)]
        sys.stdout.flush()
        try:
            for descriptor in (1, 2):
                os.dup2(log.fileno(), descriptor)
            yield log
        finally:
            sys.stdout.flush()
            for descriptor, original in zip((1, 2), kept, strict=True):
                os.dup2(original, descriptor)
                os.close(original)


def native_extension():
    """Returns setup()'s arguments for `_C`; raises ModuleNotFoundError where it cannot be built."""
    import pybind11
    import torch
    from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

    class BuildOrExplain(BuildExtension):
        """Builds `_C`, or records why it could not and lets the installation go on without it."""

        def build_extensions(self):
            BUILD_ERROR.unlink(missing_ok=True)
            error = None
            with everything_printed() as log:
                try:
                    super().build_extensions()
                except Exception as raised:  # whatever a tool chain throws: its words are kept
                    error = raised
                log.seek(0)
                output = log.read()
            print(output)
            if error is not None:
                self.extensions = []
                explain(f"{output.strip()}\n{error}", error)

    facts = {"VERSION": VERSION["__version__"], "TORCH": torch.__version__, "FLAGS": CXX}
    sources, kind = ["csrc/module.cpp", *sorted(map(str, Path("csrc/cpu").glob("*.cpp")))], CppExtension
    if torch.version.cuda and CUDA_HOME:  # whether this machine has a GPU does not matter
        known = "8.0;9.0+PTX" if torch.version.cuda < "12.8" else "8.0;9.0;10.0+PTX"
        facts["CUDA_ARCHITECTURES"] = os.environ.setdefault("TORCH_CUDA_ARCH_LIST", known)
        sources, kind = [*sources, *sorted(map(str, Path("csrc/cuda").glob("*.cu")))], CUDAExtension
    strings = [(f"GROK_{name}", f'"{value}"') for name, value in facts.items()]
    extension = kind(
        "grokfused._C",
        sources,
        include_dirs=[pybind11.get_include()],
        define_macros=[("TORCH_TARGET_VERSION", TORCH_TARGET), *strings],
        extra_compile_args=FLAGS,
        depends=[str(path) for path in (ROOT / "csrc").rglob("*.h")],
    )
    return {"ext_modules": [extension], "cmdclass": {"build_ext": BuildOrExplain}}


def explain(reason, error):
    """Keeps why there is no native backend where the package will find it, or stops if told to."""
    if os.environ.get("GROKFUSED_REQUIRE_NATIVE") == "1":
        raise error
    BUILD_ERROR.write_text(reason + "\n")
    print(f"grokfused: installed without its native backend: {reason}", file=sys.stderr)


try:
    arguments = native_extension()
except ModuleNotFoundError as missing:
    arguments = {}
    explain(f"{missing}; build with 'pip install --no-build-isolation' where torch is", missing)
setup(**arguments)
