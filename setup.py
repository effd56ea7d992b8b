"""Builds the extension `grokfused._C`; everything else about the package stands in pyproject.toml.

A machine without a working C++ compiler still gets a working package, and one where CUDA's fails gets the
kernels of the CPU: the compiler's own words are kept in `grokfused/_build_error.txt`, and shown by `info()`
and when another backend has to step in. GROKFUSED_REQUIRE_NATIVE=1 makes both errors, GROKFUSED_NATIVE=0 asks
for a package without native code. Where there is no torch to compile for, it stops (setup_torch.py).
"""

import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent
sys.path.insert(0, str(ROOT))
import setup_cuda  # noqa: E402
from setup_errors import attempt, explain, forget  # noqa: E402
from setup_torch import chosen  # noqa: E402

VERSION = {}
exec((ROOT / "grokfused" / "_version.py").read_text(), VERSION)

# -fno-math-errno: without it nothing vectorises, because sqrtf may set errno. -ffp-contract=off and
# --fmad=false: one rounding per operation is the contract. -fvisibility=hidden: pybind11 asks for it.
# -g0: Python's own -g would nearly double the time of a build.
CXX = "-std=c++17 -O3 -fopenmp-simd -fno-math-errno -fno-trapping-math -ffp-contract=off -fvisibility=hidden"
NVCC = "-std=c++17 -O3 --fmad=false"
FLAGS = {"cxx": [*CXX.split(), "-g0"], "nvcc": NVCC.split()}
TORCH_TARGET = "0x020b000000000000"  # the stable ABI of torch 2.11: one build for every later torch


def extension(kind, *folders, **facts):
    """Returns `_C` with the kernels of some folders; `facts` are what it says of itself."""
    import pybind11
    import torch

    facts |= {"VERSION": VERSION["__version__"], "TORCH": torch.__version__}
    sources = [path for folder in folders for path in sorted(Path("csrc", folder).glob("*.c[pu]*"))]
    return kind(
        "grokfused._C",
        ["csrc/bindings.cpp", *map(str, sources)],  # it takes longest, and is compiled first by its name
        include_dirs=[pybind11.get_include()],
        define_macros=[
            ("TORCH_TARGET_VERSION", TORCH_TARGET),
            *((f"GROK_{name}", f'"{value}"') for name, value in facts.items()),
        ],
        extra_compile_args=FLAGS,
        depends=[str(path) for path in (ROOT / "csrc").rglob("*.h")],
    )


def on_cpu():
    """Returns `_C` with the CPU's kernels."""
    from torch.utils.cpp_extension import CppExtension

    return extension(CppExtension, "cpu", FLAGS=CXX)


def with_cuda():
    """Returns `_C` with CUDA's kernels too; raises NoToolkit, or whatever torch raises."""
    version, architectures = setup_cuda.prepare()
    from torch.utils.cpp_extension import CUDAExtension

    facts = {"NVCC": version, "NVCC_FLAGS": NVCC, "CUDA_ARCHITECTURES": architectures}
    return extension(CUDAExtension, "cpu", "cuda", FLAGS=CXX, **facts)


def arguments():
    """Returns setup()'s arguments for `_C`; raises ModuleNotFoundError where it cannot be built."""
    import pybind11  # noqa: F401
    import torch
    from torch.utils.cpp_extension import BuildExtension

    class BuildOrExplain(BuildExtension):
        """Builds the best `_C` that can be built, and records what is missing in it."""

        def finalize_options(self):
            self.build_temp = self.build_temp or "build/objects"  # what `make` has compiled, a wheel need not
            super().finalize_options()
            self.places = [Path(self.build_lib), *([ROOT] if self.inplace or self.editable_mode else [])]

        def build_extensions(self):
            forget(self.places, self.get_ext_filename("grokfused._C"))
            said, ways = "", [with_cuda, on_cpu] if torch.version.cuda else [on_cpu]  # a GPU need not be here
            for way in ways:
                error, printed = attempt(self.build_as, way)
                if error is None:
                    return
                said += f"{printed}\n{error}\n".lstrip()
                explain(said, error, self.places)
            self.extensions = []

        def build_as(self, way):
            vars(self.extensions[0]).update(vars(way()))  # setuptools' own notes stay
            super().build_extensions()

    return {"ext_modules": [on_cpu()], "cmdclass": {"build_ext": BuildOrExplain}}


setup(**chosen(arguments))
