"""What holds on GPUs, without one: tensors of the CPU act those of two GPUs, or the CPU numbers its steps."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from acted_devices import CUDA, ActedDevices
from stepping import BACKENDS, OPTIONS, new_param, operators
from test_clipping import LIMIT, NORMS, SCALE, model, set_grads
from torch import Tensor

from grokfused import GrokAdamW
from grokfused.lab.agreement import differing_bits
from grokfused.step import device_scalars, engine
from grokfused.step.clipping import Clip, divisor
from grokfused.step.members import with_grads
from grokfused.step.norm import total_norm

ROOT = Path(__file__).parent.parent


def stepped(count: int, **options) -> tuple[GrokAdamW, list[Tensor]]:
    """Returns an optimizer that has taken a step, and its parameters, which keep their gradients."""
    params = [new_param(5, seed=seed) for seed in range(count)]
    optimizer = GrokAdamW(params, **OPTIONS, **options)
    for param in params:
        param.grad = torch.ones(5)
    optimizer.step()
    return optimizer, params


def arrays(optimizer: GrokAdamW, param: Tensor) -> dict[str, Tensor]:
    """Returns what lies on a parameter's device: all but the step counter."""
    states = {name: state for name, state in optimizer.state[param].items() if name != "step"}
    return {"param": param, "grad": param.grad, **states}


# --- where tensors lie -----------------------------------------------------------------------------------


def walk(optimizer: GrokAdamW, acted: ActedDevices, monkeypatch, asked: list[Tensor]):
    def choose(name: str, param: Tensor, dense: bool) -> str:
        asked.append(param)
        return ("reference", "triton")[len(asked) - 1]

    return acted.walk(optimizer, monkeypatch, choose)


def test_the_walk_asks_for_each_gpu_by_itself(monkeypatch) -> None:
    """What was chosen for one GPU says nothing of the next: there may be code for some only."""
    (optimizer, params), acted, asked = stepped(4), ActedDevices(), []
    for place, param in enumerate(params):
        acted.put(arrays(optimizer, param).values(), CUDA[place % 2])
    found = walk(optimizer, acted, monkeypatch, asked)
    assert found.unfit == []
    assert [each is param for each, param in zip(asked, params[:2], strict=True)] == [True, True]
    assert [kind[0] for kind in found.kinds] == ["reference", "triton"]


@pytest.mark.parametrize("name", ["grad", "exp_avg", "exp_avg_sq", "grad_ema"])
def test_what_lies_on_another_gpu_than_its_parameter_is_not_stepped(name, monkeypatch) -> None:
    """Python looks at it by name, and raises: a kernel would read memory that its GPU does not have."""
    (optimizer, params), acted = stepped(3), ActedDevices()
    for param in params:
        acted.put(arrays(optimizer, param).values(), CUDA[0])
    assert walk(optimizer, acted, monkeypatch, []).unfit == []
    acted.put([arrays(optimizer, params[1])[name]], CUDA[1])
    assert walk(optimizer, acted, monkeypatch, []).unfit == [1]


# --- what a graph would hold -----------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_later_step_writes_or_frees_what_a_captured_one_reads(backend, monkeypatch) -> None:
    """All that a graph captures is made for the step that is captured, and belongs to no other one."""
    monkeypatch.setattr(engine, "NUMBERING_DEVICES", ("cpu",))
    optimizer, params = stepped(4, capturable=True, max_grad_norm=0.5, backend=backend)
    captured = engine.ready(with_grads(optimizer), {})
    (bucket,) = captured._buckets
    numbers = [bucket[-1], bucket[-2]["grad_scale"]]
    before = [each.clone() for each in numbers]
    optimizer.param_groups[0]["lr"] = 0.5
    params[0].grad = None
    later = engine.ready(with_grads(optimizer), {})
    (others,) = later._buckets
    later.run()
    for mine, other in zip(numbers, [others[-1], others[-2]["grad_scale"]], strict=True):
        assert mine.untyped_storage().data_ptr() != other.untyped_storage().data_ptr()
    assert not any(map(differing_bits, numbers, before))


# --- clipping ---------------------------------------------------------------------------------------------


SCALES = [
    None,
    torch.tensor([3072.7]),
    torch.tensor(3072.7, dtype=torch.float64),
    torch.tensor(0.3).bfloat16(),
]


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("of_norm", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_native_code_derives_what_divides_the_gradients_alike(dtype, of_norm, scale, monkeypatch) -> None:
    monkeypatch.setattr(engine, "NUMBERING_DEVICES", ("cpu",))
    params = model(dtype)
    set_grads(params, 0)
    optimizer = GrokAdamW(params, **OPTIONS, max_grad_norm=LIMIT, backend="native")
    drawn = torch.rand(50, generator=torch.Generator().manual_seed(0)).mul(8).sub(4).exp()
    for value in (*NORMS, *drawn.tolist()):
        norm = torch.tensor(value, dtype=of_norm)
        monkeypatch.setattr(engine, "total_norm", lambda grads, norm=norm: norm)
        (bucket,) = engine.ready(
            with_grads(optimizer), {"grad_scale": scale} if scale is not None else {}
        )._buckets
        expected = divisor(Clip(norm, LIMIT), scale).to(bucket[-1].dtype)
        assert not differing_bits(bucket[-2]["grad_scale"], expected)


# What says how a tensor is read, or takes memory: on a GPU it launches nothing.
NO_LAUNCH = {"aten::empty", "aten::detach", "aten::to", "aten::resolve_neg", "aten::reshape", "aten::view"}


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_where_the_device_numbers_steps_clipping_launches_nothing_but_the_norm(
    dtype, scaled, monkeypatch
) -> None:
    """Beside it there are two kernels: that of the scalars, and that of the step."""
    monkeypatch.setattr(engine, "NUMBERING_DEVICES", ("cpu",))
    params = model(dtype)
    set_grads(params, 0)
    optimizer = GrokAdamW(params, **OPTIONS, max_grad_norm=LIMIT, capturable=not scaled, backend="native")
    if scaled:
        optimizer.grad_scale, optimizer.found_inf = torch.tensor([SCALE]), torch.zeros(1)
    optimizer.step()

    def launched(call: Callable[[], object]) -> list[str]:
        return [name for name in operators(call) if name not in NO_LAUNCH]

    with torch.no_grad():
        norm = launched(lambda: total_norm([param.grad for param in params]))
    assert norm
    assert launched(optimizer.step) == sorted([*norm, "grokfused::native"])


# --- what the host asks, and copies ----------------------------------------------------------------------


def test_a_set_of_gradients_that_alternates_asks_the_device_for_nothing(monkeypatch) -> None:
    """As in a mixture of experts: no counter is read, nothing is made anew."""
    monkeypatch.setattr(engine, "NUMBERING_DEVICES", ("cpu",))
    optimizer, params = stepped(20, capturable=True, backend="native")
    found = set()
    for number in range(4):
        for place, param in enumerate(params):
            param.grad = torch.ones(5) if place % 2 == number % 2 else None
        found |= {*operators(optimizer.step)}
    assert found == {"aten::empty", "grokfused::native"}


def test_numbers_go_to_a_gpu_from_pinned_memory_without_waiting(monkeypatch) -> None:
    """Where a backend of Python's steps: native code gives them to its kernel as an argument."""
    asked = []
    real = torch.tensor
    to = Tensor.to

    def tensor(values: object, *, pin_memory: bool = False, **others) -> Tensor:
        asked.append(("pinned", pin_memory))
        return real(values, **others)

    def moved(self: Tensor, device: torch.device, *, non_blocking: bool = False) -> Tensor:
        asked.append((str(device), "without waiting" if non_blocking else "waiting"))
        return to(self, "cpu")

    monkeypatch.setattr(torch, "tensor", tensor)
    monkeypatch.setattr(Tensor, "to", moved)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    columns = device_scalars._on_device([[1.0, 2.0], [3.0, 4.0]], torch.device("cuda"))
    assert asked == [("pinned", True), ("cuda", "without waiting")]
    assert [column.tolist() for column in columns] == [[1.0, 2.0], [3.0, 4.0]]


def test_a_launch_of_the_cuda_kernels_allocates_and_copies_nothing() -> None:
    """What it reads travels as its argument: no memory of another allocator, no copy that waits."""
    sources = [path for path in (ROOT / "csrc" / "cuda").iterdir() if path.suffix in (".cu", ".h")]
    calls = {
        call for path in sources for call in re.findall(r"\b(?:cuda[A-Z]\w*|aoti_\w+)\(", path.read_text())
    }
    assert calls <= {
        "aoti_torch_get_current_cuda_stream(",
        "cudaDeviceGetAttribute(",
        "cudaGetErrorString(",
        "cudaGetLastError(",
        "cudaStreamIsCapturing(",
    }
