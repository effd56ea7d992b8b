"""What it takes to add a filter with an array of its own, in planes: four files, in a copy of the project."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A filter that adds the gradient of two steps before: h = ring of the last two gradients; g = g + lamb * h.
EDITS = {
    "grokfused/backends/reference.py": {
        'GRAD_FILTERS = {"ema": ema,': """def echo(values, scalars):
    return {"grad": values["grad"] + scalars.lamb * values["echo_ring"], "echo_ring": values["grad"]}


GRAD_FILTERS = {"echo": echo, "ema": ema,""",
    },
    "grokfused/step/grad_filter.py": {
        "FILTERS = {": """FILTERS = {"echo": Filter(states={"echo_ring": 2}), """,
    },
    "csrc/step/grad_filter.h": {
        "template <class Use>\nvoid with_grad_filter": """struct EchoRing {
  static constexpr StateRow kRow{"echo_ring", false, 2};
  template <class Real>
  struct Value {
    Real echo_ring = 0;
    static constexpr auto kField = &Value::echo_ring;
  };
};
struct Echo {
  using States = StateRows<EchoRing>;
  template <class Element, class Scalars>
  static GROK_HD void apply(Element& element, const Scalars& scalars) {
    const auto before = element.echo_ring;
    element.echo_ring = element.grad;
    element.grad = element.grad + scalars.lamb * before;
  }
};

template <class Use>
void with_grad_filter""",
        '  if (name == "ema")': """  if (name == "echo") return use(Echo{});
  if (name == "ema")""",
    },
    "triton_kernels/grad_filter.py": {
        '"ema": 1}': '"ema": 1, "echo": 2}\nECHO = tl.constexpr(2)',
        'ARRAYS = ("grad_ema",)\n(GRAD_EMA_AT,) =': """ARRAYS = ("grad_ema", "echo_ring")
GRAD_EMA_AT, ECHO_RING_AT =""",
        "    return grad\n\n\n": """    if FILTER == ECHO:
        ring = _ring(slice_, numbers, STATE)
        at = storage.pointers(ring, i, STATE, WHOLE)
        before, new = storage.load(at, read, STATE, EVERY), grad
        grad = grad + tl.load(numbers + columns.LAMB) * before
        storage.store(at, mask.masked(new, kept, MASK), drawn, written, STATE, STOCHASTIC, EVERY)
    return grad


@triton.jit
def _ring(slice_, numbers, STATE: tl.constexpr):
    step, size = tl.load(numbers + columns.STEP), tl.load(slice_ + columns.SIZE)
    return storage.plane(tl.load(slice_ + ECHO_RING_AT), 2, step, size, STATE)


""",
        "        storage.clear(at, dirty, STATE)": """        storage.clear(at, dirty, STATE)
    if FILTER == ECHO:
        storage.clear(storage.pointers(_ring(slice_, numbers, STATE), i, STATE, WHOLE), dirty, STATE)""",
    },
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the project with the filter in it, built."""
    folder = tmp_path_factory.mktemp("copy") / "grokfused"
    skipped = shutil.ignore_patterns(".*", "build", "runs", "*.so", "__pycache__", "*.egg-info", "results")
    shutil.copytree(ROOT, folder, symlinks=True, ignore=skipped)
    for name, edits in EDITS.items():
        text = (folder / name).read_text()
        for old, new in edits.items():
            assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}"
            text = text.replace(old, new)
        (folder / name).write_text(text)
    build = [sys.executable, "setup.py", "build_ext", "--inplace"]
    only_cpu = {**os.environ, "CUDA_HOME": "", "GROKFUSED_REQUIRE_NATIVE": "1"}
    subprocess.run(build, cwd=folder, env=only_cpu, check=True, capture_output=True)
    return folder


def ran(folder: Path, *command: str, **environment: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(folder), **environment}
    shown = subprocess.run(
        [sys.executable, *command], cwd=folder / "tests", env=env, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stdout[-3000:] + shown.stderr[-3000:]
    return shown.stdout


COMPARE = """
import sys
from grokfused.lab.agreement import cases_of, compare
grid = [case for case in cases_of(sys.argv[1], "cpu") if case.grad_filter == "echo"]
few = grid if sys.argv[1] == "native" else grid[::9]
assert len(few) >= 5
wrong = compare(sys.argv[1], "cpu", few, lambda: None)
assert not wrong, wrong
"""
SPREAD = """
import copy, io, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from grokfused import GrokAdamW
from grokfused.lab.agreement import differing_bits
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
def run(spread, backend):
    plain = torch.randn(9, 7, generator=torch.Generator().manual_seed(1))
    param = (distribute_tensor(plain, mesh, [Shard(1)]) if spread else plain).requires_grad_()
    optimizer = GrokAdamW([param], lr=0.1, grad_filter="echo", backend=backend)
    for step in range(6):
        grad = torch.randn(9, 7, generator=torch.Generator().manual_seed(step))
        param.grad = distribute_tensor(grad, mesh, [Shard(1)]) if spread else grad
        if step == 3:  # through a checkpoint
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            optimizer = GrokAdamW([param], lr=0.1, grad_filter="echo", backend=backend)
            optimizer.load_state_dict(torch.load(file, weights_only=not spread))
        optimizer.step()
    ring = optimizer.state[param]["echo_ring"]
    assert ring.shape == (2, 9, 7)
    if spread:
        assert isinstance(ring, DTensor) and ring.placements == (Shard(2),)
        ring, param = ring.full_tensor(), param.full_tensor()
    return ring, param.detach()
truth = run(False, "reference")
for spread in (False, True):
    for a, b in zip(run(spread, "native"), truth):
        assert differing_bits(a, b) == 0
"""


def test_a_filter_with_planes_takes_four_files() -> None:
    assert len(EDITS) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", "triton"])
def test_all_columns_agree_on_it(copy, backend) -> None:
    ran(copy, "-c", COMPARE, backend, TRITON_INTERPRET="1")


@pytest.mark.slow
def test_its_planes_are_spread_saved_and_loaded(copy) -> None:
    ran(copy, "-c", SPREAD)


@pytest.mark.slow
def test_the_tests_of_the_tables_take_it_up(copy) -> None:
    tests = ["test_contract.py", "test_cuda_kernel.py", "test_mask.py", "test_checkpoints.py"]
    ran(
        copy,
        "-m",
        "pytest",
        "-q",
        "-x",
        *tests,
        "-m",
        "not slow",
        "-k",
        "not compiles and not sm_ and not fused",
    )
