"""PyTorch's own optimizer suite: its inputs, errors, schedulers and groups, put to both optimizers."""

from typing import Any

import pytest
import torch
from stepping import ulps_of_the_largest, values
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch_inputs import (
    DTYPES,
    INFOS,
    PLACES,
    THEIRS,
    ErrorOptimizerInput,
    OptimizerErrorEnum,
    assert_same_bits,
    by_input,
    label,
    new_params,
    on_every_backend,
    own,
    params_of,
    train,
)

from grokfused.lab.agreement import differing_bits, disagreements

# What torch's own suite has and this file has not.
LEFT_OUT = {
    "differentiable, sparse gradients": "refused by name: tests/test_*errors.py",
    "foreach and fused against forloop": "here without effect; our backends are compared instead",
    "gradient scaling, found_inf": "tests/test_loss_scale.py",
    "graphs, several devices, large tensors": "need a GPU: tests/test_cuda_device.py",
    "peak memory of foreach": "nothing is allocated: tests/test_step_cost.py",
    "torch.compile": "torch checks the op itself: tests/test_op_errors.py",
}
# Torch's error inputs that are no errors here.
TAKEN = {
    "lr as Tensor doesn't work with foreach & not capturable": "foreach has no effect",
    r"betas\[0\] as a Tensor is not supported for capturable=False and foreach=True": "nor here",
    "betas must be either both floats or both Tensors": "each is read by itself, as OneCycleLR leaves them",
}
against_the_reference = pytest.mark.parametrize(
    ("backend", "device"), [place for place in PLACES if place != ("reference", "cpu")]
)


def assert_within_four_ulps(ours: torch.optim.Optimizer, theirs: torch.optim.Optimizer) -> None:
    """See test_without_amplification_it_is_torch_optim in test_optimizer.py, the suite's only tolerance."""
    for a, b in zip(params_of(ours), params_of(theirs), strict=True):
        if a.numel():
            assert ulps_of_the_largest(a.detach().cpu(), b.detach()) <= 4


# --- what torch's optimizers take ------------------------------------------------------------------------


@against_the_reference
@by_input(flags=True)
def test_a_backend_equals_the_reference_on_every_input(info, given, backend, device) -> None:
    found = [
        info.optim_cls(new_params(place), backend=name, **own(given.kwargs))
        for name, place in ((backend, device), ("reference", "cpu"))
    ]
    for optimizer in found:
        train(optimizer)
    assert_same_bits(*found)


@on_every_backend
@by_input()
def test_it_goes_in_the_right_direction(info, given, backend, device) -> None:
    params = new_params(device)
    optimizer = info.optim_cls(params, backend=backend, **own(given.kwargs))
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = sum((param.float() - 0.5).square().sum() for param in params)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(set(losses), reverse=not given.kwargs.get("maximize", False))


def widened(option: Any) -> Any:
    if isinstance(option, tuple):
        return tuple(map(widened, option))
    return option.double() if isinstance(option, torch.Tensor) else option


@on_every_backend
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
@by_input()
def test_without_amplification_it_is_torchs_optimizer(info, given, dtype, backend, device) -> None:
    kwargs = {key: value for key, value in own(given.kwargs).items() if key != "capturable"}
    if dtype in (torch.float64, torch.complex128):  # torch computes with tensors of float32 in float32
        kwargs = {key: widened(value) for key, value in kwargs.items()}
    ours = info.optim_cls(new_params(device, (dtype,)), lamb=0.0, backend=backend, **own(kwargs))
    theirs = THEIRS[info.optim_cls](new_params(dtypes=(dtype,)), foreach=False, **own(kwargs))
    train(ours, range(10))
    train(theirs, range(10))
    assert_within_four_ulps(ours, theirs)


@on_every_backend
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize(
    ("info", "number"),
    [(info, number) for info in INFOS for number in range(len(info.scheduler_inputs))],
    ids=label,
)
def test_schedulers_drive_it_as_they_drive_torchs_optimizer(info, number, tensor_lr, backend, device) -> None:
    ours = info.optim_cls(new_params(device, DTYPES[:1]), lamb=0.0, backend=backend)
    reference = info.optim_cls(new_params(dtypes=DTYPES[:1]), lamb=0.0, backend="reference")
    theirs = THEIRS[info.optim_cls](new_params(dtypes=DTYPES[:1]), foreach=False)
    rates: dict[Any, list[float]] = {ours: [], reference: [], theirs: []}
    for optimizer, seen in rates.items():
        optimizer.param_groups[0]["lr"] = torch.tensor(0.01) if tensor_lr else 0.01
        schedules = [make(optimizer) for make in info.scheduler_inputs[number]]
        for step in range(25):
            train(optimizer, range(step, step + 1))
            for schedule in schedules:
                schedule.step(*([1.0] if isinstance(schedule, ReduceLROnPlateau) else []))
            seen.append(float(optimizer.param_groups[0]["lr"]))
    assert rates[ours] == rates[reference] == rates[theirs]
    assert len(set(rates[ours])) > 1
    assert_same_bits(ours, reference)
    assert_within_four_ulps(ours, theirs)


# --- what torch's optimizers refuse ----------------------------------------------------------------------


def error_inputs() -> list[Any]:
    """Returns (class, error input) for all of torch's; those for a CUDA device only where there is one."""
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    return [
        pytest.param(info.optim_cls, bad, id=f"{info.name}-{device}-{bad.optimizer_error_input.desc}")
        for info in INFOS
        for device in devices
        for bad in info.optim_error_inputs_func(device, torch.float32)
    ]


@pytest.mark.parametrize(("kind", "bad"), error_inputs())
def test_what_torch_refuses_is_refused_in_torchs_words(kind, bad: ErrorOptimizerInput) -> None:
    given = bad.optimizer_error_input
    params = given.params if given.params is not None else new_params()
    assert bad.error_on is OptimizerErrorEnum.CONSTRUCTION_ERROR
    if given.desc in TAKEN:
        with pytest.raises(bad.error_type, match=bad.error_regex):
            THEIRS[kind](params, **own(given.kwargs))
        train(kind(params, **own(given.kwargs)))
    elif bad.error_type is UserWarning:
        with pytest.warns(bad.error_type, match=bad.error_regex):
            kind(params, **own(given.kwargs))
    else:
        with pytest.raises(bad.error_type, match=bad.error_regex):
            kind(params, **own(given.kwargs))


# --- groups ----------------------------------------------------------------------------------------------


@on_every_backend
@by_input()
def test_a_group_steps_like_an_optimizer_of_its_own(info, given, backend, device) -> None:
    params, alone = new_params(device), new_params(device)
    options = {"lr": 0.02, "weight_decay": 0.3}
    together = info.optim_cls(params[:7], backend=backend, **own(given.kwargs))
    together.add_param_group({"params": params[7:], **options})
    train(together)
    first = info.optim_cls(alone[:7], backend=backend, **own(given.kwargs))
    second = info.optim_cls(alone[7:], backend=backend, **{**own(given.kwargs), **options})
    train(first)
    train(second)
    pairs = zip(params, alone, strict=True)
    assert [differing_bits(a.detach(), b.detach()) for a, b in pairs] == [0] * len(params)


@on_every_backend
@by_input()
def test_without_gradients_a_step_changes_nothing_and_zero_gradients_move_nothing(
    info, given, backend, device
) -> None:
    kwargs = {**own(given.kwargs), "weight_decay": 0.0}
    optimizer = info.optim_cls(new_params(device), backend=backend, **kwargs)
    before = values(optimizer)
    optimizer.step()
    assert values(optimizer).keys() == before.keys()
    for param in params_of(optimizer):
        param.grad = torch.zeros_like(param)
    optimizer.step()
    assert disagreements(values(optimizer), before) == {}
    assert all(state["step"] == 1 for state in optimizer.state.values())
