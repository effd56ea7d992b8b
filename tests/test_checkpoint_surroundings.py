"""Other people's code around a checkpoint: hooks, and states moved or written by hand."""

import copy
from typing import Any

import pytest
import torch
from checkpointing import OPTIONS, copies, new_params, optimizer_in_use, options
from stepping import BACKENDS, assert_same_bits, through_a_file, train, values

from grokfused import GrokAdamW
from grokfused.lab.agreement import differing_bits


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


@pytest.mark.parametrize("count", [float("nan"), -1.0, 2.5, 2.0**30])
def test_a_step_counter_overwritten_with_what_is_none_is_refused(count) -> None:
    optimizer = optimizer_in_use()
    last = optimizer.param_groups[1]["params"][1]
    for param in (optimizer.param_groups[0]["params"][0], last):
        before = values(optimizer)
        optimizer.state[param]["step"].fill_(count)
        with pytest.raises(RuntimeError, match=f"step count of parameter .* must be .*got {count}"):
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_of_others_pass_through_checkpoints_copies_and_masks(backend) -> None:
    params = new_params()
    optimizer = GrokAdamW(params, backend=backend, **OPTIONS)
    whole = {"trac": {"s": torch.tensor(0.25), "mask": None, "beta": 0.9}, "test": 1}
    part = {"note": "mine", "ranks": [torch.arange(3), (1, "a")], "wide": torch.ones(2, dtype=torch.float64)}
    # As a hook does it, at every step.
    optimizer.register_step_post_hook(lambda who, *_: who.state.update(whole))
    train(optimizer, 1)
    optimizer.state[params[1]].update(part)
    optimizer.set_mask(params[1], params[1] > 0)
    train(optimizer, 1)
    resumed = GrokAdamW(copies(params), backend=backend)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for each in (optimizer, resumed, copy.deepcopy(optimizer)):
        assert {key: each.state[key] for key in whole} == whole
        own = each.state[each.param_groups[0]["params"][1]]
        assert repr({key: own[key] for key in part}) == repr(part)
        assert len(each.masks()) == 1
    train(optimizer, 2, seed=5)
    train(resumed, 2, seed=5)
    for a, b in zip(params, resumed.param_groups[0]["params"], strict=True):
        assert differing_bits(a.detach(), b.detach()) == 0


def test_a_state_of_a_parameter_that_there_is_not_is_refused_still() -> None:
    optimizer = optimizer_in_use()
    saved = optimizer.state_dict()
    saved["state"] = {**saved["state"], 99: saved["state"][0]}
    with pytest.raises(ValueError, match=r"states \[99\] belong to no parameter"):
        optimizer.load_state_dict(saved)
