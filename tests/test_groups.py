"""Parameter groups belong to who gives them: kept as they are, and refused without a trace."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from snapshot import param
from stepping import BACKENDS, OPTIONS, new_param, train

from grokfused import GrokAdamW
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
