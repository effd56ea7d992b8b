"""What does not fit is refused whole."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checkpointing import copies, new_params, optimizer_in_use, options
from stepping import ADAM, assert_same_bits, train, values

from grokfused import GrokAdamW


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


def with_a_sparse_moment(saved: dict[str, Any]) -> None:
    saved["state"][3]["exp_avg"] = saved["state"][3]["exp_avg"].to_sparse()


def with_a_start_of_the_filter_that_is_none(saved: dict[str, Any]) -> None:
    saved["state"][3]["grad_ema_start"] = "soon"


def with_a_state_of_nobody(saved: dict[str, Any]) -> None:
    saved["state"][9] = saved["state"][3]


def with_an_option_lost(saved: dict[str, Any]) -> None:
    del saved["param_groups"][1]["lr"]


def with_an_option_out_of_range(saved: dict[str, Any]) -> None:
    saved["param_groups"][1]["lr"] = float("-inf")


def without_states(saved: dict[str, Any]) -> None:
    saved["state"] = None


def with_an_unknown_state_dtype(saved: dict[str, Any]) -> None:
    saved["param_groups"][1]["state_dtype"] = "float8_e4m3fn"


def put(value: object, *path: object) -> Callable[[dict[str, Any]], None]:
    """Returns what puts a value at a place of the state dict."""

    def spoil(saved: dict[str, Any]) -> None:
        found: Any = saved
        for key in path[:-1]:
            found = found[key]
        found[path[-1]] = value

    shown = f"{value.dtype} {value.device}" if isinstance(value, torch.Tensor) else value
    spoil.__name__ = f"with {shown} at {path}"
    return spoil


def without_the_params_of_a_group(saved: dict[str, Any]) -> None:
    del saved["param_groups"][1]["params"]


def with_a_nested_moment(saved: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is a prototype
        saved["state"][3]["exp_avg"] = torch.nested.nested_tensor(list(saved["state"][3]["exp_avg"]))


def with_a_mask_without_values(saved: dict[str, Any]) -> None:
    saved["state"][3].update(mask=torch.ones(6, 5, dtype=torch.bool, device="meta"), mask_mode="zero")


GROUP = ("param_groups", 1)
MISFITS: dict[Callable[[dict[str, Any]], None], str] = {
    of_other_shapes: r"state\[3\]\['exp_avg'\] has shape \[6, 4\], its parameter \[6, 5\]",
    with_one_array_of_another_shape: r"state\[3\]\['grad_ema'\] has shape \[5, 6\].*another model",
    with_other_group_sizes: r"doesn't match the size.*groups of \[1, 3\] parameters, this optimizer \[2, 2\]",
    with_fewer_groups: r"groups of \[2\] parameters, this optimizer \[2, 2\]",
    without_a_moment: r"state\[3\] lacks \['exp_avg_sq'\]",
    without_a_step_count: r"state\[3\] lacks \['step'\]",
    of_another_algorithm: r"state\[0\] lacks .*not the state of an Adam",
    with_step(
        float("nan")
    ): r"state\[3\]\['step'\] must be a whole number of steps in \[0, 2\*\*24\], got nan",
    with_step(-1): r"whole number of steps in \[0, 2\*\*24\], got -1",
    with_step(0.5): r"whole number of steps in \[0, 2\*\*24\], got 0.5",
    with_step(1e30): r"whole number of steps in \[0, 2\*\*24\], got 1e\+30",
    with_step("two"): r"must be a number of steps, got 'two'",
    with_step(torch.ones(2)): r"must be a number of steps, got tensor",
    with_no_array: r"state\[3\]\['exp_avg'\] must be a tensor of its parameter's shape, got NoneType",
    with_no_dict_for_a_state: r"state\[3\] must be a dict of states, got int",
    with_a_mask_of_numbers: r"mask of state\[3\]'s parameter must be a bool tensor.*got torch.float32",
    with_fewer_bits_asked_for: r"state\[2\]\['exp_avg'\] is torch.float32 and would lose bits as torch",
    with_a_sparse_moment: r"state\[3\]\['exp_avg'\] must be a dense tensor, got layout torch.sparse_coo",
    with_a_start_of_the_filter_that_is_none: r"state\[3\]\['grad_ema_start'\] must be a number of steps",
    with_a_state_of_nobody: r"states \[9\] belong to no parameter",
    with_an_option_lost: r"param_groups\[1\] lacks \['lr'\]: it is not a group of an Adam",
    with_an_option_out_of_range: r"Invalid learning rate: -inf",
    without_states: r"must have a mapping 'state', got NoneType",
    with_an_unknown_state_dtype: r"state_dtype must be .*float8_e4m3fn",
    put([3, 4], "param_groups"): r"param_groups\[0\] must be a dict of options and 'params', got int",
    put("ab", "param_groups"): r"param_groups\[0\] must be a dict of options and 'params', got str",
    without_the_params_of_a_group: r"param_groups\[1\]\['params'\] must be a list, got none: give what",
    put(3, *GROUP, "params"): r"param_groups\[1\]\['params'\] must be a list, got int: give what",
    put([2, [3]], *GROUP, "params"): r"param_groups\[1\]\['params'\] must hold int or str, got list: give",
    put(
        [2, 0], *GROUP, "params"
    ): r"name the parameters \[0\] more than once, and this optimizer has several",
    put(3, *GROUP, "param_names"): r"param_groups\[1\]\['param_names'\] must be a list, got int: give what",
    put([3, 4], *GROUP, "param_names"): r"param_groups\[1\]\['param_names'\] must hold str, got int: give",
    put(torch.ones(3), *GROUP, "masks"): r"param_groups\[1\]\['masks'\] must be the number of .*got Tensor",
    put("two", *GROUP, "masks"): r"param_groups\[1\]\['masks'\] must be the number of .*got str",
    put(1, *GROUP, "masks"): r"param_groups\[1\] was saved with 1 masks, of which 0 arrived",
    put(torch.ones(3), *GROUP, "eps"): r"param_groups\[1\]: eps must be a finite number, got tensor",
    put(torch.ones(3), *GROUP, "amsgrad"): r"param_groups\[1\]: amsgrad must be True or False, got tensor",
    put(1.5, *GROUP, "max_grad_norm"): r"max_grad_norm .*equal in all groups, got \[None, 1.5\]",
    put({}, "state", 9): r"the states \[9\] belong to no parameter.*: give what",
    put(None, "state", 0): r"state\[0\] must be a dict of states, got NoneType: leave the key out",
    put([], "state", 0): r"state\[0\] must be a dict of states, got list: leave the key out",
    put("3", "state", 3, "step"): r"state\[3\]\['step'\] must be a number of steps, got '3'",
    **{
        put(torch.ones(6, 5, dtype=dtype), "state", 3, "exp_avg"): (
            rf"state\[3\]\['exp_avg'\] must be torch.float32, got {dtype}: convert"
        )
        for dtype in (torch.int64, torch.bool, torch.float8_e4m3fn)
    },
    put(torch.ones(6, 5, device="meta"), "state", 3, "exp_avg"): r"'exp_avg'\] is on the meta device and has",
    with_a_mask_without_values: r"state\[3\]\['mask'\] is on the meta device and has no values",
    with_a_nested_moment: r"state\[3\]\['exp_avg'\] must be a dense tensor, got a nested tensor",
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


@pytest.mark.parametrize("saved", [None, {}, {"state": {}}, [1]], ids=str)
def test_what_is_no_state_dict_is_refused(saved) -> None:
    with pytest.raises(ValueError, match="a state dict must"):
        optimizer_in_use().load_state_dict(saved)


def test_a_moment_that_wants_a_gradient_becomes_a_plain_state() -> None:
    optimizer = optimizer_in_use()
    saved = copy.deepcopy(optimizer.state_dict())
    saved["state"][3]["exp_avg"].requires_grad_()
    optimizer.load_state_dict(saved)
    assert not any(state["exp_avg"].requires_grad for state in optimizer.state.values())
    assert_same_bits(values(copy.deepcopy(optimizer)), values(optimizer))


def test_torch_optims_float32_states_are_refused_where_bfloat16_was_asked_for() -> None:
    params = new_params()[:1]
    torchs = torch.optim.AdamW(params, **ADAM)
    train(torchs, 1)
    with pytest.raises(
        ValueError, match=r"would lose bits.*make the optimizer with state_dtype=torch.float3"
    ):
        GrokAdamW(copies(params), state_dtype=torch.bfloat16).load_state_dict(torchs.state_dict())
