"""What compilers make of the kernels, without a GPU: registers, blocks to a processor, spills, wide accesses.

``python -m bench.kernels`` prints the tables for one architecture: of CUDA where nvcc is, of Triton with the
one that is installed.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch.utils.cpp_extension

ROOT = Path(__file__).parent.parent
FORMATS = ("Float32", "BFloat16", "Float16", "Float64")
SHOWN = {"In16Bits": "16 bits", "In8BitBlocks": "block8"}
REGISTERS, THREADS = 65_536, 2_048  # of a multiprocessor, on compute capability 8.0 and 9.0
TRITON = {
    "float32": ("ema", 0, 0, 0, False, "nearest", False, False),
    "bfloat16 states": ("ema", 0, 1, 0, True, "nearest", True, True),
    "bfloat16": ("ema", 1, 0, 0, False, "nearest", True, True),
    "bfloat16, kahan": ("ema", 1, 1, 0, True, "kahan", False, True),
    "float16, stochastic": ("ema", 2, 1, 0, False, "stochastic", False, False),
    "float32, block8": ("ema", 0, 3, 0, False, "nearest", False, False),
    "bfloat16, block8, kahan": ("ema", 1, 3, 0, False, "kahan", True, True),
    "float16, block8, mean, stochastic": ("mean", 2, 3, 1, False, "stochastic", False, False),
    "float32, mean": ("mean", 0, 0, 0, False, "nearest", False, False),
    "bfloat16, mean, bfloat16 window": ("mean", 1, 1, 1, True, "kahan", False, True),
}
TRITON_NAMES = ("FILTER", "PARAM", "STATE", "WINDOW", "STOCHASTIC", "PARAM_ROUNDING", "COUPLED", "AMSGRAD")


def tool(name: str) -> str | None:
    """Returns where a program of the CUDA toolkit is: on the PATH, or in a package of this environment."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    homes += [str(Path(sysconfig.get_path("purelib"), "nvidia", version)) for version in ("cu13", "cu12")]
    return shutil.which(name, path=os.pathsep.join([os.environ["PATH"], *(f"{home}/bin" for home in homes)]))


def compiled_by_nvcc(nvcc: str, architecture: str, folder: Path, name: str) -> str:
    """Compiles csrc/cuda/NAME.cu to NAME.cubin and NAME.ptx in a folder; returns what ptxas says."""
    headers = [word for path in torch.utils.cpp_extension.include_paths() for word in ("-isystem", path)]
    command = [nvcc, "-std=c++17", "-O3", "--fmad=false", f"-arch={architecture}", *headers]
    command += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-Werror=all-warnings", "-Xptxas=-v"]
    command += ["--keep", f"--keep-dir={folder}", "-cubin", "-o", str(folder / f"{name}.cubin")]
    done = subprocess.run([*command, f"csrc/cuda/{name}.cu"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stderr


def compiled_by_triton(policies: dict[str, Any], masked: bool, capability: int) -> Any:
    """Returns the Triton kernel compiled for one compute capability, such as 90."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from grokfused.triton_kernels import kernel, launcher

    pointers = {"slices": "*i64", "tensors": "*i32", "first_chunks": "*i32", "rows": "*i32", "tiles": "i32"}
    pointers |= dict.fromkeys(("scalars", "grad_scale", "found_inf"), "*fp32")
    flags = dict.fromkeys(("HAS_SCALE", "HAS_FOUND_INF", "STEPS_HERE"), True)
    constants = {**flags, **policies, "TILE": launcher.tile_of(policies["STATE"]), "MASKED": masked}
    signature = {**pointers, "seed": "i64", "window": "i32", **dict.fromkeys(constants, "constexpr")}
    return triton.compile(
        ASTSource(fn=kernel.adamw_kernel, signature=signature, constexprs=constants),
        target=GPUTarget("cuda", capability, 32),
        options=launcher.ON_NVIDIA,
    )


def triton_policies(name: str) -> dict[str, Any]:
    """Returns a row of ``TRITON`` as the kernel's constants."""
    from grokfused.triton_kernels import launcher

    policies = dict(zip(TRITON_NAMES, TRITON[name], strict=True))
    codes = {"PARAM_ROUNDING": launcher.PARAM_ROUNDING, "FILTER": launcher.FILTERS}
    return policies | {name: code[policies[name]] for name, code in codes.items()}


def disassembled(nvdisasm: str, cubin: Path) -> dict[str, str]:
    """Returns the machine code of each kernel in a cubin, by its mangled name."""
    code = subprocess.run([nvdisasm, "-c", str(cubin)], capture_output=True, text=True, check=True).stdout
    parts = re.split(r"^\s*\.section\s+\.text\.", code, flags=re.MULTILINE)[1:]
    return {re.match(r"[\w$.]+", part)[0]: part for part in parts}  # type: ignore[index]


def wide(code: str, access: str, width: int) -> int:
    """Counts the accesses of global memory, "LDG" or "STG", that are so many bytes wide: 4, 8 or 16."""
    found = [set(said.split(".")) for said in re.findall(rf"\b{access}\.E((?:\.\w+)*)", code)]
    others = {"U8", "S8", "U16", "S16", "64", "128"}
    return sum(not words & others if width == 4 else str(8 * width) in words for words in found)


class Row(NamedTuple):
    """What is known of one kernel."""

    name: str
    registers: int
    threads: int
    spilled_bytes: int
    loads: tuple[int, int]  # of 16 bytes, of 8
    stores: tuple[int, int]

    def cells(self) -> tuple[str, ...]:
        """Returns them as text."""
        allotted = -(-self.registers // 8) * 8 * self.threads
        blocks = min(REGISTERS // allotted, THREADS // self.threads)
        accesses = (f"{full} + {half}" for full, half in (self.loads, self.stores))
        return (
            self.name,
            str(self.registers),
            f"{blocks} of {self.threads}",
            str(self.spilled_bytes),
            *accesses,
        )


def _row(name: str, said: str, threads: int, code: str) -> Row:
    used = re.search(r"(\d+) bytes spill stores.*?Used (\d+) registers", said, re.DOTALL)
    if used is None:
        raise RuntimeError(f"ptxas does not tell the registers of {name}: {said}")
    counts = [(wide(code, access, 16), wide(code, access, 8)) for access in ("LDG", "STG")]
    return Row(name, int(used[2]), threads, int(used[1]), *counts)


def cuda_rows(architecture: str) -> Iterator[Row]:
    """Compiles the CUDA kernels and yields what is known of each."""
    nvcc, nvdisasm = tool("nvcc"), tool("nvdisasm")
    if not (nvcc and nvdisasm):
        raise SystemExit("nvcc or nvdisasm is missing: pip install -r requirements-nvcc.txt")
    with tempfile.TemporaryDirectory() as name:
        for source in ("block8", *map(str.lower, FORMATS)):
            messages = compiled_by_nvcc(nvcc, architecture, Path(name), source)
            said = dict(re.findall(r"Function properties for (\S+)\n(.*\n.*)", messages))
            for kernel, code in disassembled(nvdisasm, Path(name) / f"{source}.cubin").items():
                yield _row(_shown(kernel), said[kernel], 256, code)


def _shown(mangled: str) -> str:
    param, state = re.search(  # type: ignore[union-attr]
        r"StoredStepINS_\d+(\w+?)E(?:NS_\d+(\w+?)E|S\d*_)", mangled
    ).groups()
    param, state = (SHOWN.get(name, name) for name in (param, state))
    parts = [param if state in (None, param) else f"{param}, {state} states"]
    parts += [
        name for name, of in {"ema": "3EmaE", "mean": "4MeanE", "none": "8NoFilterE"}.items() if of in mangled
    ]
    return ", ".join([*parts, "small table" if "Li30E" in mangled else "large table"])


def triton_rows(capability: int) -> Iterator[Row]:
    """Compiles the Triton kernel and yields what is known of it."""
    from triton.backends.nvidia.compiler import get_ptxas

    from grokfused.triton_kernels import launcher

    ptxas = get_ptxas(capability).path
    with tempfile.TemporaryDirectory() as folder:
        for name in TRITON:
            for masked in (False, True):
                compiled = compiled_by_triton(triton_policies(name), masked, capability)
                ptx, cubin = Path(folder, "kernel.ptx"), Path(folder, "kernel.cubin")
                ptx.write_text(compiled.asm["ptx"])
                target = re.search(r"\.target (\w+)", compiled.asm["ptx"])[1]  # type: ignore[index]
                command = [ptxas, "-v", "--fmad=false", f"--gpu-name={target}", str(ptx), "-o", str(cubin)]
                said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
                (code,) = disassembled(str(tool("nvdisasm")), cubin).values()
                shown = f"{name}{', masked' if masked else ''}"
                yield _row(shown, said, 32 * launcher.OPTIONS["num_warps"], code)


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--capability", type=int, default=90, help="the compute capability. (default: 90)")
    parser.add_argument("--triton", action="store_true", help="of Triton instead of CUDA.")
    options = parser.parse_args()
    rows = triton_rows(options.capability) if options.triton else cuda_rows(f"sm_{options.capability}")
    print("| kernel | registers | blocks a multiprocessor | spilled bytes | loads of 16 + 8 bytes | stores |")
    print("|---|---|---|---|---|---|")
    for row in sorted(rows):
        print(f"| {' | '.join(row.cells())} |", flush=True)


if __name__ == "__main__":
    main()
