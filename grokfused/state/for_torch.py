"""What ``torch_state_dict()`` returns: the part of the states that torch.optim.Adam and AdamW know."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from grokfused.state.blocks import as_numbers
from grokfused.state.prepare import check_state
from grokfused.state.saved_form import MASKS
from grokfused.state.storage import state_dtype_for, state_like
from grokfused.step.members import param_names

# The options of torch.optim.Adam and AdamW that are ours too; `decoupled_weight_decay` tells the two apart.
ADAM_OPTIONS = ("lr", "betas", "eps", "weight_decay", "amsgrad")
TORCH_OPTIONS = (
    *(*ADAM_OPTIONS, "maximize"),
    *("foreach", "fused", "capturable", "differentiable"),
)


def for_torch(optimizer: Any) -> dict[str, Any]:
    """Returns the state dict of torch.optim.Adam or AdamW; see ``GrokAdam.torch_state_dict``.

    What is in a group beside our options (a scheduler's ``initial_lr``, ``param_names``) is kept.
    """
    names = param_names(optimizer.param_groups)
    owned = [param for group in optimizer.param_groups for param in group["params"]]
    numbers = {param: number for number, param in enumerate(owned)}
    left_out = {"params", MASKS, *optimizer.defaults} - set(TORCH_OPTIONS)
    state_dict: dict[str, Any] = {"state": {}, "param_groups": []}
    for group in optimizer.param_groups:
        options = {name: copy.deepcopy(value) for name, value in group.items() if name not in left_out}
        members = [numbers[param] for param in group["params"]]
        options |= {"decoupled_weight_decay": optimizer.decay == "decoupled", "params": members}
        state_dict["param_groups"].append(options)
        for param in dict.fromkeys(group["params"]):
            state = optimizer.state.get(param)
            if state and "mask" in state:
                raise ValueError(
                    f"{names[param]} has a mask, which torch.optim would ignore: "
                    "keep what masks() returns, and call remove_mask first"
                )
            if state:
                check_state(param, state, group, names[param])
                state_dict["state"][numbers[param]] = _state_for_torch(param, state, group["amsgrad"])
    return state_dict


def _state_for_torch(param: Tensor, state: Mapping[str, Any], amsgrad: bool) -> dict[str, Tensor]:
    arrays = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if amsgrad else ()))
    numbers = as_numbers(state, param)
    moments = {key: state_like(param, state_dtype_for(param, "float32"), numbers.get(key)) for key in arrays}
    step = torch.tensor(float(state["step"]), dtype=torch.float32, device="cpu")
    return {"step": step, **moments}
