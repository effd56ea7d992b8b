"""Records what a step costs without AVX-512, on a processor that has it: ``make bench-avx2``.

Which loops run is decided by the processor as a library is loaded, and nothing overrules that. So `_C` is
compiled once more, for AVX2 alone, and takes the place of the usual one in a process of its own; torch is
told to do without AVX-512 too.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUILD = ROOT / "build" / "avx2"
FLAGS = "-march=x86-64-v3 -DGROK_NO_CLONES"
RECORD = "bench/results/cpu_avx2.json"
COMMAND = ("bench", "steps", "--case", "gpt-30m", "--seconds", "15", "--json", RECORD)


def built() -> Path:
    """Returns `_C` for AVX2, compiled anew where a source has changed."""
    build = ["setup.py", "-q", "build_ext", "--build-lib", str(BUILD), "--build-temp", str(BUILD / "objects")]
    environment = {**os.environ, "CFLAGS": FLAGS, "CUDA_HOME": "", "GROKFUSED_REQUIRE_NATIVE": "1"}
    subprocess.run([sys.executable, *build], cwd=ROOT, env=environment, check=True)
    return next(BUILD.glob("grokfused/_C*.so"))


def main() -> None:
    """Builds, measures and records."""
    os.environ["ATEN_CPU_CAPABILITY"] = "avx2"  # before torch asks
    file = built()
    import grokfused

    spec = importlib.util.spec_from_file_location("grokfused._C", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["grokfused._C"] = grokfused._C = module  # type: ignore[attr-defined]
    spec.loader.exec_module(module)
    from grokfused.lab import main as command

    sys.argv[1:] = [*COMMAND, *sys.argv[1:]]
    command()


if __name__ == "__main__":
    main()
