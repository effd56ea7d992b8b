"""Parameter groups belong to who gives them: kept as they are, and refused without a trace."""

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from snapshot import param
from stepping import (
    ADAM,
    BACKENDS,
    OPTIONS,
    assert_same_bits,
    new_param,
    train,
    ulps_of_the_largest,
    values,
)
from torch import Tensor

from grokfused import GrokAdamW, step_in_backward
from grokfused.lab.agreement import differing_bits

# --- the dict itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_group_is_the_very_dict_that_was_given(backend) -> None:
    first, second = {"params": [new_param(3)]}, {"params": new_param(4), "lr": 0.25}
    optimizer = GrokAdamW([first], backend=backend, **OPTIONS)
    optimizer.add_param_group(second)
    assert optimizer.param_groups[0] is first
    assert optimizer.param_groups[1] is second
    assert (first["lr"], second["lr"], second["alpha"]) == (OPTIONS["lr"], 0.25, OPTIONS["alpha"])
    train(optimizer, 1)
    first["lr"] = 0.0  # as wrappers and schedulers write it that keep the dicts they gave
    before = [each.detach().clone() for group in (first, second) for each in group["params"]]
    train(optimizer, 1)
    assert differing_bits(first["params"][0].detach(), before[0]) == 0
    assert differing_bits(second["params"][0].detach(), before[1]) > 0


def test_a_live_group_may_name_its_state_dtype_by_torchs_dtype() -> None:
    param = new_param(3)
    optimizer = GrokAdamW([param])
    optimizer.param_groups[0]["state_dtype"] = torch.bfloat16
    param.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].dtype is torch.bfloat16
    optimizer.param_groups[0]["state_dtype"] = torch.float16
    with pytest.raises(ValueError, match="state_dtype must be"):
        optimizer.step()


def test_a_group_may_name_its_state_dtype_by_torchs_dtype() -> None:
    group = {"params": [new_param(3)], "state_dtype": torch.bfloat16}
    optimizer = GrokAdamW([group])
    train(optimizer, 1)
    assert group["state_dtype"] == "bfloat16"
    assert optimizer.state[group["params"][0]]["exp_avg"].dtype is torch.bfloat16


def owned_twice(optimizer: GrokAdamW) -> dict[str, Any]:
    return {"params": optimizer.param_groups[0]["params"]}


REFUSED: dict[str, Callable[[GrokAdamW], dict[str, Any]]] = {
    "an option out of range": lambda _: {"params": iter([param(3)]), "lr": -1.0},
    "a parameter that is no leaf": lambda _: {"params": (param(3) * 2,)},
    "names beside a group without": lambda _: {"params": [("weight", param(3))]},
    "a parameter of another group": owned_twice,
    "a set of parameters": lambda _: {"params": {param(3)}},
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
def test_a_refused_group_is_left_as_it_was_given(make) -> None:
    optimizer = GrokAdamW([param(4)])
    group = make(optimizer)
    before = dict(group)
    with pytest.raises((ValueError, TypeError)):
        optimizer.add_param_group(group)
    assert group.keys() == before.keys()
    assert all(group[name] is before[name] for name in group)
    assert len(optimizer.param_groups) == 1


# --- the keys of others ----------------------------------------------------------------------------------


SLIPS = {
    "weight_decy": "weight_decay",
    "weight_deacy": "weight_decay",
    "weight_decayy": "weight_decay",
    "lam": "lamb",
    "beta": "betas",
    "sead": "seed",
    "max_gradnorm": "max_grad_norm",
}


@pytest.mark.parametrize(("misspelt", "meant"), SLIPS.items())
def test_a_slip_of_the_pen_in_a_group_is_kept_with_a_warning(misspelt, meant) -> None:
    optimizer = GrokAdamW([param(4)], **OPTIONS)
    message = f"'{misspelt}' .* did you mean '{meant}'"
    with pytest.warns(UserWarning, match=message) as warned:
        optimizer.add_param_group({"params": [param(3)], misspelt: 0.5})
    assert warned[0].filename == __file__
    assert optimizer.param_groups[1][misspelt] == 0.5
    with pytest.warns(UserWarning, match=message):
        GrokAdamW([{"params": [param(3)], misspelt: 0.5}], **OPTIONS)


# Those that tools write into groups, some of them close to our names. Warnings are errors in this suite.
FOREIGN = (
    *("weight_decay_mult", "initial_weight_decay", "max_norm", "lr_scale", "initial_lr", "max_lr", "lrs"),
    *("minimize", "name", "layer_decay", "alphabet", "eps2", 7),
)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_keys_of_others_are_kept_in_groups_copies_and_checkpoints(backend) -> None:
    foreign = {key: number / 2 for number, key in enumerate(FOREIGN)}
    optimizer = GrokAdamW([{"params": [new_param(3)], **foreign}], backend=backend, **OPTIONS)
    train(optimizer, 1)
    other = GrokAdamW([new_param(3)], backend=backend)
    other.load_state_dict(optimizer.state_dict())
    for each in (optimizer, other, copy.deepcopy(optimizer)):
        assert {key: each.param_groups[0][key] for key in FOREIGN} == foreign


class Wrapper(torch.optim.Optimizer):
    """Shares its groups with the optimizer it makes, and keeps options of its own in them."""

    def __init__(
        self, params: Any, base: type[torch.optim.Optimizer], own: dict[str, Any], **options: Any
    ) -> None:
        super().__init__(params, {**own, **options})
        self.base = base(self.param_groups, **options)
        self.param_groups = self.base.param_groups


def test_an_option_that_a_wrapper_may_mean_otherwise_is_not_taken_unnoticed() -> None:
    words = r"'alpha': 0.5, 'seed': 5} stands in the parameter groups that Wrapper shares, and is read as"
    with pytest.warns(UserWarning, match=words):
        Wrapper([param(3)], GrokAdamW, {"rho": 0.1, "seed": 5, "alpha": 0.5}, lr=0.1)
    with pytest.raises(ValueError, match=r"Invalid alpha value: 9.0 .*'alpha': 9.0} stands"):
        Wrapper([param(3)], GrokAdamW, {"alpha": 9.0}, lr=0.1)
    # Warnings are errors in this suite: of what was given to us, and of groups that are no one else's.
    Wrapper([param(3)], GrokAdamW, {"rho": 0.1}, lr=0.1, alpha=0.5, seed=5)
    GrokAdamW([{"params": [param(3)], "rho": 0.1, "alpha": 0.5}])


# --- a parameter listed twice ----------------------------------------------------------------------------


def twice(kind: Any, **options: Any) -> tuple[torch.optim.Optimizer, Tensor, Tensor]:
    """Returns an optimizer of three places and two parameters, and these."""
    shared, other = new_param(40), new_param(5)
    with pytest.warns(UserWarning, match="a parameter group with duplicate parameters"):
        optimizer = kind([("encoder", shared), ("bias", other), ("decoder", shared)], **options)
    return optimizer, shared, other


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_a_parameter_listed_twice_steps_twice_as_by_torch(masked, backend) -> None:
    ours, shared, other = twice(GrokAdamW, lamb=0.0, backend=backend, **ADAM)
    theirs, twin, twin_other = twice(torch.optim.AdamW, foreach=False, **ADAM)
    kept = torch.ones_like(shared, dtype=torch.bool)
    if masked:
        kept = shared > 0
        ours.set_mask("decoder", kept)
    for optimizer in (ours, theirs):
        train(optimizer, 3)
    assert ours.state[shared]["step"] == theirs.state[twin]["step"] == 6
    # See test_without_amplification_it_is_torch_optim.
    assert ulps_of_the_largest((shared * kept).detach(), (twin * kept).detach()) <= 4
    assert ulps_of_the_largest(other.detach(), twin_other.detach()) <= 4
    assert (shared[~kept] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parameter_listed_twice_is_saved_and_loaded_as_by_torch(backend) -> None:
    optimizer, shared, _ = twice(GrokAdamW, backend=backend, **OPTIONS)
    theirs, _, _ = twice(torch.optim.AdamW)
    optimizer.set_mask(shared, shared > 0)
    train(optimizer, 2)
    train(theirs, 2)
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["params"] == theirs.state_dict()["param_groups"][0]["params"] == [2, 1, 2]
    assert saved["state"].keys() == theirs.state_dict()["state"].keys()
    again, copied, _ = twice(GrokAdamW, backend=backend)
    with torch.no_grad():
        copied.copy_(shared)
    again.load_state_dict(saved)
    assert torch.equal(again.masks()[copied], optimizer.masks()[shared])
    train(optimizer, 1)
    train(again, 1)
    assert differing_bits(copied.detach(), shared.detach()) == 0
    apart = GrokAdamW([new_param(40), new_param(5), new_param(40)])
    with pytest.raises(ValueError, match=r"name the parameters \[2\] more than once"):
        apart.load_state_dict(saved)
    optimizer.remove_mask(shared)
    theirs.load_state_dict(optimizer.torch_state_dict())
    assert theirs.state_dict()["state"][2]["step"] == 6
    again.load_state_dict(theirs.state_dict())
    assert again.state[copied]["step"] == 6


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parameter_listed_twice_steps_twice_in_the_backward_pass(backend) -> None:
    results = []
    for in_backward in (False, True):
        optimizer, shared, other = twice(GrokAdamW, backend=backend, **OPTIONS)
        with step_in_backward(optimizer) if in_backward else nullcontext():
            (shared.square().sum() + other.square().sum()).backward()
            optimizer.step()
        results.append(values(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_message_names_a_parameter_that_is_listed_twice(backend) -> None:
    optimizer, shared, _ = twice(GrokAdamW, backend=backend)
    shared.grad = torch.ones(40).to_sparse()
    with pytest.raises(RuntimeError, match="gradient of parameter 'encoder' of group 0"):
        optimizer.step()
