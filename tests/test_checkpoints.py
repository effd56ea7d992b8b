"""Checkpoints: what was saved goes on as if never interrupted."""

import copy
import itertools

import pytest
import torch
from checkpointing import OPTIONS, copies, new_params, options
from stepping import BACKENDS, assert_same_bits, through_a_file, train, values

from grokfused import GrokAdam, GrokAdamW
from grokfused.lab.agreement import differing_bits

ARRAYS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "grad_ema")


def label(value: object) -> str:
    return getattr(value, "__name__", str(value))


GRID = list(
    itertools.product(
        [GrokAdamW, GrokAdam], BACKENDS, [torch.float32, torch.bfloat16], ["ema", "none"], [False, True]
    )
)


@pytest.mark.parametrize(("kind", "backend", "state_dtype", "grad_filter", "amsgrad"), GRID, ids=label)
def test_resuming_equals_never_having_stopped(kind, backend, state_dtype, grad_filter, amsgrad) -> None:
    params = new_params()
    optimizer = kind(
        params, backend=backend, state_dtype=state_dtype, grad_filter=grad_filter, amsgrad=amsgrad, **OPTIONS
    )
    train(optimizer, 3)
    saved = through_a_file(optimizer.state_dict())
    resumed = kind(copies(params))
    resumed.load_state_dict(saved)
    assert_same_bits(values(resumed), values(optimizer))
    assert options(resumed) == options(optimizer)
    for each in (optimizer, resumed):
        train(each, 3, seed=5)
    assert_same_bits(values(resumed), values(optimizer))


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("first", "second"), [BACKENDS, BACKENDS[::-1]], ids=" then ".join)
def test_one_backend_goes_on_where_the_other_stopped(first, second, state_dtype) -> None:
    params = new_params()
    optimizer = GrokAdamW(params, backend=first, state_dtype=state_dtype, amsgrad=True, **OPTIONS)
    train(optimizer, 3)
    resumed = GrokAdamW(copies(params))
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    resumed.param_groups[0]["backend"] = second
    for each in (optimizer, resumed):
        train(each, 3, seed=5)
    assert_same_bits(values(resumed), values(optimizer))


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_states_keep_the_dtype_they_were_saved_in_whatever_the_parameters(state_dtype) -> None:
    optimizer = GrokAdamW(new_params(), state_dtype=state_dtype, amsgrad=True, **OPTIONS)
    train(optimizer, 2)
    resumed = GrokAdamW(new_params())
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    dtypes = {state[key].dtype for state in resumed.state.values() for key in ARRAYS}
    assert dtypes == {state_dtype}
    assert {state["step"].dtype for state in resumed.state.values()} == {torch.float32}


@pytest.mark.parametrize("backend", BACKENDS)
def test_contiguous_states_come_back_in_the_order_of_a_transposed_parameter(backend) -> None:
    plain = torch.randn(5, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    optimizer = GrokAdamW([plain], backend=backend, amsgrad=True, **OPTIONS)
    train(optimizer, 2)
    transposed = plain.detach().t().contiguous().t().requires_grad_()
    resumed = GrokAdamW([transposed])
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert {resumed.state[transposed][key].stride() for key in ARRAYS} == {(1, 5)}
    for each in (optimizer, resumed):
        train(each, 2, seed=5)
    assert_same_bits(values(resumed), values(optimizer))


def test_a_step_leaves_the_state_dict_alone_that_was_loaded() -> None:
    params = new_params()
    optimizer = GrokAdamW(params, amsgrad=True, **OPTIONS)
    train(optimizer, 2)
    saved = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(saved)
    resumed = GrokAdamW(copies(params))
    resumed.load_state_dict(saved)
    for index, state in enumerate(resumed.state.values()):
        for key in (*ARRAYS, "step"):
            assert state[key].data_ptr() != saved["state"][index][key].data_ptr()
    train(resumed, 2, seed=5)
    for index, state in saved["state"].items():
        for key in (*ARRAYS, "step"):
            assert differing_bits(state[key], kept["state"][index][key]) == 0


def test_a_step_counter_saved_as_a_number_is_read() -> None:
    params = new_params()
    optimizer = GrokAdamW(params, **OPTIONS)
    train(optimizer, 2)
    saved = optimizer.state_dict()
    as_number = {**saved, "state": {i: {**s, "step": int(s["step"])} for i, s in saved["state"].items()}}
    resumed = GrokAdamW(copies(params))
    resumed.load_state_dict(as_number)
    for each in (optimizer, resumed):
        train(each, 2, seed=5)
    assert_same_bits(values(resumed), values(optimizer))


def test_a_parameter_that_never_had_a_gradient_stays_without_state() -> None:
    params = new_params()
    optimizer = GrokAdamW(params, **OPTIONS)
    params[1].grad = torch.ones_like(params[1])
    optimizer.step()
    others = copies(params)
    resumed = GrokAdamW(others, alpha=0.6)
    train(resumed, 2)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert list(resumed.state) == [others[1]]


def test_loading_restores_the_saved_options_over_those_of_an_optimizer_in_use() -> None:
    params = new_params()
    saved_options = {**OPTIONS, "amsgrad": True, "maximize": True, "state_dtype": torch.bfloat16}
    optimizer = GrokAdamW(params, grad_ema_init="zero", state_rounding="nearest", **saved_options)
    train(optimizer, 3)
    others = copies(params)
    resumed = GrokAdamW(others, lr=0.5, lamb=9.0, grad_filter="none", weight_decay=0.0)
    train(resumed, 2, seed=8)
    with torch.no_grad():
        for other, param in zip(others, params, strict=True):
            other.copy_(param)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert options(resumed) == options(optimizer)
    for each in (optimizer, resumed):
        train(each, 3, seed=5)
    assert_same_bits(values(resumed), values(optimizer))


def test_a_filter_turned_on_late_is_remembered_by_the_checkpoint() -> None:
    params = new_params()
    optimizer = GrokAdamW(params, grad_filter="none", **OPTIONS)
    train(optimizer, 2)
    optimizer.param_groups[0]["grad_filter"] = "ema"
    saved = through_a_file(optimizer.state_dict())
    resumed = GrokAdamW(copies(params))
    resumed.load_state_dict(saved)
    for each in (optimizer, resumed):
        train(each, 1, seed=5)
    later = GrokAdamW(copies(params))
    later.load_state_dict(through_a_file(optimizer.state_dict()))
    for each in (optimizer, resumed, later):
        train(each, 2, seed=6)
    assert_same_bits(values(resumed), values(optimizer))
    counted = {name: value for name, value in values(optimizer).items() if "grad_ema_start" not in name}
    assert_same_bits(values(later), counted)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("made", "changed"), [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_states_keep_the_dtype_they_were_made_in_when_the_option_is_changed(made, changed, backend) -> None:
    params = new_params()
    optimizer = GrokAdamW(params, backend=backend, state_dtype=made, **OPTIONS)
    train(optimizer, 2)
    for group in optimizer.param_groups:
        group["state_dtype"] = changed
    train(optimizer, 2, seed=3)
    resumed = GrokAdamW(copies(params), backend=backend, **OPTIONS)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for each in (optimizer, resumed):
        train(each, 2, seed=5)
        assert {state["exp_avg"].dtype for state in each.state.values()} == {getattr(torch, made)}
    assert_same_bits(values(resumed), values(optimizer))
