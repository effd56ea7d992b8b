"""What grokadamw saves, as ours: its states lie in ``param_groups``, keyed by the parameters themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from grokfused.optim.layerwise import layerwise_beta1

GIVEN = "given_group"  # of a group: the number of the group, as it was given, that it is a part of
NAMES = {"step": "step", "exp_avg": "exp_avg", "exp_avg_sq": "exp_avg_sq", "grok_ema": "grad_ema"}
Groups = Sequence[dict[str, Any]]


def by_given_group(groups: Groups) -> list[list[dict[str, Any]]]:
    """Returns the groups, those together that one given group became."""
    found: dict[int, list[dict[str, Any]]] = {}
    for group in groups:
        found.setdefault(group[GIVEN], []).append(group)
    return list(found.values())


def is_theirs(state_dict: object) -> bool:
    """Says whether grokadamw has saved this."""
    groups = state_dict.get("param_groups") if isinstance(state_dict, Mapping) else None
    if not isinstance(groups, Sequence) or not groups:
        return False
    return all(
        isinstance(group, Mapping) and "alpha_init" in group and GIVEN not in group for group in groups
    )


def as_ours(state_dict: Mapping[str, Any], groups: Groups) -> dict[str, Any]:
    """Returns a state dict of grokadamw's as this optimizer would have saved it.

    Args:
        state_dict: Theirs.
        groups: The optimizer's groups.

    Raises:
        ValueError: It does not fit the groups, or its states cannot be told apart.
    """
    given, saved_groups = by_given_group(groups), state_dict["param_groups"]
    if len(given) != len(saved_groups):
        raise ValueError(
            f"the state dict has {len(saved_groups)} groups, this optimizer was given {len(given)}"
        )
    begin, states, found = 0, {}, []
    for number, (parts, saved) in enumerate(zip(given, saved_groups, strict=True)):
        params = [param for part in parts for param in part["params"]]
        numbers = {param: begin + place for place, param in enumerate(params)}
        for param, state in _paired(params, saved.get("state", {}), f"param_groups[{number}]"):
            states[numbers[param]] = state
        options = {name: value for name, value in saved.items() if name not in ("params", "state", "betas")}
        # Theirs has no amsgrad; without the key it would not be taken for a group of an Adam.
        options |= {"amsgrad": False, GIVEN: parts[0][GIVEN]}
        for part, betas in zip(parts, _betas(parts, params, saved, number), strict=True):
            end = begin + len(part["params"])
            found.append({**options, "betas": betas, "params": list(range(begin, end))})
            begin = end
    return {"state": states, "param_groups": found}


def _betas(
    parts: Groups, params: list[Tensor], saved: Mapping[str, Any], number: int
) -> list[tuple[float, float]]:
    """Returns the betas of each part, by the gamma that was saved."""
    if len(saved["params"]) != len(params):
        raise ValueError(
            f"param_groups[{number}] has {len(saved['params'])} parameters in the state dict, "
            f"and {len(params)} here"
        )
    split = layerwise_beta1([{"params": params}], saved["gamma"], saved["betas"])
    if [len(part["params"]) for part in split] != [len(part["params"]) for part in parts]:
        raise ValueError(
            f"param_groups[{number}] was saved with gamma={saved['gamma']}, and this optimizer was made with "
            f"gamma={parts[0]['gamma']}: make it with gamma={saved['gamma']}"
        )
    return [part["betas"] for part in split]


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
    found["step"] = torch.tensor(float(found["step"]))
    narrow = (torch.bfloat16, torch.float16)
    return {key: value.float() if value.dtype in narrow else value for key, value in found.items()}
