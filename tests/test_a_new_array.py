"""What it takes to add a filter with arrays of its own, in planes or one value per block: four files each.

Both are added to one copy of the project, which is built.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# A filter that adds the gradient of two steps before: h = ring of the last two gradients; g = g + lamb * h.
ECHO = {
    "grokfused/backends/reference.py": {
        'GRAD_FILTERS = {"ema": ema,': """def echo(values, scalars):
    return {"grad": values["grad"] + scalars.lamb * values["echo_ring"], "echo_ring": values["grad"]}


GRAD_FILTERS = {"echo": echo, "ema": ema,""",
    },
    "grokfused/step/grad_filter.py": {
        "FILTERS = {": """FILTERS = {
    "echo": Filter({"echo_ring": Memory(WINDOW)}),""",
    },
    "csrc/step/grad_filter.h": {
        "template <class Use>\nvoid with_grad_filter": """struct EchoRing {
  static constexpr StateRow kRow{"echo_ring", kWindow};
  template <class Real>
  struct Value {
    Real echo_ring = 0;
    static constexpr auto kField = &Value::echo_ring;
  };
};
struct Echo {
  using States = StateRows<EchoRing>;
  template <class Element, class Scalars>
  static GROK_HD void apply(Element& element, const Scalars& scalars, Format) {
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
        '"mean": 2}': '"mean": 2, "echo": 3}\nECHO = tl.constexpr(3)',
        '"grad_sum")\nGRAD_EMA_AT, GRAD_WINDOW_AT, GRAD_SUM_AT =': """"grad_sum", "echo_ring")
GRAD_EMA_AT, GRAD_WINDOW_AT, GRAD_SUM_AT, ECHO_RING_AT =""",
        "    return grad\n\n\n": """    if FILTER == ECHO:
        ring = _ring(slice_, numbers, window, STATE)
        at = storage.pointers(ring, i, STATE, WHOLE)
        before, new = storage.load(at, read, STATE, EVERY), grad
        grad = grad + tl.load(numbers + columns.LAMB) * before
        storage.store(at, mask.masked(new, kept, MASK), drawn, written, STATE, STOCHASTIC, EVERY)
    return grad


@triton.jit
def _ring(slice_, numbers, window, STATE: tl.constexpr):
    place = windows.place_in(tl.load(numbers + columns.STEP), window)
    return windows.plane(tl.load(slice_ + ECHO_RING_AT), place, tl.load(slice_ + columns.SIZE), STATE)


""",
        "        storage.clear(at, dirty, STATE)": """        storage.clear(at, dirty, STATE)
    if FILTER == ECHO:
        ring = _ring(slice_, numbers, window, STATE)
        storage.clear(storage.pointers(ring, i, STATE, WHOLE), dirty, STATE)""",
    },
}

# The filter "ema", whose memory is stored by a scale that blocks share: the power of two below its largest.
SCALED = {
    "grokfused/backends/reference.py": {
        'GRAD_FILTERS = {"echo"': """def scaled(values, scalars):
    slow = scalars.alpha * values["slow"] + scalars.alpha_weight * values["grad"]
    return {"grad": values["grad"] + scalars.lamb * slow, "slow": slow}


GRAD_FILTERS = {"scaled": scaled, "echo\"""",
        "SHARED: dict[str, blocks.Shared] = {}": """def of_scale(values):
    scale, slow = values["slow_scale"], values["slow"]
    bits, mask = (torch.int64, 0x7FF << 52) if scale.dtype is torch.float64 else (torch.int32, 0xFF << 23)
    scale = (scale.view(bits) & mask).view(scale.dtype)
    return {"slow": torch.where(scale > 0, slow / scale, 0), "slow_scale": scale}


SHARED = {
    "slow_scale": blocks.Shared(
        states=("slow",),
        decode=lambda values: {"slow": values["slow"] * values["slow_scale"]},
        measure=lambda values: values["slow"].abs(),
        encode=of_scale,
    )
}""",
    },
    "grokfused/step/grad_filter.py": {
        'FILTERS = {\n    "echo"': """FILTERS = {
    "scaled": Filter({"slow": Memory(), "slow_scale": Memory(ONE_PER_BLOCK, of="real")}),
    "echo\"""",
        "WINDOW = -1 ": "ONE_PER_BLOCK, WINDOW = 0, -1 ",
    },
    "csrc/step/grad_filter.h": {
        "template <class Use>\nvoid with_grad_filter": """struct Slow {
  static constexpr StateRow kRow{"slow"};
  template <class Real>
  struct Value {
    Real slow = 0;
    static constexpr auto kField = &Value::slow;
  };
};
struct SlowScale {
  static constexpr StateRow kRow{"slow_scale", kOnePerBlock, Of::kReal};
  template <class Real>
  struct Value {
    Real slow_scale = 0;
    static constexpr auto kField = &Value::slow_scale;
  };
  template <class Element>
  static GROK_HD void decode(Element& element) {
    element.slow = element.slow * element.slow_scale;
  }
  template <class Element>
  static GROK_HD auto measure(const Element& element) {
    return element.slow < 0 ? -element.slow : element.slow;
  }
  template <class Element>
  static GROK_HD void encode(Element& element) {
    auto bits = bits_of(element.slow_scale);
    bits &= sizeof bits == 8 ? static_cast<decltype(bits)>(uint64_t{0x7ff} << 52) : 0x7f800000u;
    std::memcpy(&element.slow_scale, &bits, sizeof bits);
    element.slow = element.slow_scale > 0 ? element.slow / element.slow_scale : 0;
  }
};
struct Scaled {
  using States = StateRows<Slow, SlowScale>;
  template <class Element, class Scalars>
  static GROK_HD void apply(Element& element, const Scalars& scalars, Format) {
    element.slow = scalars.alpha * element.slow + scalars.alpha_weight * element.grad;
    element.grad = element.grad + scalars.lamb * element.slow;
  }
};

template <class Use>
void with_grad_filter""",
        '  if (name == "echo")': """  if (name == "scaled") return use(Scaled{});
  if (name == "echo")""",
    },
    "triton_kernels/grad_filter.py": {
        '"echo": 3}': '"echo": 3, "scaled": 4}\nSCALED = tl.constexpr(4)',
        '"echo_ring")': '"echo_ring", "slow", "slow_scale")',
        "ECHO_RING_AT =": "ECHO_RING_AT, SLOW_AT, SLOW_SCALE_AT =",
        "    if FILTER == ECHO:\n"
        "        ring = _ring(slice_, numbers, window, STATE)\n        at =": """    if FILTER == SCALED:
        size = tl.load(slice_ + columns.SIZE)
        used = blocks.any_kept(kept, i, size)
        at = storage.pointers(tl.load(slice_ + SLOW_AT), i, STATE, WHOLE)
        scale_at = blocks.pointers(tl.load(slice_ + SLOW_SCALE_AT), i)
        before = storage.load(at, used, STATE, False) * tl.load(scale_at, mask=used, other=0.0)
        grad, slow = ema(
            grad,
            before,
            tl.load(numbers + columns.ALPHA),
            tl.load(numbers + columns.ALPHA_WEIGHT),
            tl.load(numbers + columns.LAMB),
        )
        if MASK == mask.FREEZE:
            slow = tl.where(kept, slow, before)
        else:
            slow = mask.masked(slow, kept, MASK)
        slow = tl.where(used, slow, 0.0)
        bits = blocks.largest(tl.abs(slow)).to(tl.uint32, bitcast=True)
        scale = (bits & 0x7F800000).to(tl.float32, bitcast=True)
        tl.store(scale_at, scale, mask=used & (i % blocks.BLOCK == 0))
        slow = tl.where(scale > 0, tl.div_rn(slow, scale), 0.0)
        storage.store(at, slow, drawn, used, STATE, STOCHASTIC, False)
    if FILTER == ECHO:
        ring = _ring(slice_, numbers, window, STATE)
        at =""",
        "import columns, mask, storage": "import blocks, columns, mask, storage",
        "    if FILTER == ECHO:\n"
        "        ring = _ring(slice_, numbers, window, STATE)\n        storage": """    if FILTER == SCALED:
        storage.clear(storage.pointers(tl.load(slice_ + SLOW_AT), i, STATE, WHOLE), dirty, STATE)
    if FILTER == ECHO:
        ring = _ring(slice_, numbers, window, STATE)
        storage""",
    },
}
FILTERS = {"echo": ECHO, "scaled": SCALED}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of the project with the filter in it, built."""
    folder = tmp_path_factory.mktemp("copy") / "grokfused"
    skipped = shutil.ignore_patterns(".*", "build", "runs", "*.so", "__pycache__", "*.egg-info", "results")
    shutil.copytree(ROOT, folder, symlinks=True, ignore=skipped)
    for name, edits in (*ECHO.items(), *SCALED.items()):
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
grid = [case for case in cases_of(sys.argv[1], "cpu") if case.grad_filter == sys.argv[2]]
few = grid if sys.argv[1] == "native" else grid[::9]
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
    optimizer = GrokAdamW([param], lr=0.1, grad_filter=sys.argv[1], window_size=2, backend=backend)
    for step in range(6):
        grad = torch.randn(9, 7, generator=torch.Generator().manual_seed(step))
        param.grad = distribute_tensor(grad, mesh, [Shard(1)]) if spread else grad
        if step == 3:  # through a checkpoint
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            optimizer = GrokAdamW([param], lr=0.1, grad_filter=sys.argv[1], window_size=2, backend=backend)
            optimizer.load_state_dict(torch.load(file, weights_only=not spread))
        optimizer.step()
    state = optimizer.state[param]
    if sys.argv[1] == "scaled":  # 63 elements: one block
        assert state["slow_scale"].shape == (1,) and type(state["slow_scale"]) is torch.Tensor
        slow = optimizer.state_dict()["state"][0]
        assert "slow_scale" not in slow
        assert torch.equal(slow["slow"], state["slow"] * state["slow_scale"].item())
        memory = state["slow"]
    else:
        memory = state["echo_ring"]
        assert memory.shape == (2, 9, 7)
    if spread:
        assert isinstance(memory, DTensor) and memory.placements == (Shard(memory.dim() - 1),)
        memory, param = memory.full_tensor(), param.full_tensor()
    return memory, param.detach()
truth = run(False, "reference")
for spread in (False, True):
    for a, b in zip(run(spread, "native"), truth):
        assert differing_bits(a, b) == 0
"""


@pytest.mark.parametrize("grad_filter", FILTERS)
def test_a_filter_takes_four_files(grad_filter) -> None:
    assert len(FILTERS[grad_filter]) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["native", "triton"])
@pytest.mark.parametrize("grad_filter", FILTERS)
def test_all_columns_agree_on_it(copy, grad_filter, backend) -> None:
    ran(copy, "-c", COMPARE, backend, grad_filter, TRITON_INTERPRET="1")


@pytest.mark.slow
@pytest.mark.parametrize("grad_filter", FILTERS)
def test_its_arrays_are_spread_saved_and_loaded(copy, grad_filter) -> None:
    ran(copy, "-c", SPREAD, grad_filter)


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
