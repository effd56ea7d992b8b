"""The limit of a step on a CPU: its arrays, read and written where they lie, with the arithmetic left out.

A copy is none there: it writes where it has not read, and those lines are read first for nothing. The
function that touches the arrays (``in_place.cpp``) is compiled when it is first needed, and kept.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import math
import os
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from grokfused.lab.bench.cases import Shapes
from grokfused.lab.bench.traffic import Traffic
from grokfused.state.memory import free_bytes

SOURCE = Path(__file__).with_name("in_place.cpp")
TORCH = Path(torch.__file__).parent
FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", f"-I{TORCH / 'include'}", f"-L{TORCH / 'lib'}")
LINE = 64  # bytes that memory moves together


class NoLimit(RuntimeError):
    """The limit cannot be measured; the message says why."""


class _Array(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("lines", ctypes.c_int64))


def _compile(to: Path) -> None:
    """Compiles the function into a file, which is whole or not there; raises NoLimit where it cannot."""
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    to.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=to.parent) as folder:
        made = Path(folder) / to.name
        command = [*compiler, *FLAGS, str(SOURCE), "-o", str(made), "-ltorch_cpu"]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise NoLimit(f"there is no C++ compiler {compiler[0]!r} (CXX names another)") from error
        if done.returncode:
            lines = done.stderr.splitlines()
            raise NoLimit(next((line for line in lines if "error" in line.lower()), f"{compiler[0]} failed"))
        made.replace(to)


@functools.cache
def _library() -> ctypes.CDLL | str:
    """Returns the compiled function's library, or why there is none."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path(cache) / "torch_extensions")
    told = SOURCE.read_text() + torch.__version__ + " ".join(FLAGS) + os.environ.get("CXX", "")
    file = root / "grokfused" / f"in_place_{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"
    try:
        if not file.exists():
            _compile(file)
        return ctypes.CDLL(str(file))
    except (NoLimit, OSError) as error:
        return str(error)


class Pass:
    """Goes through arrays once, on the threads of a step, a few lines of each array after the other.

    Args:
        arrays: Of each tensor, equally many. They begin at a line, and have whole ones of 64 bytes.
        reads: How many of each tensor's are only read, the first ones.
        flip: Each word of 64 bits of the others is written xor this. (default: 0, as it was)

    Raises:
        NoLimit: It could not be compiled here.
    """

    def __init__(self, arrays: Sequence[Sequence[Tensor]], reads: int, flip: int = 0) -> None:
        library = _library()
        if isinstance(library, str):
            raise NoLimit(library)
        self.run = library.in_place
        self.arrays = [array for of_tensor in arrays for array in of_tensor]
        told = [_Array(array.data_ptr(), array.nbytes // LINE) for array in self.arrays]
        numbers = (ctypes.c_int64(n) for n in (len(arrays), reads, len(arrays[0])))
        self.arguments = ((_Array * len(told))(*told), *numbers, ctypes.c_uint64(flip))

    def __call__(self) -> None:
        """Goes through them."""
        if self.run(*self.arguments):
            raise NoLimit("the arrays of a step are too many, or torch has no threads for them")


@dataclass
class Limit:
    """What moves the bytes of a step."""

    passes: list[Pass]

    def __call__(self) -> None:
        """Takes the passes."""
        for each in self.passes:
            each()


class Limits:
    """The limits of all implementations on one case, which share their arrays."""

    def __init__(self, shapes: Shapes) -> None:
        self.counts = [torch.Size(shape).numel() for shape in shapes]
        self.arrays: dict[tuple[int, int], Tensor] = {}

    def of(self, traffic: Traffic) -> Limit:
        """Returns what moves as many bytes as a step of that traffic.

        Raises:
            NoLimit: It could not be compiled here, or memory does not suffice.
        """
        before, read_only = traffic.read_before, traffic.read_only
        passes = [Pass(self._arrays(before), len(before))] if before else []
        return Limit([*passes, Pass(self._arrays((*read_only, *traffic.updated)), len(read_only))])

    def _arrays(self, sizes: Sequence[float]) -> list[list[Tensor]]:
        """Returns arrays of so many bytes an element, of each tensor."""
        wanted = {
            (tensor, place): math.ceil(count * size / LINE) * LINE
            for tensor, count in enumerate(self.counts)
            for place, size in enumerate(sizes)
        }
        missing = {key: size for key, size in wanted.items() if size > len(self.arrays.get(key, ()))}
        needed, free = sum(missing.values()), free_bytes(torch.device("cpu"))
        if free is not None and needed > free:
            raise NoLimit(f"it needs {needed / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free")
        for key, size in missing.items():
            # Written: memory that never was is one page of zeros, over and over.
            self.arrays[key] = torch.ones(size, dtype=torch.uint8)
        places = range(len(sizes))
        return [
            [self.arrays[tensor, place][: wanted[tensor, place]] for place in places]
            for tensor in range(len(self.counts))
        ]
