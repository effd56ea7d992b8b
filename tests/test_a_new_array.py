"""What it takes to add a filter with an array of its own: four files.

It is added to a copy of the project, which is built.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A filter that adds the last gradient: g = g + lamb * h, where h is the gradient of the step before.
ECHO = {
    "grokfused/backends/reference.py": {
        'GRAD_FILTERS = {"ema": ema,': """def echo(values, scalars):
    return {"grad": values["grad"] + scalars.lamb * values["last_grad"], "last_grad": values["grad"]}


GRAD_FILTERS = {"echo": echo, "ema": ema,""",
    },
    "grokfused/step/grad_filter.py": {
        "FILTERS = {": """FILTERS = {
    "echo": Filter({"last_grad": Memory(stays=False)}),""",
    },
    "csrc/step/grad_filter.h": {
        "template <class Use>\nvoid with_grad_filter": """struct LastGrad {
  static constexpr StateRow kRow{"last_grad"};
  template <class Real>
  struct Value {
    Real last_grad = 0;
    static constexpr auto kField = &Value::last_grad;
  };
};
struct Echo {
  static constexpr std::string_view kName = "echo";
  using States = StateRows<LastGrad>;
  template <class Element, class Scalars>
  static GROK_HD void apply(Element& element, const Scalars& scalars, Format) {
    const auto before = element.last_grad;
    element.last_grad = element.grad;
    element.grad = element.grad + scalars.lamb * before;
  }
};

template <class Use>
void with_grad_filter""",
        "  if (name == Ema::kName)": """  if (name == Echo::kName) return use(Echo{});
  if (name == Ema::kName)""",
    },
    "triton_kernels/grad_filter.py": {
        '"mean": 2}': '"mean": 2, "echo": 3}\nECHO = tl.constexpr(3)',
        "tl.constexpr(1 << EMA.value)": "tl.constexpr(1 << EMA.value | 1 << ECHO.value)",
        '"grad_sum")\nGRAD_EMA_AT, GRAD_WINDOW_AT, GRAD_SUM_AT =': """"grad_sum", "last_grad")
GRAD_EMA_AT, GRAD_WINDOW_AT, GRAD_SUM_AT, LAST_GRAD_AT =""",
        "    return at\n": """    if FILTER == ECHO:
        at = tl.load(slice_ + LAST_GRAD_AT)
    return at
""",
        "    return grad, state\n": """    if FILTER == ECHO:
        grad, state = grad + tl.load(numbers + columns.LAMB) * state, grad
    return grad, state
""",
    },
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the project with the filter in it, built."""
    folder = tmp_path_factory.mktemp("copy") / "grokfused"
    skipped = shutil.ignore_patterns(
        ".*", "build", "dist", "runs", "*.so", "__pycache__", "*.egg-info", "results"
    )
    shutil.copytree(ROOT, folder, symlinks=True, ignore=skipped)
    for name, edits in ECHO.items():
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
few = grid if sys.argv[1] == "native" else grid[::11]
assert len(few) >= 5
wrong = compare(sys.argv[1], "cpu", few, lambda: None)
assert not wrong, wrong
"""
SPREAD = """
import copy, io, sys, torch, torch.distributed as dist
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
    memory = optimizer.state[param]["last_grad"]
    if spread:
        assert isinstance(memory, DTensor) and memory.placements == (Shard(1),)
        memory, param = memory.full_tensor(), param.full_tensor()
    return memory, param.detach()
truth = run(False, "reference")
for spread in (False, True):
    for a, b in zip(run(spread, "native"), truth):
        assert differing_bits(a, b) == 0
"""


def test_a_filter_takes_four_files() -> None:
    assert len(ECHO) == 4


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", "triton"])
def test_all_columns_agree_on_it(copy, backend) -> None:
    ran(copy, "-c", COMPARE, backend, TRITON_INTERPRET="1")


@pytest.mark.slow
def test_its_array_is_spread_saved_and_loaded(copy) -> None:
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
