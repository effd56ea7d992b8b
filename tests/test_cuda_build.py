"""Building the CUDA kernels where that fails, and finding what builds them; scripts act the compilers."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from test_build import ROOT, copied

NVCC = """#!/bin/sh
case "$*" in
*--version*) echo "Cuda compilation tools, release ${RELEASE%.*}, V$RELEASE"; exit;;
*--dryrun*) echo "#$ _HERE_={home}/bin" >&2; echo "#$ TOP={home}/bin/.." >&2; exit;;
*--list-gpu-code*) printf 'sm_80\\nsm_86\\nsm_90\\nsm_90a\\n'; exit;;
esac
"""
# What it writes is what it was told.
WRITES = """for word; do [ "$last" = -o ] && echo "$*" >"$word"; last=$word; done
"""
# It links nothing but the C library's: no libcudart.
CXX = f"""#!/bin/sh
case "$*" in
*-version*|*-dump*) exec c++ "$@";;
*-lcudart*) echo 'ld: cannot find -lcudart' >&2; exit 1;;
esac
{WRITES}"""
# What setup.py is run by: a torch that knows CUDA.
BUILD = """
import runpy, sys, torch
torch.version.cuda = "13.0"
sys.argv = ["setup.py", "-q", *sys.argv[1:]]
runpy.run_path("setup.py", run_name="__main__")
"""


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def toolkit(home: Path, rest: str = WRITES) -> Path:
    """Makes a toolkit and returns its folder; what its nvcc does with sources is `rest`."""
    script(home / "bin" / "nvcc", NVCC.replace("{home}", str(home)) + rest)
    return home


def environment(**others: str) -> dict[str, str]:
    names = ("PYTHONPATH", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "GROKFUSED_REQUIRE_NATIVE")
    return {**{name: value for name, value in os.environ.items() if name not in names}, **others}


@pytest.fixture
def setup_cuda() -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_cuda", ROOT / "setup_cuda.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


FAILS = "echo 'nvcc fatal: out of luck' >&2; exit 1\n"
FAILURES = [
    pytest.param("13.0.88", WRITES, "ld: cannot find -lcudart", id="no libcudart"),
    pytest.param("13.0.88", FAILS, "nvcc fatal: out of luck", id="nvcc fails", marks=pytest.mark.slow),
]


def build(source: Path, compilers: Path, *command: str, **settings: str) -> subprocess.CompletedProcess[str]:
    cxx = str(script(compilers / "c++", CXX))
    env = environment(CXX=cxx, CC=cxx, TORCH_DONT_CHECK_COMPILER_ABI="1", MAX_JOBS="2", **settings)
    return subprocess.run(
        [sys.executable, "-c", BUILD, *command], cwd=source, env=env, capture_output=True, text=True
    )


@pytest.mark.parametrize(("release", "rest", "words"), FAILURES)
def test_where_cuda_cannot_be_built_the_cpus_kernels_are(release, rest, words, tmp_path) -> None:
    source, home = copied(tmp_path / "source"), toolkit(tmp_path / "toolkit", rest)
    done = build(source, tmp_path, "build_ext", "--inplace", CUDA_HOME=str(home), RELEASE=release)
    assert done.returncode == 0, done.stderr
    assert len(list((source / "grokfused").glob("_C*.so"))) == 1
    error = (source / "grokfused" / "_build_error.txt").read_text()
    assert words in error
    assert not re.search(r"^\[\d+/\d+\]", error, re.MULTILINE)  # what was compiled well
    if rest == WRITES:
        (told,) = (path.read_text() for path in (source / "build").rglob("rows.o") if "cuda" in path.parts)
        assert '-DGROK_NVCC="13.0.88" -DGROK_NVCC_FLAGS="-std=c++17 -O3 --fmad=false"' in told
        assert '-DGROK_CUDA_ARCHITECTURES="8.0;8.6;9.0+PTX"' in told
        assert "nvcc" not in re.search(r'-DGROK_FLAGS="(.*?)"', told)[1]


@pytest.mark.slow
@pytest.mark.parametrize("required", [False, True], ids=["as it comes", "required"])
def test_under_another_cuda_a_wheel_is_built_that_says_why_or_none_if_told_to(required, tmp_path) -> None:
    source, home = copied(tmp_path / "source"), toolkit(tmp_path / "toolkit")
    settings = {"CUDA_HOME": str(home), "RELEASE": "12.4.131", "GROKFUSED_REQUIRE_NATIVE": str(int(required))}
    done = build(source, tmp_path, "build", **settings)
    assert bool(done.returncode) == required
    told = f"{home} is CUDA 12.4.131, and this torch is of CUDA 13.0: their first numbers must be"
    assert told in done.stderr
    made = list((source / "build").glob("lib*/grokfused/_C*.so"))
    assert len(made) == (not required)
    if not required:
        assert (made[0].parent / "_build_error.txt").read_text().startswith(told)


# --- finding the toolkit ---------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["a script", "a link", "a script in CUDA_HOME", "CUDA_HOME"])
def test_the_toolkit_is_that_of_the_real_nvcc(way, setup_cuda, tmp_path, monkeypatch) -> None:
    home = toolkit(tmp_path / "toolkit")
    monkeypatch.setenv("RELEASE", "13.0.88")
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    elsewhere = tmp_path / "elsewhere" / "bin"
    if way == "a link":
        elsewhere.mkdir(parents=True)
        (elsewhere / "nvcc").symlink_to(home / "bin" / "nvcc")
    else:
        script(elsewhere / "nvcc", f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n')
    if "CUDA_HOME" in way:
        monkeypatch.setenv("CUDA_HOME", str(home if way == "CUDA_HOME" else elsewhere.parent))
    else:
        monkeypatch.setenv("PATH", f"{elsewhere}:{os.environ['PATH']}")
    assert setup_cuda.toolkit_of(setup_cuda.find_nvcc()) == (home, "13.0.88")


def test_a_toolkit_that_is_not_there_is_told(setup_cuda, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"no nvcc was found in {tmp_path}/bin, as CUDA_HOME says"):
        setup_cuda.find_nvcc()
    nvcc = script(tmp_path / "bin" / "nvcc", "#!/bin/sh\nprintf 'broken \\377'; exit 1\n")
    with pytest.raises(setup_cuda.NoToolkit, match=f"{nvcc} belongs to no CUDA toolkit: .* it says 'broken"):
        setup_cuda.toolkit_of(setup_cuda.find_nvcc())
    monkeypatch.setenv("CUDA_HOME", "")
    with pytest.raises(setup_cuda.NoToolkit, match="empty, which leaves CUDA out"):
        setup_cuda.find_nvcc()


def test_what_is_compiled_for_is_what_nvcc_knows_and_is_recorded_in_numbers(
    setup_cuda, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("RELEASE", "12.0.1")
    found = setup_cuda.Toolkit(toolkit(tmp_path), "12.0.1")
    assert setup_cuda.architectures(found) == "8.0;8.6;9.0+PTX"
    flags = ["-gencode=arch=compute_120,code=sm_120", "-gencode=arch=compute_120,code=compute_120"]
    flags += ["-gencode=arch=compute_90a,code=sm_90a", "-gencode=arch=compute_75,code=sm_75"]
    assert setup_cuda.capabilities(flags) == "7.5;9.0a;12.0+PTX"
