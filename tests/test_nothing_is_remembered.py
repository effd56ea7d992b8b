"""A step reads everything where it is now, whatever was moved, exchanged, cleared or shared before it."""

import gc
import threading
import weakref

import pytest
import torch
from stepping import BACKENDS, OPTIONS, assert_same_bits, new_param, train, values
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from grokfused import GrokAdam, GrokAdamW, step_in_backward
from grokfused.lab.agreement import differing_bits

SHAPES = ([7, 9], [33], [], [4, 3, 2])


def params() -> list[Tensor]:
    return [new_param(*shape, seed=number) for number, shape in enumerate(SHAPES)]


def grads_for(some: list[Tensor], seed: int = 3) -> None:
    random = torch.Generator().manual_seed(seed)
    for param in some:
        param.grad = torch.randn(param.shape, generator=random)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parameter_moved_to_another_group_takes_its_learning_rate(backend) -> None:
    moved, stayed = params(), params()
    optimizer = GrokAdamW([{"params": moved[:2]}, {"params": moved[2:], "lr": 0.5}], backend=backend)
    twin = GrokAdamW([{"params": stayed[:1]}, {"params": stayed[1:], "lr": 0.5}], backend=backend)
    twin.param_groups[1]["lr"], twin.param_groups[1]["params"] = 1e-3, stayed[1:2]
    twin.add_param_group({"params": stayed[2:], "lr": 0.5})
    for each in (optimizer, twin):
        train(each, 2)
    optimizer.param_groups[1]["params"].insert(0, optimizer.param_groups[0]["params"].pop())
    twin.param_groups[1]["lr"] = 0.5
    for each in (optimizer, twin):
        train(each, 2, seed=5)
    for a, b in zip(moved, stayed, strict=True):
        assert differing_bits(a, b) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_whose_data_was_rebound_go_on_counting(backend) -> None:
    ours, others = params(), params()
    optimizer, twin = GrokAdamW(ours, backend=backend, **OPTIONS), GrokAdamW(others, **OPTIONS)
    train(twin, 5)
    train(optimizer, 2)
    for state in optimizer.state.values():
        for tensor in state.values():
            tensor.data = tensor.data.clone()
    train(optimizer, 0)
    random = torch.Generator().manual_seed(2)
    for number in range(5):
        for param in ours:
            param.grad = torch.randn(param.shape, generator=random)
        if number >= 2:
            optimizer.step()
    assert_same_bits(values(optimizer), values(twin))
    assert {state["step"].item() for state in optimizer.state_dict()["state"].values()} == {5.0}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["shared float32 [1]", "float64", "int64"])
def test_the_step_counter_stays_the_users_own_tensor(kind, backend) -> None:
    """As in SharedAdam of Hogwild programs, which makes the states itself and shares their memory."""
    counters = {
        "shared float32 [1]": lambda: torch.zeros(1).share_memory_(),
        "float64": lambda: torch.zeros((), dtype=torch.float64),
        "int64": lambda: torch.zeros((), dtype=torch.int64),
    }
    ours, others = params(), params()
    optimizer, twin = GrokAdamW(ours, backend=backend, **OPTIONS), GrokAdamW(others, **OPTIONS)
    steps = []
    for param in ours:
        state = optimizer.state[param]
        state["step"] = counters[kind]()
        for name in ("exp_avg", "exp_avg_sq", "grad_ema"):
            state[name] = torch.zeros_like(param)
        steps.append(state["step"])
    for each in (optimizer, twin):
        train(each, 3)
    assert [optimizer.state[param]["step"] for param in ours] == steps
    assert all(optimizer.state[param]["step"] is step for param, step in zip(ours, steps, strict=True))
    assert [step.item() for step in steps] == [3.0] * len(steps)
    for a, b in zip(ours, others, strict=True):
        assert differing_bits(a, b) == 0


def test_each_step_counter_is_a_tensor_of_its_own() -> None:
    optimizer = GrokAdamW(params())
    train(optimizer, 2)
    counters = [state["step"] for state in optimizer.state.values()]
    assert all(step._base is None and step.shape == () for step in counters)
    assert len({step.untyped_storage().data_ptr() for step in counters}) == len(counters)


@pytest.mark.parametrize("backend", BACKENDS)
def test_cleared_states_are_freed_at_once(backend) -> None:
    optimizer = GrokAdamW(params(), backend=backend, **OPTIONS)
    train(optimizer, 3)
    kept = [weakref.ref(tensor) for state in optimizer.state.values() for tensor in state.values()]
    optimizer.state.clear()
    gc.collect()
    assert [each() for each in kept] == [None] * len(kept)
    train(optimizer, 1)
    assert {state["step"].item() for state in optimizer.state.values()} == {1.0}


def test_states_exchanged_by_another_thread_are_never_read_after_they_were_freed() -> None:
    param = new_param(1 << 20)
    param.grad = torch.full_like(param, 0.5)
    optimizer = GrokAdamW([param], lr=1e-3)
    optimizer.step()
    stop = threading.Event()

    def exchange() -> None:
        while not stop.is_set():
            for name in ("exp_avg", "exp_avg_sq", "grad_ema"):
                optimizer.state[param][name] = torch.zeros_like(param)

    other = threading.Thread(target=exchange)
    other.start()
    for _ in range(60):
        optimizer.step()
    stop.set()
    other.join()
    assert param.isfinite().all()
    assert optimizer.state[param]["step"] == 61


class Recorded(TorchDispatchMode):
    """Lists the operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("stepped", [0, 3])
def test_a_step_is_an_operator_to_who_records_them(stepped) -> None:
    ours, others = params(), params()
    optimizer, twin = GrokAdamW(ours, **OPTIONS), GrokAdamW(others, **OPTIONS)
    for each in (optimizer, twin):
        train(each, stepped)
    grads_for(ours)
    grads_for(others)
    twin.step()
    with Recorded() as recorded:
        optimizer.step()
    assert recorded.names.count("grokfused.optimizer_step_.default") == 1
    assert_same_bits(values(optimizer), values(twin))


def test_a_step_in_the_backward_pass_is_an_operator_too() -> None:
    param = new_param(5)
    with step_in_backward(GrokAdamW([param])), Recorded() as recorded:
        (param * 2).sum().backward()
    assert "grokfused.optimizer_step_.default" in recorded.names


@pytest.mark.parametrize("stepped", [0, 3])
def test_a_graph_that_make_fx_has_traced_takes_the_step(stepped) -> None:
    ours, others = params(), params()
    optimizer, twin = GrokAdamW(ours, **OPTIONS), GrokAdamW(others, **OPTIONS)
    for each in (optimizer, twin):
        train(each, stepped)
    grads_for(ours)
    grads_for(others)

    def step(unused: Tensor) -> Tensor:
        optimizer.step()
        return unused + 1

    traced = make_fx(step)(torch.zeros(1))
    assert any("optimizer_step_" in str(node.target) for node in traced.graph.nodes)
    traced(torch.zeros(1))
    for _ in range(2):  # the tracing took one
        twin.step()
    assert_same_bits(values(optimizer), values(twin))


def test_beside_a_parameter_on_the_meta_device_a_recorded_step_is_taken() -> None:
    class Records(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            seen.append(str(operator))
            return operator(*args, **(kwargs or {}))

    seen: list[str] = []
    real, meta = torch.ones(5).requires_grad_(), torch.ones(4, device="meta").requires_grad_()
    optimizer = GrokAdamW([meta, real], lr=0.1)
    real.grad, meta.grad = torch.ones(5), torch.ones(4, device="meta")
    with Records():
        optimizer.step()
    assert "grokfused.optimizer_step_.default" in seen
    assert real[0] < 1
    assert [optimizer.state[param]["step"].item() for param in (real, meta)] == [1.0, 1.0]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kind", "more"), [(GrokAdam, 1), (GrokAdamW, 1), (GrokAdamW, 300)])
def test_parameters_that_share_memory_are_stepped_one_after_the_other(kind, more, backend) -> None:
    """As by torch: the second of two that overlap sees what the first has written. Extents of hundreds of
    tensors are sorted in another way than those of a few."""
    base, other = torch.arange(12.0), torch.arange(12.0)
    ours = [base[:8], *(torch.ones(3) for _ in range(more)), base[4:]]
    theirs = [other[:8], *(torch.ones(3) for _ in range(more)), other[4:]]
    for param in (*ours, *theirs):
        param.requires_grad_()
    together = kind(ours, backend=backend, **OPTIONS)
    apart = [kind([param], backend=backend, **OPTIONS) for param in theirs]
    for number in range(3):
        grads_for(ours, number)
        grads_for(theirs, number)
        together.step()
        for each in apart:
            each.step()
    assert differing_bits(base, other) == 0
    for mine, alone in zip(ours, theirs, strict=True):
        assert differing_bits(mine, alone) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_that_shares_memory_with_another_of_its_parameter_is_refused_by_name(backend) -> None:
    param = new_param(9)
    optimizer = GrokAdamW([("weight", param)], backend=backend)
    train(optimizer, 1)
    optimizer.state[param]["grad_ema"] = optimizer.state[param]["exp_avg"]
    before = values(optimizer)
    with pytest.raises(RuntimeError, match=r"parameter 'weight' of group 0 .* share memory with each other"):
        train(optimizer, 1)
    assert_same_bits(values(optimizer), before)


def test_another_half_of_the_gradients_in_each_step_leaves_the_reference_bits() -> None:
    results = []
    for backend in BACKENDS:
        some = [new_param(5, seed=n) for n in range(20)]
        optimizer = GrokAdamW(some, backend=backend, **OPTIONS)
        random = torch.Generator().manual_seed(4)
        for _ in range(6):
            for param in some:
                there = torch.rand((), generator=random) < 0.5
                param.grad = torch.randn(5, generator=random) if there else None
            optimizer.step()
        results.append(values(optimizer))
    assert_same_bits(*results)
