"""What grokadamw saves, as ours: its states lie in ``param_groups``, keyed by the parameters themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

NAMES = {"step": "step", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "grok_ema": "grad_ema"}
Groups = Sequence[dict[str, Any]]


def is_theirs(state_dict: object) -> bool:
    """Says whether grokadamw has saved this."""
    groups = state_dict.get("param_groups") if isinstance(state_dict, Mapping) else None
    if not isinstance(groups, Sequence) or not groups:
        return False
    return all(
        isinstance(group, Mapping) and "alpha_init" in group and "grad_filter" not in group
        for group in groups
    )


def as_ours(state_dict: Mapping[str, Any], groups: Groups) -> dict[str, Any]:
    """Returns a state dict of grokadamw's as this optimizer would have saved it.

    Args:
        state_dict: Theirs.
        groups: The optimizer's groups.

    Raises:
        ValueError: It does not fit the groups, or its states cannot be told apart.
    """
    saved_groups = state_dict["param_groups"]
    if len(groups) != len(saved_groups):
        raise ValueError(f"the state dict has {len(saved_groups)} groups, this optimizer {len(groups)}")
    begin, states, found = 0, {}, []
    for number, (group, saved) in enumerate(zip(groups, saved_groups, strict=True)):
        name, params = f"param_groups[{number}]", group["params"]
        if len(saved["params"]) != len(params):
            raise ValueError(
                f"{name} has {len(saved['params'])} parameters in the state dict, {len(params)} here"
            )
        numbers = {param: begin + place for place, param in enumerate(params)}
        for param, state in _paired(params, saved.get("state", {}), name):
            states[numbers[param]] = state
        options = {key: value for key, value in saved.items() if key != "state"}
        # Theirs has no amsgrad; without the key it would not be taken for a group of an Adam.
        found.append({**options, "amsgrad": False, "params": list(numbers.values())})
        begin += len(params)
    return {"state": states, "param_groups": found}


def _paired(
    params: list[Tensor], saved: Mapping[Tensor, Any], name: str
) -> list[tuple[Tensor, dict[str, Any]]]:
    """Returns each parameter that has a state, with it."""
    own = {id(param) for param in params}
    found = [(key, state) for key, state in saved.items() if id(key) in own]
    if saved and not found:
        trained = [param for param in params if param.requires_grad]
        # Loading leaves the keys of the time before in front of those that are stepped.
        states = list(saved.values())[-len(trained) :] if trained else []
        if not trained or len(saved) % len(trained) or len({int(state["step"]) for state in states}) > 1:
            raise ValueError(
                f"{name} has {len(saved)} states for {len(trained)} parameters, in the order of their first "
                "gradients, which is not told unless each has had one in every step: load it beside the "
                "parameters that it was saved with, in one process"
            )
        found = list(zip(trained, states, strict=True))
    return [(param, _state(state, name)) for param, state in found]


def _state(saved: Mapping[str, Any], name: str) -> dict[str, Any]:
    missing = NAMES.keys() - saved.keys()
    if missing:
        raise ValueError(f"a state in {name} lacks {sorted(missing)}: it is not one of grokadamw's")
    found = {ours: saved[theirs] for theirs, ours in NAMES.items()}
    return found | {"step": torch.tensor(float(found["step"]))}
