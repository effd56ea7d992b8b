"""What to check and to measure on an NVIDIA GPU, in one command of eight minutes: ``make gpu-check``.

It builds for this GPU, runs the tests that need one, lets the native kernel agree with the reference,
measures the step, lets Triton agree, and has compute-sanitizer watch. Each stage has a limit and is written
down as it ends, in one JSON file and one Markdown page: a check that is killed leaves what it had. What could
not run is named, with the reason. ``--stages`` picks others: initcheck, the whole suite, the demonstration.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from bench import gpu_record
from bench.stage import ROOT, Stage, counts, judged, last_line, run
from grokfused.lab.bench.probes import machine

PYTHON = sys.executable
# A warning of torch's is told, and fails nothing here.
PYTEST = (PYTHON, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-W", "default")
AGREEMENT = "tests/test_backends_agree.py"
WITHOUT_GPU = ("test_cuda_kernel", "test_triton", "test_gpu_check", "test_bare_machine", "test_cuda_build")
PAPER_SECONDS = 137  # Lee et al. 2024, arXiv:2405.20233: Grokfast-EMA on one GTX 1080 Ti


def build(limit: float, out: Path) -> Stage:
    """Builds ``_C`` with the kernels for this GPU alone, and asks whether they run here."""
    major, minor = torch.cuda.get_device_capability()
    command = [PYTHON, "setup.py", "build_ext", "--inplace"]
    code, output = run(command, limit - 20, out / LOG, TORCH_CUDA_ARCH_LIST=f"{major}.{minor}")
    if code:
        return judged("build", code, output)
    ask = "import grokfused, json; print(json.dumps(grokfused.info()))"
    code, output = run([PYTHON, "-c", ask], 20, out / LOG)
    if code:
        return judged("build", code, output)
    info = json.loads(last_line(output))
    reasons = info["backends"]["native"]["why_not"]
    refused = reasons.get("cuda", reasons.get("cuda:0"))  # each by itself where GPUs differ
    if refused:
        print(refused)
        return Stage("build", "failed", last_line(refused), found={"info": info})
    return Stage("build", "passed", found={"info": info})


def tests(name: str, *which: str) -> Callable[[float, Path], Stage]:
    """Returns a stage that runs some tests, of which one has to pass at least."""

    def stage(limit: float, out: Path) -> Stage:
        code, output = run([*PYTEST, *which], limit, out / LOG)
        skips = re.findall(r"^SKIPPED .*", output, re.MULTILINE)
        found = {**counts(output), "skips": skips}
        if code == 0 and not found.get("passed"):
            return Stage(name, "failed", f"no test has run: {last_line(output)}", found=found)
        return judged(name, code, output, **found)

    return stage


def sanitize(tool: str) -> Callable[[float, Path], Stage]:
    """Returns a stage in which compute-sanitizer watches some of the agreement tests.

    Each tensor is then an allocation of its own: inside of what torch's allocator keeps it sees nothing.
    """

    def stage(limit: float, out: Path) -> Stage:
        program = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
        if program is None:
            return Stage(tool, "could not run", "compute-sanitizer is not installed")
        watched = [*PYTEST, AGREEMENT, "-k", "native-cuda and float32-bfloat16-stochastic-ema"]
        command = [program, "--tool", tool, "--error-exitcode", "99", *watched]
        code, output = run(command, limit, out / LOG, PYTORCH_NO_CUDA_MEMORY_CACHING="1")
        if "Device not supported" in output or "Unable to" in output:
            return Stage(tool, "could not run", last_line(output))
        return judged(tool, code, output, **counts(output))

    return stage


def bench(limit: float, out: Path) -> Stage:
    """Measures the step; the rows are those of ``bench.step_cuda``, which writes them case by case."""
    record = out / "step_cuda.json"
    record.unlink(missing_ok=True)
    code, output = run([PYTHON, "-m", "bench.step_cuda", "--json", str(record)], limit, out / LOG)
    found = json.loads(record.read_text()) if record.exists() else {}
    record.unlink(missing_ok=True)  # its rows are part of the one file there is
    if rows := found.get("rows"):
        print(gpu_record.LEGEND, gpu_record.table(rows), *gpu_record.why_nots(rows), sep="\n")
    return judged("bench", code, output, **found)


def grok(limit: float, out: Path) -> Stage:
    """Groks the demonstration with the whole training step as one CUDA graph."""
    runs = out / "runs"
    command = [PYTHON, "-c", "from grokfused.lab import main; main()", "grok", "--device", "cuda", "--graph"]
    begin = time.perf_counter()
    code, output = run([*command, "--overwrite", "--out", str(runs)], limit, out / LOG)
    seconds = time.perf_counter() - begin
    metrics = sorted(runs.glob("*/metrics.jsonl"))
    last = json.loads(metrics[0].read_text().splitlines()[-1]) if metrics else {}
    shutil.rmtree(runs, ignore_errors=True)
    facts = {"wall_seconds": seconds, "paper_seconds_on_a_gtx_1080_ti": PAPER_SECONDS, "last": last}
    return judged("grok", code, output, **facts)


class Planned(NamedTuple):
    """A stage that is to run: within ``limit`` seconds, and ``native`` if it is one of the native kernel."""

    limit: float
    stage: Callable[[float, Path], Stage]
    native: bool = False


LOG = "gpu_check.log"
NATIVE = "cuda and not triton"
STAGES = {
    "build": Planned(100, build),
    "device": Planned(60, tests("device", "tests/test_cuda_device.py"), native=True),
    "native": Planned(75, tests("native", AGREEMENT, "-k", NATIVE), native=True),
    "bench": Planned(100, bench),
    "triton": Planned(75, tests("triton", AGREEMENT, "-k", "triton-cuda", "-m", "not slow")),
    "memcheck": Planned(60, sanitize("memcheck"), native=True),
}
DEFAULT = tuple(STAGES)
# Beyond the eight minutes. The suite is run without what does without a GPU what is done here with one.
STAGES |= {
    "initcheck": Planned(120, sanitize("initcheck"), native=True),
    "suite": Planned(900, tests("suite", *(f"--ignore=tests/{name}.py" for name in WITHOUT_GPU))),
    "grok": Planned(180, grok, native=True),
}


def timed(name: str, planned: Planned, out: Path, done: Sequence[Stage]) -> Stage:
    """Runs one stage; whatever it raises is a failure with its words."""
    begin = time.perf_counter()
    if planned.native and any((stage.name, stage.verdict) == ("build", "failed") for stage in done):
        return Stage(name, "could not run", "the build failed")
    try:
        found = planned.stage(planned.limit, out)
    except Exception as error:  # one stage must not take the others' results with it
        found = Stage(name, "failed", f"{type(error).__name__}: {error}")
    found.seconds = time.perf_counter() - begin
    print(f"{found.name}: {found.verdict} {found.why} ({found.seconds:.0f} s)", flush=True)
    return found


def driver() -> str:
    """Returns the NVIDIA driver's version."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        return f"unknown ({error})"


def arguments() -> argparse.Namespace:
    """Returns what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder of the results")
    limits = ", ".join(f"{name} ({planned.limit} s)" for name, planned in STAGES.items())
    parser.add_argument(
        "--stages",
        nargs="+",
        choices=STAGES,
        default=DEFAULT,
        metavar="STAGE",
        help=f"in this order, each at most so long: {limits}; by default {' '.join(DEFAULT)}",
    )
    return parser.parse_args()


def main() -> int:
    """Runs the stages and writes each down; returns 0 where nothing failed, 2 where there is no GPU."""
    asked = arguments()
    out: Path = asked.out
    if not torch.cuda.is_available():
        knows = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "knows no CUDA"
        print(f"gpu-check: nothing could run: torch {torch.__version__} {knows} and finds no NVIDIA GPU")
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended too
    out.mkdir(parents=True, exist_ok=True)
    (out / LOG).write_text("")
    command = " ".join(["python -m bench.gpu_check", *sys.argv[1:]])
    where: dict[str, Any] = {**machine(command, "cuda"), "driver": driver()}
    stages = [Stage(name, "not yet run") for name in asked.stages]
    gpu_record.write(out, where, stages)
    for at, name in enumerate(asked.stages):
        stages[at].verdict = "not ended"
        gpu_record.write(out, where, stages)
        stages[at] = timed(name, STAGES[name], out, stages[:at])
        gpu_record.write(out, where, stages)
    print(f"recorded in {out / 'gpu_check.json'} and {out / 'gpu_check.md'}")
    for stage in stages:
        print(f"{stage.verdict:>13}  {stage.name}  {stage.why}")
    return int(any(stage.verdict == "failed" for stage in stages))


if __name__ == "__main__":
    sys.exit(main())
