"""`make gpu-check` where there is no GPU: its parts that need none work, and it says what could not run."""

import json
import sys

import pytest
import torch

from bench import aims, gpu_check, step_cuda
from bench.gpu_check import Stage
from bench.step_cuda import CUDA_CASES, IMPLEMENTATIONS, QUICK


@pytest.fixture
def rows_of_the_cpu(monkeypatch) -> None:
    """Lets the GPU's bench run on the CPU: the same implementations, cases of the same names."""
    small = {name: [(9,), (3, 2)] for name in CUDA_CASES}
    monkeypatch.setattr(step_cuda, "DEVICE", "cpu")
    monkeypatch.setattr(step_cuda, "CUDA_CASES", small)
    monkeypatch.setattr(step_cuda.fma, "cost", lambda: {"why_not": "no GPU"})
    for module in (step_cuda, gpu_check):
        monkeypatch.setattr(module, "machine", lambda command, device: {"command": command, "gpu": "none"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("rows_of_the_cpu")
def test_every_case_dtype_and_implementation_is_a_row(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["step_cuda", "--quick", "--json", str(tmp_path / "run.json")])
    assert step_cuda.main() == 0
    record = json.loads((tmp_path / "run.json").read_text())
    seen = {(row["dtype"], row["case"], row["implementation"]) for row in record["rows"]}
    assert len(seen) == len(record["rows"]) == 2 * len(CUDA_CASES) * len(IMPLEMENTATIONS)
    assert len(record["aims"]) == 2 + 2 + 2 * 3 + 2
    ours = [row for row in record["rows"] if row["implementation"] == "GrokAdamW"]
    assert {row["dtype"]: row["bytes_per_element"] for row in ours} == {"float32": 36, "bfloat16": 30}
    # Triton has no CPU, and its row says so; nobody else is left out.
    refused = {row["implementation"] for row in record["rows"] if "why_not" in row}
    assert refused == {"GrokAdamW, backend=triton"}


@pytest.mark.usefixtures("rows_of_the_cpu")
def test_everything_is_written_and_a_failure_is_told(tmp_path, monkeypatch, capsys) -> None:
    def breaks() -> Stage:
        raise RuntimeError("out of luck")

    found = step_cuda.measured(QUICK)
    kept = [aim.record() for aim in aims.of_set("gpu", found)]
    stages = [
        lambda: Stage("step bench", "passed", found={"rows": found, "aims": kept, "fma": {}}),
        lambda: Stage("compute-sanitizer memcheck", "could not run", "it is not installed"),
        breaks,
    ]
    monkeypatch.setattr(gpu_check, "stages", lambda out: stages)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(tmp_path / "results")])
    assert gpu_check.main() == 1
    record = json.loads((tmp_path / "results" / "gpu_check.json").read_text())
    verdicts = {stage["name"]: (stage["verdict"], stage["why"]) for stage in record["stages"]}
    assert verdicts["breaks"] == ("failed", "RuntimeError: out of luck")
    page = (tmp_path / "results" / "gpu_check.md").read_text()
    assert "| compute-sanitizer memcheck | could not run | 0 | it is not installed |" in page
    assert page.count("| demo |") == len(IMPLEMENTATIONS)
    assert page.count("aim >= ") + page.count("aim <= ") == len(kept)
    assert "could not run  compute-sanitizer memcheck  it is not installed" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("program", [gpu_check, step_cuda], ids=lambda module: module.__name__)
def test_without_a_gpu_nothing_is_written(program, tmp_path, monkeypatch, capsys) -> None:
    option = {gpu_check: "--out", step_cuda: "--json"}[program]
    monkeypatch.setattr(sys, "argv", [program.__name__, option, str(tmp_path / "results")])
    assert program.main() == 2
    assert list(tmp_path.iterdir()) == []
    assert "finds no NVIDIA GPU" in "".join(capsys.readouterr())


def test_a_command_that_does_not_end_is_ended_and_told() -> None:
    code, output = gpu_check.run([sys.executable, "-uc", "print('so far'); import time; time.sleep(60)"], 2)
    stage = gpu_check.judged("slow", code, output)
    assert (stage.verdict, stage.why) == ("failed", "its time was over: so far")


def test_pytests_last_line_is_understood() -> None:
    line = "=== 1 failed, 1201 passed, 3 skipped, 2 errors in 61.05s (0:01:01) ==="
    assert gpu_check.counts(line) == {"failed": 1, "passed": 1201, "skipped": 3, "error": 2}
