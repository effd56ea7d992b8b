"""``state_dict()`` and ``load_state_dict()``: what ours has more than torch's, between the hooks of others.

torch's own cast states and know no masks. To change that from outside takes a hook on the optimizer, which
all threads share. Relied on beside torch's public interface: the names of its dicts of hooks.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from grokfused.state.checkpoint import check_parts, owned_state, saved_states
from grokfused.state.saved_form import as_saved, make_place


def saved(optimizer: Any) -> dict[str, Any]:
    """Returns the state dict of an optimizer, in which states hold tensors only."""
    for hook in list(optimizer._optimizer_state_dict_pre_hooks.values()):
        hook(optimizer)
    found = as_saved(optimizer.param_groups, _packed(optimizer))
    for hook in list(optimizer._optimizer_state_dict_post_hooks.values()):
        changed = hook(optimizer, found)
        found = found if changed is None else changed
    return found


def _packed(optimizer: Any) -> dict[str, Any]:
    """Returns groups and states with numbers for parameters, counted as torch counts them."""
    numbers: dict[int, int] = {}
    begin, packed = 0, []
    for group in list(optimizer.param_groups):
        params = list(group["params"])
        known = set(numbers)
        numbers.update({id(p): n for n, p in enumerate(params, begin) if id(p) not in known})
        packed.append({**group, "params": [numbers[id(param)] for param in params]})
        begin += len(params)
    # `list`: another thread may be making states.
    entries = [
        (numbers[id(key)] if isinstance(key, Tensor) else key, value)
        for key, value in list(optimizer.state.items())
    ]
    return {"state": dict(entries), "param_groups": packed}


def load(optimizer: Any, state_dict: Mapping[str, Any]) -> None:
    """Loads a state dict into an optimizer; see ``GrokAdam.load_state_dict``."""
    check_parts(state_dict)
    given = dict(state_dict)  # as torch: hooks may change it
    for hook in list(optimizer._optimizer_load_state_dict_pre_hooks.values()):
        changed = hook(optimizer, given)
        given = given if changed is None else changed
    found = saved_states(optimizer.param_groups, given, optimizer.defaults)
    numbered = {key for group in given["param_groups"] for key in group["params"]}
    others = {key: value for key, value in given["state"].items() if key not in numbered}
    state: defaultdict[Any, Any] = defaultdict(dict, others)
    for param, options, saved_state in found:  # whatever fails has changed nothing yet
        state[param] = owned_state(param, options, saved_state)
    # In one go: a learning rate that is one tensor in all groups stays one.
    copied = copy.deepcopy(given["param_groups"])
    groups = [_loaded(*pair) for pair in zip(optimizer.param_groups, copied, strict=True)]
    make_place(groups)
    optimizer.__setstate__({"state": state, "param_groups": groups})
    for hook in list(optimizer._optimizer_load_state_dict_post_hooks.values()):
        hook(optimizer)


def _loaded(group: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a group with the options that were saved and the parameters that there are."""
    names = {"param_names": group["param_names"]} if "param_names" in group else {}
    return {**names, **options, "params": group["params"]}
