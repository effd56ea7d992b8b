"""Compiles the native sources with every warning an error; torch's own headers are exempt.

Not in setup.py: a user's compiler may know warnings that ours does not, and must still build.
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pybind11
import torch.utils.cpp_extension

ROOT = Path(__file__).parent.parent
SOURCES = [ROOT / "csrc" / "bindings.cpp", *sorted((ROOT / "csrc" / "cpu").glob("*.cpp"))]
SOURCES.append(ROOT / "grokfused" / "lab" / "bench" / "in_place.cpp")
FLAGS = ["-std=c++17", "-O1", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", "-fvisibility=hidden"]
FLAGS += ["-Wno-unknown-pragmas"]  # omp simd is a hint here; -fopenmp-simd belongs to the real build
DEFINES = [
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    '-DGROK_VERSION=""',
    '-DGROK_TORCH=""',
    '-DGROK_FLAGS=""',
]


def main() -> int:
    """Returns the number of sources that do not compile cleanly."""
    headers = [*torch.utils.cpp_extension.include_paths(), pybind11.get_include()]
    system = [f"-isystem{path}" for path in [*headers, sysconfig.get_path("include")]]
    command = ["c++", *FLAGS, *DEFINES, *system]
    return sum(subprocess.run([*command, source], cwd=ROOT).returncode != 0 for source in SOURCES)


if __name__ == "__main__":
    sys.exit(main())
