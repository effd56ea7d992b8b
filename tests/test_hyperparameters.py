"""Hyperparameters may change between steps, and the slow gradient starts as its options say."""

import copy
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import pytest
import torch
from stepping import (
    ADAM,
    BACKENDS,
    OPTIONS,
    assert_same_bits,
    new_param,
    randn,
    through_a_file,
    train,
    ulps_of_the_largest,
    values,
)
from torch.optim.lr_scheduler import LambdaLR, LinearLR, OneCycleLR

from grokfused import GrokAdamW
from grokfused.lab.agreement import differing_bits

# --- hyperparameters between steps -----------------------------------------------------------------------


def test_lambda_lr_drives_it_as_it_drives_torch_adamw() -> None:
    params = [new_param(31, 33), new_param(31, 33)]
    ours = GrokAdamW([params[0]], lamb=0.0, alpha=0.93, **ADAM)
    theirs = torch.optim.AdamW([params[1]], foreach=False, **ADAM)
    schedules = [LambdaLR(optimizer, lambda step: 1 / (1 + step)) for optimizer in (ours, theirs)]
    for seed in range(20):
        for param, optimizer, schedule in zip(params, (ours, theirs), schedules, strict=True):
            param.grad = randn(31, 33, seed=seed)
            optimizer.step()
            schedule.step()
    assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"] < ADAM["lr"]
    # See test_without_amplification_it_is_torch_optim.
    assert ulps_of_the_largest(params[0].detach(), params[1].detach()) <= 4


def test_one_cycle_lr_which_writes_betas_drives_it_as_it_drives_torch_adamw() -> None:
    params = [new_param(31, 33), new_param(31, 33)]
    ours = GrokAdamW([params[0]], lamb=0.0, alpha=0.93, **ADAM)
    theirs = torch.optim.AdamW([params[1]], foreach=False, **ADAM)
    schedules = [
        OneCycleLR(optimizer, max_lr=0.02, total_steps=20, cycle_momentum=True, base_momentum=0.6)
        for optimizer in (ours, theirs)
    ]
    seen = set()
    for seed in range(20):
        for param, optimizer, schedule in zip(params, (ours, theirs), schedules, strict=True):
            param.grad = randn(31, 33, seed=seed)
            optimizer.step()
            if seed < 19:
                schedule.step()
        seen.add(tuple(ours.param_groups[0]["betas"]))
    assert len(seen) > 15
    # See test_without_amplification_it_is_torch_optim.
    assert ulps_of_the_largest(params[0].detach(), params[1].detach()) <= 4


def test_a_rate_that_a_schedule_drives_below_0_by_a_rounding_goes_on_as_in_torch() -> None:
    params = [new_param(31, 33), new_param(31, 33)]
    ours = GrokAdamW([params[0]], lamb=0.0, **{**ADAM, "lr": 0.1})
    theirs = torch.optim.AdamW([params[1]], foreach=False, **{**ADAM, "lr": 0.1})
    schedules = [LinearLR(optimizer, end_factor=0.0, total_iters=25) for optimizer in (ours, theirs)]
    for seed in range(40):
        for param, optimizer, schedule in zip(params, (ours, theirs), schedules, strict=True):
            param.grad = randn(31, 33, seed=seed)
            optimizer.step()
            schedule.step()
    assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"] < 0
    # See test_without_amplification_it_is_torch_optim.
    assert ulps_of_the_largest(params[0].detach(), params[1].detach()) <= 4
    resumed = GrokAdamW([params[0]])
    resumed.load_state_dict(ours.state_dict())
    assert resumed.param_groups[0]["lr"] < 0


# What the constructor refuses, as torch's does, and torch's step takes all the same.
DRIVEN = (
    {"betas": (22.0, 0.99)},
    {"betas": (-0.5, -1e-9)},
    {"betas": (0.0, 1.0)},
    {"eps": -1e-4},
    {"weight_decay": -0.5},
    {"lr": -0.25},
)


@pytest.mark.usefixtures("numbering")
@pytest.mark.parametrize("driven", DRIVEN, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_driven_out_of_the_constructors_range_goes_on_as_in_torch(backend, driven) -> None:
    with pytest.raises(ValueError, match="Invalid"):
        GrokAdamW([new_param(9)], **driven)
    params = [new_param(31, 33), new_param(31, 33)]
    ours = GrokAdamW([params[0]], lamb=0.0, backend=backend, capturable=True, **ADAM)
    theirs = torch.optim.AdamW([params[1]], foreach=False, **ADAM)
    for optimizer in (ours, theirs):
        train(optimizer, 2)
        optimizer.param_groups[0].update(driven)
        train(optimizer, 2, seed=5)
    # See test_without_amplification_it_is_torch_optim.
    assert ulps_of_the_largest(params[0].detach(), params[1].detach()) <= 4


@pytest.mark.usefixtures("numbering")
def test_a_power_beyond_all_floats_is_infinite() -> None:
    """As on a device; Python raises OverflowError. What is left of the step is the weight decay."""
    param = new_param(9)
    optimizer = GrokAdamW([param], capturable=True, **OPTIONS)
    train(optimizer, 1)
    optimizer.state[param]["step"].fill_(1000)
    optimizer.param_groups[0]["betas"] = (-22.0, 0.99)
    before = param.detach().clone()
    train(optimizer, 1)
    assert differing_bits(param.detach(), before * (1 - OPTIONS["lr"] * OPTIONS["weight_decay"])) == 0


@pytest.mark.parametrize("alpha", [1.0, 0.0, -1e-20])
@pytest.mark.parametrize("backend", BACKENDS)
def test_alpha_may_be_driven_to_the_ends_of_its_range(backend, alpha) -> None:
    param = new_param(9)
    optimizer = GrokAdamW([param], backend=backend, **OPTIONS)
    train(optimizer, 1)
    optimizer.param_groups[0]["alpha"] = alpha
    before = optimizer.state[param]["grad_ema"].clone()
    train(optimizer, 1, seed=5)
    expected = before if alpha == 1 else param.grad
    assert differing_bits(optimizer.state[param]["grad_ema"], expected) == 0


@pytest.mark.parametrize("change", [{"alpha": 0.6}, {"lamb": 5.5}, {"eps": 0.1}, {"maximize": True}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hyperparameter_changed_in_the_group_holds_from_the_next_step(backend, change) -> None:
    changed = GrokAdamW([new_param(9)], backend=backend, **OPTIONS)
    unchanged = GrokAdamW([new_param(9)], backend=backend, **OPTIONS)
    for optimizer in (changed, unchanged):
        train(optimizer, 3)
    saved = copy.deepcopy(unchanged.state_dict())
    saved["param_groups"][0].update(change)
    new = GrokAdamW([unchanged.param_groups[0]["params"][0].detach().clone().requires_grad_()])
    new.load_state_dict(saved)
    changed.param_groups[0].update(change)
    for optimizer in (changed, unchanged, new):
        train(optimizer, 2, seed=5)
    assert_same_bits(values(changed), values(new))
    assert differing_bits(values(changed)["0 param"], values(unchanged)["0 param"]) > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_lr_may_be_a_one_element_tensor_changed_in_place(backend) -> None:
    results = []
    for shape in (None, (), (1,)):
        lr = torch.full(shape or (), 3e-3)
        optimizer = GrokAdamW(
            [new_param(9)], backend=backend, **{**OPTIONS, "lr": lr.item() if shape is None else lr}
        )
        train(optimizer, 2)
        lr.fill_(0.02)
        if shape is None:
            optimizer.param_groups[0]["lr"] = lr.item()
        else:
            assert optimizer.param_groups[0]["lr"] is lr
        train(optimizer, 2, seed=5)
        results.append(values(optimizer))
    assert_same_bits(results[0], results[1])
    assert_same_bits(results[0], results[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_group_exchanged_for_another_dict_is_followed(backend) -> None:
    param = new_param(9)
    optimizer = GrokAdamW([param], backend=backend, **OPTIONS)
    train(optimizer, 2)
    optimizer.param_groups[0] = {**optimizer.param_groups[0], "lr": 0.0}
    before = param.detach().clone()
    train(optimizer, 1)
    assert differing_bits(param.detach(), before) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parameter_moved_to_another_group_takes_that_groups_options(backend) -> None:
    a, b, c = new_param(3), new_param(4), new_param(5)
    groups = [{"params": [a, b]}, {"params": [c], "lr": 0.0}]
    optimizer = GrokAdamW(groups, backend=backend, **OPTIONS)
    train(optimizer, 2)
    optimizer.param_groups[0]["params"] = [a]
    optimizer.param_groups[1]["params"] = [b, c]
    before = b.detach().clone()
    train(optimizer, 1)
    assert differing_bits(b.detach(), before) == 0


# --- the kinds of numbers --------------------------------------------------------------------------------


class ListConfig(Sequence):
    """A sequence that is neither tuple nor list, as omegaconf's is."""

    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, place: Any) -> Any:
        return self.items[place]


SEQUENCES: dict[str, Callable[[float, float], Any]] = {
    "list": lambda *betas: list(betas),
    "ListConfig": ListConfig,
    "array": lambda *betas: numpy.array(betas),
    "deque": lambda *betas: deque(betas),
}


@pytest.mark.usefixtures("numbering")
@pytest.mark.parametrize("given_to", ["constructor", "group", "live group"])
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_betas_may_be_any_sequence(sequence, given_to) -> None:
    betas = SEQUENCES[sequence](0.6, 0.9)
    results = []
    for given in ((0.6, 0.9), betas):
        options = {**OPTIONS, "betas": given} if given_to == "constructor" else OPTIONS
        group = {"params": [new_param(9)], **({"betas": given} if given_to == "group" else {})}
        optimizer = GrokAdamW([group], capturable=True, **options)
        if given_to == "live group":
            optimizer.param_groups[0]["betas"] = given
        else:
            saved = through_a_file(optimizer.state_dict())["param_groups"][0]["betas"]
            assert list(saved) == [0.6, 0.9]
        train(optimizer, 2)
        results.append(values(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_numpys_numbers_are_taken_wherever_pythons_are(backend) -> None:
    results = []
    numbers = {
        "lr": 0.25,
        "eps": 0.125,
        "weight_decay": 0.5,
        "alpha": 0.75,
        "lamb": 1.5,
        "max_grad_norm": 0.5,
    }
    for real, whole, flag in ((float, int, bool), (numpy.float32, numpy.int64, numpy.bool_)):
        options = {
            **{name: real(value) for name, value in numbers.items()},
            "betas": (real(0.5), real(0.75)),
            "seed": whole(7),
            **{name: flag(True) for name in ("amsgrad", "maximize", "capturable", "fused")},
            "foreach": flag(False),
        }
        given = GrokAdamW([new_param(9)], backend=backend, state_dtype="bfloat16", **options)
        given.add_param_group({"params": [new_param(7)], "lr": whole(1)})
        live = GrokAdamW([new_param(9), new_param(7)], backend=backend, state_dtype="bfloat16")
        live.param_groups[0].update(options, lr=whole(1))
        for optimizer in (given, live):
            train(optimizer, 2)
            results.append(values(optimizer))
    assert_same_bits(results[0], results[2])
    assert_same_bits(results[1], results[3])


def test_whether_gradients_are_unscaled_may_be_numpys_too() -> None:
    for flag in (False, True):
        optimizer = GrokAdamW([new_param(3)], unscales_grads=numpy.bool_(flag))
        assert optimizer._step_supports_amp_scaling is flag


# --- the slow gradient's start ---------------------------------------------------------------------------


@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_slow_gradient_starts_as_the_first_gradient(backend, maximize) -> None:
    param = new_param(9)
    optimizer = GrokAdamW([param], backend=backend, grad_ema_init="first", maximize=maximize, **OPTIONS)
    param.grad = randn(9, seed=3)
    optimizer.step()
    expected = -param.grad if maximize else param.grad
    assert differing_bits(optimizer.state[param]["grad_ema"], expected) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_slow_gradient_starts_from_zero_by_choice(backend) -> None:
    param = new_param(9)
    optimizer = GrokAdamW([param], backend=backend, grad_ema_init="zero", **OPTIONS)
    param.grad = randn(9, seed=3)
    optimizer.step()
    expected = torch.tensor(1 - OPTIONS["alpha"]) * param.grad
    assert differing_bits(optimizer.state[param]["grad_ema"], expected) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_filter_turned_on_late_starts_at_that_gradient(backend) -> None:
    param, delayed = new_param(9), new_param(7)
    optimizer = GrokAdamW([param, delayed], backend=backend, grad_filter="none", **OPTIONS)
    for seed in range(3):
        param.grad = randn(9, seed=seed)
        optimizer.step()
    assert "grad_ema" not in optimizer.state[param]
    optimizer.state[param]["step"] = 3  # the same count, as a plain number
    optimizer.param_groups[0]["grad_filter"] = "ema"
    param.grad = randn(9, seed=4)
    optimizer.step()
    assert differing_bits(optimizer.state[param]["grad_ema"], param.grad) == 0
    # From there on it is the formula's, and each parameter has a start of its own.
    last = param.grad.clone()
    param.grad, delayed.grad = randn(9, seed=5), randn(7, seed=5)
    optimizer.step()
    alpha = OPTIONS["alpha"]
    expected = torch.tensor(alpha) * last + torch.tensor(1 - alpha) * param.grad
    assert differing_bits(optimizer.state[param]["grad_ema"], expected) == 0
    assert differing_bits(optimizer.state[delayed]["grad_ema"], delayed.grad) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_made_late_has_the_dtype_of_the_others(backend) -> None:
    param = new_param(9)
    optimizer = GrokAdamW([param], backend=backend, grad_filter="none", state_dtype=torch.bfloat16, **OPTIONS)
    train(optimizer, 2)
    optimizer.param_groups[0].update(grad_filter="ema", amsgrad=True, state_dtype="float32")
    train(optimizer, 1)
    state = optimizer.state[param]
    names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "grad_ema")
    assert {state[name].dtype for name in names} == {torch.bfloat16}


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_filter_turned_off_is_plain_adamw(backend) -> None:
    results = []
    for lamb, off in ((0.0, False), (1.7, True)):
        optimizer = GrokAdamW([new_param(9)], backend=backend, **{**OPTIONS, "lamb": lamb})
        if off:
            optimizer.param_groups[0]["grad_filter"] = "none"
        train(optimizer, 3)
        results.append(values(optimizer)["0 param"])
    assert differing_bits(*results) == 0
