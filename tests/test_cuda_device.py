"""On an NVIDIA GPU: streams, graphs, one launch, no waiting, and tensors beyond 32-bit indices."""

from contextlib import nullcontext

import pytest
import torch
from on_a_gpu import captured, waiting_is_an_error
from stepping import OPTIONS, values
from torch.profiler import ProfilerActivity, profile

from grokfused import GrokAdam, GrokAdamW
from grokfused.lab.agreement import differing_bits
from grokfused.lab.bench.probes import probe
from grokfused.lab.training import Config, Experiment
from grokfused.step.norm import total_norm

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


def differences(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> dict[str, int]:
    assert a.keys() == b.keys()
    return {name: n for name in a if (n := differing_bits(a[name].cpu(), b[name].cpu()))}


def made(count: int, device: str = "cuda", **options) -> GrokAdamW:
    """Returns an optimizer of `count` small parameters with gradients."""
    random = torch.Generator().manual_seed(count)
    params = [torch.randn(1 + t % 37, generator=random).to(device).requires_grad_() for t in range(count)]
    for param in params:
        param.grad = torch.randn(param.shape, generator=random).to(device)
    return GrokAdamW(params, **OPTIONS, backend="native", **options)


def kernels_of(optimizer: torch.optim.Optimizer, name: str = "adamw_kernel") -> list[str]:
    """Returns the names of the kernels that one step launches, and that have this name in them."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as recorded:
        optimizer.step()
        torch.cuda.synchronize()
    on_gpu = (event for event in recorded.events() if event.device_type == torch.autograd.DeviceType.CUDA)
    return [event.name for event in on_gpu if name in event.name]


@pytest.mark.parametrize("count", [1, 30, 31, 224, 225, 5000])
def test_a_launch_steps_up_to_224_tensors(count) -> None:
    optimizer = made(count)
    for _ in range(2):
        assert len(kernels_of(optimizer)) == -(-count // 224)


@pytest.mark.parametrize("options", [{"capturable": True}, {}], ids=["capturable", "loss scale"])
def test_a_schedule_neither_waits_nor_launches_more_than_three_kernels(options) -> None:
    on_gpu, on_cpu = made(100, **options), made(100, "cpu", **options)
    for number in range(4):
        for optimizer, device in ((on_gpu, "cuda"), (on_cpu, "cpu")):
            optimizer.param_groups[0]["lr"] = 1e-3 / (1 + number)
            if not options:
                optimizer.grad_scale = torch.tensor([1024.0], device=device)
                optimizer.found_inf = torch.zeros(1, device=device)
        with waiting_is_an_error() if number else nullcontext():
            on_gpu.step()
        on_cpu.step()
    assert differences(values(on_gpu), values(on_cpu)) == {}
    assert len(kernels_of(on_gpu, "")) <= 3


@pytest.mark.parametrize("options", [{"capturable": True}, {}], ids=["capturable", "loss scale"])
def test_clipping_launches_two_kernels_beside_the_norm(options) -> None:
    optimizer = made(100, **options, max_grad_norm=0.5)
    if not options:
        optimizer.grad_scale = torch.tensor([1024.0], device="cuda")
        optimizer.found_inf = torch.zeros(1, device="cuda")
    optimizer.step()
    kernels = kernels_of(optimizer, "")
    assert len(kernels_of(optimizer, "rows_kernel")) == len(kernels_of(optimizer)) == 1
    grads = [param.grad for param in optimizer.param_groups[0]["params"]]
    assert len(kernels) == 2 + probe(lambda: total_norm(grads), "cuda").launches


@pytest.mark.parametrize("count", [3, 1000])
@pytest.mark.parametrize("capturable", [False, True])
def test_steps_after_the_first_equal_the_cpu_and_never_wait(count, capturable) -> None:
    on_gpu, on_cpu = made(count, capturable=capturable), made(count, "cpu")
    for number in range(4):
        with waiting_is_an_error() if number else nullcontext():
            on_gpu.step()
        on_cpu.step()
    assert differences(values(on_gpu), values(on_cpu)) == {}


@pytest.mark.parametrize("capturable", [False, True])
def test_clipping_never_waits(capturable) -> None:
    on_gpu, on_cpu = made(400, capturable=capturable), made(400, "cpu")
    for optimizer in (on_gpu, on_cpu):
        optimizer.param_groups[0]["max_grad_norm"] = 0.5
    for number in range(3):
        with waiting_is_an_error() if number else nullcontext():
            on_gpu.step()
        on_cpu.step()
    # The norm is torch's, and its CUDA kernels add the squares in another order than its CPU ones.
    for name, value in values(on_gpu).items():
        torch.testing.assert_close(value.cpu(), values(on_cpu)[name], rtol=1e-5, atol=1e-7)


def test_a_step_runs_on_the_current_stream() -> None:
    optimizer, expected = made(3), made(3)
    optimizer.step(), expected.step()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for param in optimizer.param_groups[0]["params"]:
            param.grad.mul_(2)
        optimizer.step()
    torch.cuda.current_stream().wait_stream(stream)
    for param in expected.param_groups[0]["params"]:
        param.grad.mul_(2)
    expected.step()
    assert differences(values(optimizer), values(expected)) == {}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two NVIDIA GPUs")
def test_a_step_runs_on_the_device_of_its_parameters() -> None:
    elsewhere, expected = made(3, "cuda:1"), made(3, "cpu")
    for optimizer in (elsewhere, expected):
        optimizer.step()
        optimizer.step()
    assert differences(values(elsewhere), values(expected)) == {}


@pytest.mark.parametrize("count", [3, 1000])
def test_a_captured_step_replays_as_it_would_have_run(count) -> None:
    rate = torch.tensor(3e-3, dtype=torch.float64, device="cuda")
    on_gpu, expected = made(count, capturable=True), made(count, "cpu")
    on_gpu.param_groups[0]["lr"] = rate
    on_gpu.step(), expected.step()
    with captured() as graph:
        on_gpu.step()
    for factor in (1.0, 0.5, 0.25):
        rate.fill_(3e-3 * factor)
        expected.param_groups[0]["lr"] = 3e-3 * factor
        graph.replay(), expected.step()
    assert differences(values(on_gpu), values(expected)) == {}


def test_a_graph_replays_what_was_captured_after_steps_that_were_not() -> None:
    """An eager step with another learning rate, on other gradients, frees nothing that the graph reads."""
    on_gpu, expected = made(300, capturable=True), made(300, "cpu")
    on_gpu.step(), expected.step()
    with captured() as graph:
        on_gpu.step()
    for optimizer in (on_gpu, expected):
        group = optimizer.param_groups[0]
        rate, grads = group["lr"], [param.grad for param in group["params"]]
        group["lr"] = 0.5
        for param in group["params"][::2]:
            param.grad = None
        optimizer.step()
        group["lr"] = rate
        for param, grad in zip(group["params"], grads, strict=True):
            param.grad = grad
    taken = [torch.full((2**n,), float("nan"), device="cuda") for n in range(6, 21)]
    graph.replay(), expected.step()
    assert len(taken) == 15
    assert differences(values(on_gpu), values(expected)) == {}


def test_what_a_graph_cannot_hold_is_refused() -> None:
    for optimizer in (made(2), made(2, capturable=True)):
        with pytest.raises(RuntimeError, match="captur"), captured():
            optimizer.step()


def test_a_graph_of_a_whole_training_step_trains_as_without_it() -> None:
    results = []
    for graph in (False, True):
        experiment = Experiment(Config(device="cuda", graph=graph, modulus=7, batch_size=8))
        for _ in range(5):
            experiment.run_epoch()
        results.append(dict(experiment.model.state_dict()))
    assert differences(*results) == {}


def test_gradscaler_skips_an_overflow_without_waiting() -> None:
    param = torch.ones(100, device="cuda", requires_grad=True)
    optimizer = GrokAdam([param], **OPTIONS)
    scaler = torch.amp.GradScaler("cuda", init_scale=4.0)
    for factor in (1.0, float("inf"), 2.0):
        optimizer.zero_grad()
        (scaler.scale(param.sum()) * factor).backward()
        before = values(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if factor == float("inf"):
            assert differences(values(optimizer), before) == {}
    assert optimizer.state[param]["step"].item() == 2


def test_a_tensor_of_more_than_two_to_the_31_elements() -> None:
    size = 2**31 + 4099
    if torch.cuda.mem_get_info()[0] < 22e9:
        pytest.skip("needs 22 GB of free GPU memory")
    param = torch.zeros(size, dtype=torch.bfloat16, device="cuda").requires_grad_()
    param.grad = torch.full_like(param, 0.5)
    optimizer = GrokAdamW([param], **OPTIONS, state_dtype=torch.bfloat16, state_rounding="nearest")
    optimizer.step()
    small = torch.zeros(1, dtype=torch.bfloat16).requires_grad_()
    small.grad = torch.full_like(small, 0.5)
    truth = GrokAdamW(
        [small], **OPTIONS, state_dtype=torch.bfloat16, state_rounding="nearest", backend="reference"
    )
    truth.step()
    for part in param.detach().split(2**28):
        assert torch.equal(part.unique().cpu(), small.detach())
