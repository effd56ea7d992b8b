"""Checkpoints: what was saved goes on as if never interrupted, and what does not fit is refused whole."""

import copy
import io
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from stepping import BACKENDS, values
from torch import Tensor

from grokfused import GrokAdam, GrokAdamW
from grokfused.lab.agreement import differing_bits

ADAM = {"lr": 3e-3, "betas": (0.87, 0.993), "eps": 3e-7, "weight_decay": 0.037}
OPTIONS = {**ADAM, "alpha": 0.93, "lamb": 1.7, "seed": 5}
ARRAYS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "grad_ema")
SHAPES = {torch.float32: [9, 7], torch.bfloat16: [33], torch.float16: []}


def new_params(seed: int = 1) -> list[Tensor]:
    """Returns one parameter of each dtype and another float32 one, lying transposed."""
    random = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=random).to(dtype) for dtype, shape in SHAPES.items()]
    made.append(torch.randn(5, 6, generator=random).t())
    return [param.requires_grad_() for param in made]


def copies(params: Sequence[Tensor]) -> list[Tensor]:
    return [param.detach().clone().requires_grad_() for param in params]


def train(optimizer: torch.optim.Optimizer, steps: int, seed: int = 2) -> None:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=random).to(param.dtype)
        optimizer.step()


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
    ]


def assert_same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    different = {name: differing_bits(ours[name], theirs[name]) for name in ours}
    assert different == dict.fromkeys(different, 0)


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
    assert_same_bits(values(later), values(optimizer))


# --- torch.optim's state dicts ---------------------------------------------------------------------------

PAIRS = [(GrokAdamW, torch.optim.AdamW), (GrokAdam, torch.optim.Adam)]


@pytest.mark.parametrize("amsgrad", [False, True], ids=["adam", "amsgrad"])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["AdamW", "Adam"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_optims_moments_are_adopted_and_the_slow_gradient_starts_next(
    backend, ours, theirs, amsgrad
) -> None:
    param = torch.randn(9, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    torchs = theirs([param], foreach=False, amsgrad=amsgrad, **ADAM)
    train(torchs, 3)
    saved = through_a_file(torchs.state_dict())
    adopted = copies([param])
    optimizer = ours(adopted, alpha=0.93, lamb=1.7, backend=backend)
    optimizer.load_state_dict(saved)
    state = optimizer.state[adopted[0]]
    for key, value in torchs.state[param].items():
        assert differing_bits(state[key], value) == 0, key
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in ADAM} == ADAM
    assert (group["alpha"], group["lamb"], group["backend"]) == (0.93, 1.7, backend)
    train(optimizer, 1, seed=5)
    assert state is optimizer.state[adopted[0]]
    assert state["step"] == 4
    assert differing_bits(state["grad_ema"], adopted[0].grad) == 0


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["AdamW", "Adam"])
def test_training_from_torch_optims_state_goes_on_as_torch_would(ours, theirs) -> None:
    param = torch.randn(9, 7, generator=torch.Generator().manual_seed(1)).requires_grad_()
    torchs = theirs([param], foreach=False, **ADAM)
    train(torchs, 3)
    adopted = copies([param])
    optimizer = ours(adopted, lamb=0.0)
    optimizer.load_state_dict(torchs.state_dict())
    for each in (torchs, optimizer):
        train(each, 20, seed=5)
    # torch rounds in another order: a few units in the last place (1.2e-7) of the largest parameter.
    assert (adopted[0] - param).abs().max() <= 4 * 1.2e-7 * param.abs().max()


def test_torch_optims_half_precision_states_are_widened_exactly() -> None:
    param = torch.randn(33, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    torchs = torch.optim.AdamW([param], foreach=False, **ADAM)
    train(torchs, 3)
    adopted = copies([param])
    optimizer = GrokAdamW(adopted)
    optimizer.load_state_dict(torchs.state_dict())
    for key in ("exp_avg", "exp_avg_sq"):
        assert differing_bits(optimizer.state[adopted[0]][key], torchs.state[param][key].float()) == 0


# --- what does not fit is refused ------------------------------------------------------------------------


def optimizer_in_use() -> GrokAdamW:
    params = new_params()
    optimizer = GrokAdamW([{"params": params[:2]}, {"params": params[2:], "lamb": 0.4}], **OPTIONS)
    train(optimizer, 2)
    return optimizer


def of_other_shapes(saved: dict[str, Any]) -> None:
    for key in ("exp_avg", "exp_avg_sq", "grad_ema"):
        saved["state"][3][key] = torch.zeros(6, 4)


def with_one_array_of_another_shape(saved: dict[str, Any]) -> None:
    saved["state"][3]["grad_ema"] = torch.zeros(5, 6)


def with_other_group_sizes(saved: dict[str, Any]) -> None:
    first, second = saved["param_groups"]
    second["params"].insert(0, first["params"].pop())


def with_fewer_groups(saved: dict[str, Any]) -> None:
    saved["param_groups"].pop()


def without_a_moment(saved: dict[str, Any]) -> None:
    del saved["state"][3]["exp_avg_sq"]


def without_a_step_count(saved: dict[str, Any]) -> None:
    del saved["state"][3]["step"]


def of_another_algorithm(saved: dict[str, Any]) -> None:
    saved["state"] = {i: {"momentum_buffer": s["exp_avg"]} for i, s in saved["state"].items()}


def with_states_of_more_bits(saved: dict[str, Any]) -> None:
    saved["state"][3]["exp_avg"] = saved["state"][3]["exp_avg"].double()


def with_fewer_bits_asked_for(saved: dict[str, Any]) -> None:
    saved["param_groups"][1]["state_dtype"] = "bfloat16"


def with_step(count: object) -> Callable[[dict[str, Any]], None]:
    def spoil(saved: dict[str, Any]) -> None:
        saved["state"][3]["step"] = count

    spoil.__name__ = f"with step {count}"
    return spoil


def with_no_array(saved: dict[str, Any]) -> None:
    saved["state"][3]["exp_avg"] = None


def with_no_dict_for_a_state(saved: dict[str, Any]) -> None:
    saved["state"][3] = 7


def with_a_mask_of_numbers(saved: dict[str, Any]) -> None:
    saved["state"][3]["mask"] = torch.ones(6, 5)


def with_an_unknown_state_dtype(saved: dict[str, Any]) -> None:
    saved["param_groups"][1]["state_dtype"] = "float8_e4m3fn"


MISFITS: dict[Callable[[dict[str, Any]], None], str] = {
    of_other_shapes: r"state\[3\]\['exp_avg'\] has shape \[6, 4\], its parameter \[6, 5\]",
    with_one_array_of_another_shape: r"state\[3\]\['grad_ema'\] has shape \[5, 6\].*another model",
    with_other_group_sizes: r"doesn't match the size.*groups of \[1, 3\] parameters, this optimizer \[2, 2\]",
    with_fewer_groups: r"groups of \[2\] parameters, this optimizer \[2, 2\]",
    without_a_moment: r"state\[3\] lacks \['exp_avg_sq'\]",
    without_a_step_count: r"state\[3\] lacks \['step'\]",
    of_another_algorithm: r"state\[0\] lacks .*not the state of an Adam",
    with_states_of_more_bits: r"is torch.float64 and would lose bits as torch.float32: convert the saved",
    with_step(float("nan")): r"state\[3\]\['step'\] must be a whole number of steps >= 0, got nan",
    with_step(-1): r"whole number of steps >= 0, got -1",
    with_step(0.5): r"whole number of steps >= 0, got 0.5",
    with_step("two"): r"must be a number of steps, got 'two'",
    with_step(torch.ones(2)): r"must be a number of steps, got tensor",
    with_no_array: r"state\[3\]\['exp_avg'\] must be a tensor of its parameter's shape, got NoneType",
    with_no_dict_for_a_state: r"state\[3\] must be a dict of states, got int",
    with_a_mask_of_numbers: r"mask of state\[3\]'s parameter must be a bool tensor.*got torch.float32",
    with_fewer_bits_asked_for: r"state\[2\]\['exp_avg'\] is torch.float32 and would lose bits as torch",
    with_an_unknown_state_dtype: r"state_dtype must be .*float8_e4m3fn",
}


@pytest.mark.parametrize(("spoil", "message"), MISFITS.items(), ids=[spoil.__name__ for spoil in MISFITS])
def test_a_state_dict_that_does_not_fit_is_refused_before_anything_changed(spoil, message) -> None:
    source = optimizer_in_use()
    train(source, 1, seed=9)
    saved = copy.deepcopy(source.state_dict())
    spoil(saved)
    optimizer, twin = optimizer_in_use(), optimizer_in_use()
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert options(optimizer) == options(twin)
    assert_same_bits(values(optimizer), values(twin))
    for each in (optimizer, twin):
        train(each, 2, seed=5)
    assert_same_bits(values(optimizer), values(twin))


def test_torch_optims_float32_states_are_refused_where_bfloat16_was_asked_for() -> None:
    params = new_params()[:1]
    torchs = torch.optim.AdamW(params, **ADAM)
    train(torchs, 1)
    with pytest.raises(
        ValueError, match=r"would lose bits.*make the optimizer with state_dtype=torch.float3"
    ):
        GrokAdamW(copies(params), state_dtype=torch.bfloat16).load_state_dict(torchs.state_dict())


# --- other people's code ---------------------------------------------------------------------------------


def test_load_hooks_see_the_dict_before_and_the_restored_states_after() -> None:
    params = new_params()
    optimizer = GrokAdamW(params, **OPTIONS)
    train(optimizer, 2)
    saved = optimizer.state_dict()
    resumed = GrokAdamW(copies(params))
    seen: dict[str, Any] = {}

    def before(who: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        seen["before"] = (who is resumed, state_dict["state"].keys(), len(who.state))

    def after(who: torch.optim.Optimizer) -> None:
        seen["after"] = values(who)

    resumed.register_load_state_dict_pre_hook(before)
    resumed.register_load_state_dict_post_hook(after)
    resumed.load_state_dict(saved)
    assert seen["before"] == (True, saved["state"].keys(), 0)
    assert_same_bits(seen["after"], values(optimizer))


def test_a_load_hook_may_exchange_the_dict_and_the_new_one_is_checked() -> None:
    optimizer, resumed = optimizer_in_use(), optimizer_in_use()
    train(optimizer, 2, seed=5)
    wanted = copy.deepcopy(optimizer.state_dict())
    handle = resumed.register_load_state_dict_pre_hook(lambda who, state_dict: wanted)
    resumed.load_state_dict({"state": {}, "param_groups": []})
    for index, state in enumerate(resumed.state.values()):
        assert differing_bits(state["grad_ema"], wanted["state"][index]["grad_ema"]) == 0
    handle.remove()
    resumed.register_load_state_dict_pre_hook(lambda who, state_dict: {"state": {}, "param_groups": []})
    with pytest.raises(ValueError, match="doesn't match the size"):
        resumed.load_state_dict(wanted)


def test_state_dict_hooks_work_as_with_torchs_optimizers() -> None:
    optimizer = optimizer_in_use()
    optimizer.register_state_dict_post_hook(lambda who, state_dict: {**state_dict, "note": "mine"})
    assert optimizer.state_dict()["note"] == "mine"


def test_an_empty_state_dict_loads_as_accelerate_does_when_it_prepares() -> None:
    params = new_params()
    prepared, plain = GrokAdamW(params, **OPTIONS), GrokAdamW(copies(params), **OPTIONS)
    prepared.load_state_dict(prepared.state_dict())
    assert options(prepared) == options(plain)
    for each in (prepared, plain):
        train(each, 3)
    assert_same_bits(values(prepared), values(plain))


def test_states_moved_by_hand_are_used_from_the_next_step() -> None:
    # Offloading and sharding libraries exchange the tensors in optimizer.state.
    optimizer, twin = optimizer_in_use(), optimizer_in_use()
    for state in optimizer.state.values():
        for key, value in state.items():
            state[key] = value.clone()
    for each in (optimizer, twin):
        train(each, 2, seed=5)
    assert_same_bits(values(optimizer), values(twin))


def test_a_step_counter_written_by_hand_counts() -> None:
    optimizer, twin = optimizer_in_use(), optimizer_in_use()
    param = optimizer.param_groups[0]["params"][0]
    optimizer.state[param]["step"].fill_(40.0)
    before = [state["step"].item() for state in twin.state.values()]
    train(optimizer, 1, seed=5)
    train(twin, 1, seed=5)
    assert [state["step"].item() for state in optimizer.state.values()] == [
        41.0,
        *(n + 1 for n in before[1:]),
    ]
    ours, theirs = values(optimizer), values(twin)
    assert differing_bits(ours["0 param"], theirs["0 param"]) > 0
    for name in ours:
        if not name.startswith("0 "):
            assert differing_bits(ours[name], theirs[name]) == 0


@pytest.mark.parametrize("count", [float("nan"), -1.0])
def test_a_step_counter_overwritten_with_what_is_none_is_refused(count) -> None:
    optimizer = optimizer_in_use()
    last = optimizer.param_groups[1]["params"][1]
    for param in (optimizer.param_groups[0]["params"][0], last):
        before = values(optimizer)
        optimizer.state[param]["step"].fill_(count)
        with pytest.raises(RuntimeError, match=f"step count of a parameter must be .*got {count}"):
            optimizer.step()
        optimizer.state[param]["step"].fill_(2)
        assert_same_bits(values(optimizer), before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_overwritten_with_what_is_no_tensor_is_refused(backend) -> None:
    optimizer = GrokAdamW(new_params()[:1], backend=backend, **OPTIONS)
    train(optimizer, 2)
    (param,) = optimizer.param_groups[0]["params"]
    before = param.detach().clone()
    optimizer.state[param]["exp_avg"] = None
    with pytest.raises(RuntimeError, match=r"'exp_avg' of parameter 0 of .* must be a tensor, got NoneType"):
        optimizer.step()
    assert torch.equal(param, before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_exchanged_for_another_dict_is_used_from_the_next_step(backend) -> None:
    optimizer, twin = optimizer_in_use(), optimizer_in_use()
    for each in (optimizer, twin):
        for group in each.param_groups:
            group["backend"] = backend
        train(each, 1, seed=4)
    kept = [dict(state) for state in optimizer.state.values()]
    for param, state in list(optimizer.state.items()):
        optimizer.state[param] = {name: value.clone() for name, value in state.items()}
    for each in (optimizer, twin):
        train(each, 2, seed=5)
    assert_same_bits(values(optimizer), values(twin))
    assert [state["step"].item() for state in kept] == [3.0] * len(kept)


@pytest.mark.parametrize("backend", BACKENDS)
def test_cleared_states_start_again(backend) -> None:
    optimizer = optimizer_in_use()
    for group in optimizer.param_groups:
        group["backend"] = backend
    train(optimizer, 1, seed=4)
    params = [copies(group["params"]) for group in optimizer.param_groups]
    fresh = GrokAdamW([{"params": params[0]}, {"params": params[1], "lamb": 0.4}], **OPTIONS)
    optimizer.state.clear()
    for each in (optimizer, fresh):
        train(each, 2, seed=5)
    assert_same_bits(values(optimizer), values(fresh))
