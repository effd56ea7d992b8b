"""`make gpu-check` where there is no GPU: its parts that need none work, and it says what could not run."""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench import aims, gpu_check, gpu_record, stage, step_cuda
from bench.gpu_check import DEFAULT, STAGES, Planned
from bench.stage import ROOT, Stage
from bench.step_cuda import CUDA_CASES, IMPLEMENTATIONS, QUICK

TESTS = ROOT / "tests"


@pytest.fixture(autouse=True)
def sigterm() -> Iterator[None]:
    """Gives the signal back what it did before a check."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


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
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    # torch 2.14 asks the accelerator's stream instead, and there is none.
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: None)


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


def check(monkeypatch, out: Path, stages: dict[str, object], names: list[str] | None = None) -> int:
    """Runs `python -m bench.gpu_check` with stages of a test's own; each takes its limit and the folder."""
    monkeypatch.setattr(gpu_check, "STAGES", {name: Planned(5, each) for name, each in stages.items()})
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--out", str(out), "--stages", *(names or stages)])
    return gpu_check.main()


@pytest.mark.usefixtures("rows_of_the_cpu")
def test_everything_is_written_and_a_failure_is_told(tmp_path, monkeypatch, capsys) -> None:
    def breaks(limit: float, out: Path) -> Stage:
        raise RuntimeError("out of luck")

    found = [row for rows in step_cuda.measured(QUICK) for row in rows]
    kept = [aim.record() for aim in aims.of_set("gpu", found)]
    stages = {
        "bench": lambda limit, out: Stage("bench", "passed", found={"rows": found, "aims": kept, "fma": {}}),
        "memcheck": lambda limit, out: Stage("memcheck", "could not run", "it is not installed"),
        "breaks": breaks,
    }
    assert check(monkeypatch, tmp_path / "results", stages) == 1
    record = json.loads((tmp_path / "results" / "gpu_check.json").read_text())
    verdicts = {stage["name"]: (stage["verdict"], stage["why"]) for stage in record["stages"]}
    assert verdicts["breaks"] == ("failed", "RuntimeError: out of luck")
    page = (tmp_path / "results" / "gpu_check.md").read_text()
    assert "| memcheck | could not run | 0 | it is not installed |" in page
    assert page.count("| demo |") == len(IMPLEMENTATIONS)
    assert page.count("aim >= ") + page.count("aim <= ") == len(kept)
    assert gpu_record.table(found) in page
    assert "could not run  memcheck  it is not installed" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("program", [gpu_check, step_cuda], ids=lambda module: module.__name__)
def test_without_a_gpu_nothing_is_written(program, tmp_path, monkeypatch, capsys) -> None:
    option = {gpu_check: "--out", step_cuda: "--json"}[program]
    monkeypatch.setattr(sys, "argv", [program.__name__, option, str(tmp_path / "results")])
    assert program.main() == 2
    assert list(tmp_path.iterdir()) == []
    assert "finds no NVIDIA GPU" in "".join(capsys.readouterr())


# --- what a check leaves that is ended -------------------------------------------------------------------


@pytest.mark.usefixtures("rows_of_the_cpu")
def test_a_check_that_is_killed_leaves_the_stages_that_have_ended(tmp_path, monkeypatch) -> None:
    def killed(limit: float, out: Path) -> Stage:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
        raise AssertionError

    stages = {"first": lambda limit, out: Stage("first", "passed", found={"limit": limit}), "killed": killed}
    with pytest.raises(SystemExit, match="143"):
        check(monkeypatch, tmp_path, {**stages, "last": killed})
    record = json.loads((tmp_path / "gpu_check.json").read_text())
    assert [stage["verdict"] for stage in record["stages"]] == ["passed", "not ended", "not yet run"]
    assert record["stages"][0]["found"] == {"limit": 5}
    assert "| killed | not ended | 0 |  |" in (tmp_path / "gpu_check.md").read_text()


def test_a_command_that_does_not_end_is_ended_with_what_it_started(tmp_path) -> None:
    starts = (
        "import os, subprocess; child = subprocess.Popen(['sleep', '300']); print(child.pid); child.wait()"
    )
    code, output = stage.run([sys.executable, "-uc", starts], 2, tmp_path / "log")
    found = stage.judged("slow", code, output)
    assert (found.verdict, found.why) == ("failed", f"its time was over: {output.strip()}")
    assert output in (tmp_path / "log").read_text()
    deadline = time.monotonic() + 60
    while (status := Path(f"/proc/{output.strip()}/stat")).exists() and " Z " not in status.read_text():
        assert time.monotonic() < deadline, "what it had started still runs"
        time.sleep(0.05)


@pytest.mark.usefixtures("rows_of_the_cpu")
def test_a_bench_whose_time_is_over_leaves_the_cases_it_has_measured(tmp_path, monkeypatch, capsys) -> None:
    rows = next(step_cuda.measured(QUICK))

    def ended(command: list[str], limit: float, log: Path) -> tuple[int, str]:
        Path(command[-1]).write_text(json.dumps({"rows": rows}))
        return stage.TIME_OVER, "measuring"

    monkeypatch.setattr(gpu_check, "run", ended)
    found = gpu_check.bench(100, tmp_path)
    assert (found.verdict, found.why, found.found["rows"]) == ("failed", "its time was over: measuring", rows)
    assert gpu_record.table(rows) in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("output", "found"),
    [
        (
            "..F [100%]\n1 failed, 1201 passed, 3 skipped, 2 errors in 61.05s (0:01:01)",
            {"failed": 1, "passed": 1201, "skipped": 3, "error": 2},
        ),
        ("...s..F [ 50%]\n..", {"passed": 7, "skipped": 1, "failed": 1}),
        ("nothing", {}),
    ],
    ids=["to the end", "ended", "nothing ran"],
)
def test_what_pytest_prints_is_understood(output, found) -> None:
    assert stage.counts(output) == found


# --- what is planned -------------------------------------------------------------------------------------


def test_the_usual_stages_fit_a_run_of_eight_minutes() -> None:
    assert DEFAULT == ("build", "device", "native", "bench", "triton", "memcheck")
    assert sum(STAGES[name].limit for name in DEFAULT) <= 480 - 10  # Python starts, files are written


@pytest.mark.usefixtures("rows_of_the_cpu")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_after_a_build_that_failed_what_needs_it_is_left_out(device, tmp_path, monkeypatch) -> None:
    info = {"backends": {"native": {"why_not": {device: "_C was built without a kernel for cuda:\nno luck"}}}}
    printed = f"1 passed in 0.1s\n{json.dumps(info)}"
    monkeypatch.setattr(gpu_check, "run", lambda *command, **environment: (0, printed))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setattr(
        sys, "argv", ["gpu_check", "--out", str(tmp_path), "--stages", "build", "native", "triton"]
    )
    assert gpu_check.main() == 1
    found = {each["name"]: each for each in json.loads((tmp_path / "gpu_check.json").read_text())["stages"]}
    assert (found["build"]["verdict"], found["build"]["why"]) == ("failed", "no luck")
    assert (found["native"]["verdict"], found["native"]["why"]) == ("could not run", "the build failed")
    assert found["triton"]["verdict"] == "passed"


def test_a_stage_whose_tests_are_all_skipped_has_failed(tmp_path, monkeypatch) -> None:
    printed = "SKIPPED [20] tests/test_cuda_device.py: needs an NVIDIA GPU\n20 skipped in 0.10s"
    monkeypatch.setattr(gpu_check, "run", lambda *command, **environment: (0, printed))
    found = STAGES["device"].stage(5, tmp_path)
    assert (found.verdict, found.why) == ("failed", "no test has run: 20 skipped in 0.10s")
    assert found.found["skips"] == printed.splitlines()[:1]


def test_the_table_has_a_line_per_case_and_a_column_per_backend() -> None:
    about = {"case": "demo", "dtype": "float32"}
    measured = {"share_of_copy": {"median": 0.5}, "host_milliseconds": {"median": 0.0123}, "launches": 1}
    rows = [
        {**about, **measured, "implementation": "GrokAdamW"},
        {**about, "implementation": "GrokAdamW, backend=triton", "why_not": "no triton"},
        {**about, **measured, "share_of_copy": None, "implementation": "AdamW(fused)", "launches": 7},
    ]
    _, _, line = gpu_record.table(rows).splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["demo", "float32", "0.50; 0.0123 ms; 1", "could not run", "-; 0.0123 ms; 7", "-"]
    assert gpu_record.why_nots(rows) == ["GrokAdamW, backend=triton could not run: no triton"]
