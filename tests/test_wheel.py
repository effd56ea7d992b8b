"""What is installed: a wheel that needs no compiler, a source that leaves nothing out silently."""

import os
import re
import subprocess
import sys
import tarfile
import venv
from importlib import metadata
from pathlib import Path

import pytest
import torch
from bare_machine import needed

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow  # environments are made, and things are built
ASK = """
import shutil, torch, grokfused
assert not any(map(shutil.which, ("c++", "g++", "cc", "gcc", "clang", "nvcc")))
param = torch.ones(1000, requires_grad=True)
for backend in ("native", "reference"):
    twin = param.detach().clone().requires_grad_()
    twin.grad = torch.linspace(-1, 1, 1000)
    grokfused.GrokAdamW([twin], backend=backend).step()
    print(grokfused.__file__, grokfused.info()["auto"]["cpu"], twin.detach().double().sum().item())
"""


def environment(folder: Path) -> Path:
    """Makes an empty environment, and returns its Python."""
    venv.create(folder, with_pip=False, symlinks=True)
    return folder / "bin" / "python"


def shared(folder: Path, *distributions: str) -> Path:
    """Links what distributions have installed here into a folder, as a second torch would take a gigabyte."""
    folder.mkdir()
    for name in needed(distributions):
        for file in metadata.files(name) or []:
            top = Path(metadata.distribution(name).locate_file(file.parts[0]))
            if file.parts[0] != ".." and not (folder / file.parts[0]).exists():
                (folder / file.parts[0]).symlink_to(top)
    return folder


def alone(python: Path, *command: str, path: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Runs Python with no program on the PATH."""
    bare = {"PATH": str(python.parent), "HOME": os.environ.get("HOME", "/"), "PYTHONPATH": str(path), **more}
    return subprocess.run([python, *command], cwd=python.parent, env=bare, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel() -> Path:
    """The wheel of `make wheel`, which compiles nothing that `make` has compiled."""
    # What the environment holds is not the test's business: `make test-all` has made it.
    command = [
        "make",
        "wheel",
        *(f"--assume-old=.venv/{name}" for name in (".built", ".auditwheel", ".installed")),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (found,) = (ROOT / "dist").glob(f"grokfused-*-cp3{sys.version_info[1]}-cp3{sys.version_info[1]}-*.whl")
    return found


def test_the_wheel_steps_in_an_empty_environment_without_a_compiler(wheel, tmp_path) -> None:
    assert re.search(r"-manylinux_2_\d+_x86_64\.whl$|-manylinux_2_\d+_aarch64\.whl$", wheel.name)
    python = environment(tmp_path / "empty")
    site = next((tmp_path / "empty" / "lib").glob("python*/site-packages"))
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel]
    # With a PYTHONPATH that names this folder, pip would find the package installed.
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(install, check=True, capture_output=True, env=environ)
    done = alone(python, "-c", ASK, path=shared(tmp_path / "shared", "torch", "numpy"))
    assert done.returncode == 0, done.stderr
    native, reference = (line.split() for line in done.stdout.splitlines())
    assert Path(native[0]).is_relative_to(site)
    assert native[1:] == reference[1:]
    assert native[1] == "native"
    assert not list(site.glob("grokfused.libs/*torch*")), "torch's libraries stay torch's"


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """The sdist, unpacked."""
    folder = tmp_path_factory.mktemp("source")
    make = f"import setuptools.build_meta as b; print(b.build_sdist({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", make], cwd=ROOT, capture_output=True, text=True, check=True)
    with tarfile.open(folder / done.stdout.splitlines()[-1]) as packed:
        packed.extractall(folder, filter="data")
    (unpacked,) = folder.glob("grokfused-*/")
    return unpacked


def test_the_sdist_holds_all_that_is_compiled(source) -> None:
    def files(root: Path) -> set[str]:
        return {path.relative_to(root).as_posix() for path in (root / "csrc").rglob("*") if path.is_file()}

    assert files(source) == files(ROOT)
    assert {path.name for path in source.glob("setup*.py")} == {path.name for path in ROOT.glob("setup*.py")}
    assert not (source / "tests").exists()


def test_without_torch_the_build_stops_and_says_what_to_do(source, tmp_path) -> None:
    python = environment(tmp_path / "empty")
    tools = shared(tmp_path / "tools", "setuptools", "wheel", "pybind11", "ninja")
    done = alone(python, str(source / "setup.py"), "-q", "bdist_wheel", "-d", str(tmp_path), path=tools)
    assert done.returncode != 0
    assert "No module named 'torch'" in done.stderr
    assert "pip install --no-build-isolation" in done.stderr
    assert not list(tmp_path.glob("*.whl"))


def test_without_native_code_only_when_that_is_asked_for(source, tmp_path) -> None:
    python = environment(tmp_path / "empty")
    tools = shared(tmp_path / "tools", "setuptools", "wheel")
    command = (str(source / "setup.py"), "-q", "bdist_wheel", "-d", str(tmp_path))
    done = subprocess.run(
        [python, *command],
        cwd=source,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(tools), "GROKFUSED_NATIVE": "0"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name.partition("-py3-")[2] for path in tmp_path.glob("*.whl")] == ["none-any.whl"]


def test_an_isolated_build_finds_the_torch_it_is_for() -> None:
    """pip hides the environment; its folder of packages is where sysconfig says."""
    site = Path(torch.__file__).parent.parent
    code = f"""
import setuptools, sys, sysconfig
sys.path.remove({str(site)!r})
sysconfig.get_path = lambda name: {str(site)!r}
import setup_torch
assert setup_torch.importlib.util.find_spec("torch") is None
setup_torch.reveal()
import torch
print(torch.__file__, sys.path.index({str(site)!r}) == len(sys.path) - 1)
"""
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == [torch.__file__, "True"]
