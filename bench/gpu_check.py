"""Everything there is to check and to measure on an NVIDIA GPU, in one command: ``make gpu-check``.

It builds for this GPU, runs the test suite (whose tests take up the GPU by themselves), lets
compute-sanitizer watch the agreement tests, measures the step, groks the demonstration as one CUDA graph,
and writes one JSON file and one Markdown page. What could not run is named, with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.aims import Aim
from bench.report import of_aims
from grokfused.lab.bench import show
from grokfused.lab.bench.probes import machine

ROOT = Path(__file__).parent.parent
PYTHON = sys.executable
WITHOUT_GPU = ("test_cuda_kernel", "test_triton")
PAPER_SECONDS = 137  # Lee et al. 2024, arXiv:2405.20233: Grokfast-EMA on one GTX 1080 Ti


@dataclass
class Stage:
    """One thing that was to be done: ``verdict`` is "passed", "failed" or "could not run"."""

    name: str
    verdict: str
    why: str = ""
    seconds: float = 0.0
    found: dict[str, Any] = field(default_factory=dict)


def run(command: Sequence[str], limit: float, **environment: str) -> tuple[int, str]:
    """Returns the exit status (124 where the limit in seconds ended it) and all that was printed."""
    print("$", *command, flush=True)
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
        )
    except subprocess.TimeoutExpired as expired:
        printed = expired.stdout or b""
        return 124, (printed.decode() if isinstance(printed, bytes) else printed)
    return done.returncode, done.stdout


def judged(name: str, code: int, output: str, **found: Any) -> Stage:
    """Returns the stage of a command that has run."""
    if code == 0:
        return Stage(name, "passed", found=found)
    print(output[-6000:])
    ended = "its time was over" if code == 124 else f"exit status {code}"
    return Stage(name, "failed", f"{ended}: {last_line(output)}", found=found)


def last_line(output: str) -> str:
    """Returns the last line that says something."""
    lines = [line for line in output.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


def counts(output: str) -> dict[str, int]:
    """Returns how many tests passed, failed, were skipped, ..., from pytest's last line."""
    return {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)s?\b", output)}


def build() -> Stage:
    """Builds ``_C`` with the kernels for this GPU alone."""
    major, minor = torch.cuda.get_device_capability()
    command = [PYTHON, "setup.py", "build_ext", "--inplace"]
    settings = {"GROKFUSED_REQUIRE_NATIVE": "1", "TORCH_CUDA_ARCH_LIST": f"{major}.{minor}"}
    return judged("build", *run(command, 240, **settings))


def test() -> Stage:
    """Runs the suite: with a GPU its tests gain a device, and those that need one are not skipped.

    Left out are the minutes that do without a GPU what is done here with one: kernels on the CPU, in the
    interpreter, and compiled for other GPUs.
    """
    command = [PYTHON, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    command += [f"--ignore=tests/{name}.py" for name in WITHOUT_GPU]
    code, output = run(command, 360)
    skips = re.findall(r"^SKIPPED .*", output, re.MULTILINE)
    return judged("test suite", code, output, **counts(output), skips=skips, left_out=WITHOUT_GPU)


def sanitize(tool: str) -> Stage:
    """Lets compute-sanitizer watch some of the agreement tests."""
    name = f"compute-sanitizer {tool}"
    program = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if program is None:
        return Stage(name, "could not run", "compute-sanitizer is not installed")
    watched = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/test_backends_agree.py"]
    watched += ["-k", "cuda and float32-bfloat16-stochastic-ema"]
    code, output = run([program, "--tool", tool, "--error-exitcode", "99", *watched], 120)
    if "Device not supported" in output or "Unable to" in output:
        return Stage(name, "could not run", last_line(output))
    return judged(name, code, output, **counts(output))


def bench(out: Path) -> Stage:
    """Measures the step; the rows are those of ``bench.step_cuda``."""
    record = out / "step_cuda.json"
    code, output = run([PYTHON, "-m", "bench.step_cuda", "--json", str(record)], 240)
    print(output)
    found = json.loads(record.read_text()) if code == 0 else {}
    record.unlink(missing_ok=True)  # its rows are part of the one file there is
    return judged("step bench", code, output, **found)


def grok(out: Path) -> Stage:
    """Groks the demonstration with the whole training step as one CUDA graph."""
    runs = out / "runs"
    command = [PYTHON, "-c", "from grokfused.lab import main; main()", "grok", "--device", "cuda", "--graph"]
    begin = time.perf_counter()
    code, output = run([*command, "--overwrite", "--out", str(runs)], 180)
    seconds = time.perf_counter() - begin
    metrics = sorted(runs.glob("*/metrics.jsonl"))
    last = json.loads(metrics[0].read_text().splitlines()[-1]) if metrics else {}
    shutil.rmtree(runs, ignore_errors=True)
    facts = {"wall_seconds": seconds, "paper_seconds_on_a_gtx_1080_ti": PAPER_SECONDS, "last": last}
    return judged("demonstration in one graph", code, output, **facts)


def timed(stage: Callable[[], Stage]) -> Stage:
    """Runs one stage; whatever it raises is a failure with its words."""
    begin = time.perf_counter()
    try:
        done = stage()
    except Exception as error:  # one stage must not take the others' results with it
        done = Stage(getattr(stage, "__name__", "stage"), "failed", f"{type(error).__name__}: {error}")
    done.seconds = time.perf_counter() - begin
    print(f"{done.name}: {done.verdict} {done.why} ({done.seconds:.0f} s)", flush=True)
    return done


def driver() -> str:
    """Returns the NVIDIA driver's version."""
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        return f"unknown ({error})"


def markdown(record: dict[str, Any]) -> str:
    """Returns the record as a page: where, each stage, each promise, each row."""
    where = record["machine"]
    lines = ["# GPU check", ""]
    lines += [f"- {key}: {value}" for key, value in where.items()]
    lines += ["", "| stage | verdict | seconds | |", "|---|---|---|---|"]
    for stage in record["stages"]:
        lines.append(f"| {stage['name']} | {stage['verdict']} | {stage['seconds']:.0f} | {stage['why']} |")
    found = {stage["name"]: stage["found"] for stage in record["stages"]}
    measured = found.get("step bench", {})
    if measured.get("aims"):
        found_aims = [Aim(**{name: aim[name] for name in Aim._fields}) for aim in measured["aims"]]
        lines += ["", of_aims(found_aims)]
    if "fma" in measured:
        lines += ["", f"What the contract costs (fused multiply-adds allowed or not): {measured['fma']}"]
    if found.get("demonstration in one graph"):
        lines += ["", f"Demonstration: {found['demonstration in one graph']}"]
    lines += ["", show.LEGEND, "", show.markdown(measured.get("rows", []))]
    return "\n".join(lines) + "\n"


def stages(out: Path) -> list[Callable[[], Stage]]:
    """Returns what is done, in order."""
    return [
        build,
        test,
        lambda: sanitize("memcheck"),
        lambda: sanitize("initcheck"),
        lambda: bench(out),
        lambda: grok(out),
    ]


def main() -> int:
    """Runs everything and writes it down; returns 0 where nothing failed, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results", help="folder of the results")
    out: Path = parser.parse_args().out
    if not torch.cuda.is_available():
        knows = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "knows no CUDA"
        print(f"gpu-check: nothing could run: torch {torch.__version__} {knows} and finds no NVIDIA GPU")
        return 2
    out.mkdir(parents=True, exist_ok=True)
    done = [timed(stage) for stage in stages(out)]
    command = " ".join(["python -m bench.gpu_check", *sys.argv[1:]])
    where = {**machine(command, "cuda"), "driver": driver()}
    record = {"machine": where, "stages": [asdict(stage) for stage in done]}
    (out / "gpu_check.json").write_text(json.dumps(record, indent=1) + "\n")
    (out / "gpu_check.md").write_text(markdown(record))
    print(f"recorded in {out / 'gpu_check.json'} and {out / 'gpu_check.md'}")
    for stage in done:
        print(f"{stage.verdict:>13}  {stage.name}  {stage.why}")
    return int(any(stage.verdict == "failed" for stage in done))


if __name__ == "__main__":
    sys.exit(main())
