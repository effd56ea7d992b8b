"""Installing: `_C` says how it was built, and a machine without a compiler gets a working package."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

import grokfused

ROOT = Path(__file__).parent.parent


def test_the_extension_says_how_it_was_built() -> None:
    build = grokfused.info()["build"]
    assert build["version"] == grokfused.__version__
    assert build["torch_target"] == "2.11"
    assert "-ffp-contract=off" in build["flags"]
    assert "fast-math" not in build["flags"] + build["nvcc_flags"]
    assert bool(build["nvcc"]) == bool(build["nvcc_flags"]) == bool(build["cuda_architectures"])


def test_info_names_the_backend_that_auto_takes() -> None:
    info = grokfused.info()
    assert info["auto"]["cpu"] == "native"
    assert info["backends"]["reference"]["available"][0] == "cpu"
    assert info["torch"] == torch.__version__


def test_setup_is_short() -> None:
    assert len((ROOT / "setup.py").read_text().splitlines()) <= 100


def copied(folder: Path) -> Path:
    """Copies what a build needs into a new folder, and returns it."""
    folder.mkdir()
    for path in (
        *ROOT.glob("setup*.py"),
        *(ROOT / name for name in ("pyproject.toml", "README.md", "LICENSE")),
    ):
        shutil.copy(path, folder)
    for name in ("csrc", "grokfused"):
        unbuilt = shutil.ignore_patterns("*.so", "__pycache__", "_build_error.txt")
        shutil.copytree(ROOT / name, folder / name, ignore=unbuilt)
    return folder


# An editable installation's finder would find the repository's own _C: this copy must do without.
TRAIN = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
import warnings, torch, grokfused
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    p = torch.ones(3, requires_grad=True)
    for optimizer in (grokfused.GrokAdamW([p]), grokfused.GrokAdam([p])):
        p.grad = torch.ones(3)
        optimizer.step()
        optimizer.step()
print(p.tolist() != [1.0] * 3, grokfused.info()["auto"]["cpu"], len(caught), str(caught[0].message))
"""


@pytest.mark.slow
def test_without_a_compiler_the_package_works_and_quotes_the_compiler_once(tmp_path) -> None:
    source = copied(tmp_path / "source")
    broken = tmp_path / "c++"
    # It knows its version and nothing else.
    broken.write_text(
        """#!/bin/sh
case "$*" in *-version*|*-dump*) exec c++ "$@";; esac
echo 'this machine has no compiler' >&2
exit 1
"""
    )
    broken.chmod(0o755)
    # A build for CUDA would first ask nvcc what it thinks of this compiler.
    environment = {**os.environ, "CXX": str(broken), "CC": str(broken), "TORCH_DONT_CHECK_COMPILER_ABI": "1"}
    environment.pop("PYTHONPATH", None)
    built_before = source / "grokfused" / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    built_before.write_bytes(b"of other sources")
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=source,
        env=environment,
        check=True,
        capture_output=True,
    )
    assert list((source / "grokfused").glob("_C*.so")) == []
    shown = subprocess.run(
        [sys.executable, "-c", TRAIN], cwd=source, capture_output=True, text=True, check=True
    ).stdout
    assert shown.startswith("True reference 1 grokfused uses its slow reference backend on cpu.")
    assert "this machine has no compiler" in shown
