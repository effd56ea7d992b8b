"""`make gpu-check` on a machine with few packages: its tests are found, and no warning fails one."""

import subprocess
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from on_a_gpu import captured, waiting_is_an_error

from bench import gpu_check, stage
from bench.stage import ROOT

TESTS = ROOT / "tests"


@pytest.fixture
def bare_machine(monkeypatch) -> None:
    """Lets every pytest that is started collect tests as on a machine with a GPU and few packages."""
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p bare_machine --collect-only")
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{TESTS}")


@pytest.mark.slow
@pytest.mark.usefixtures("bare_machine")
@pytest.mark.parametrize("name", ["device", "memcheck", "native", "triton"])
def test_every_stage_finds_its_tests_on_a_bare_machine(name, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(gpu_check.shutil, "which", lambda program: program)
    sanitizer = ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "99")

    def without_the_sanitizer(command: Sequence[str], *others: Any, **environment: str) -> tuple[int, str]:
        if name == "memcheck":
            assert tuple(command[:5]) == sanitizer
            assert environment == {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        return stage.run(command[5:] if name == "memcheck" else command, *others, **environment)

    monkeypatch.setattr(gpu_check, "run", without_the_sanitizer)
    monkeypatch.setattr(gpu_check, "counts", lambda output: {"passed": output.count("::test_")})
    done = gpu_check.STAGES[name].stage(60, tmp_path)
    assert done.verdict == "passed", done
    found = {
        "device": "test_a_launch_steps_up_to_224_tensors[5000]",
        "native": "bit_for_bit[float32-float32-nearest-ema-coupled-native-cuda]",
        "triton": "bit_for_bit[float32-float32-nearest-ema-coupled-triton-cuda]",
        "memcheck": "bit_for_bit[float32-bfloat16-stochastic-ema-coupled-native-cuda]",
    }
    assert found[name] in (tmp_path / "gpu_check.log").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("bare_machine")
def test_the_suite_is_collected_on_a_bare_machine() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
    shown = subprocess.run(command, cwd=TESTS, capture_output=True, text=True)
    assert shown.returncode == 0, shown.stdout[-3000:]
    assert "torch's own material for tests needs the package expecttest" in shown.stdout
    assert "tests collected" in shown.stdout


def test_a_warning_of_torchs_neither_fails_a_test_nor_leaves_its_mode_on(monkeypatch) -> None:
    modes = []

    def set_mode(mode: str) -> None:
        modes.append(mode)
        if mode == "error":
            warnings.warn(
                "Synchronization debug mode is a prototype feature and does not yet ...", stacklevel=2
            )

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    with waiting_is_an_error():
        assert modes == ["error"]
    with pytest.raises(RuntimeError, match="waits"), waiting_is_an_error():
        raise RuntimeError("waits")
    assert modes == ["error", "default"] * 2


def test_a_capture_that_fails_is_told_by_its_error_alone(monkeypatch) -> None:
    @contextmanager
    def graph(_: object) -> Iterator[None]:
        try:
            yield
        finally:
            warnings.warn("The CUDA Graph is empty. This usually means ...", stacklevel=2)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", graph)
    with pytest.raises(RuntimeError, match="captured"), captured():
        raise RuntimeError("cannot be captured")
