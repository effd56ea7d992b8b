"""What is asked of parameter groups when they are given; a step looks at them anew."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn import Module
from torch.nn.parameter import is_lazy

from grokfused.state.storage import check_param
from grokfused.step.clipping import max_norm_of
from grokfused.step.grad_filter import FILTERS
from grokfused.step.options import check_options, plain, warn_of_typos

IDLE = (
    "lamb=0 adds nothing, but the memory of grad_filter={!r} ({}) is kept and moved in every step: give "
    "grad_filter='none', and write group['grad_filter'] = {!r} when it shall begin. For a memory that is "
    "filled by then, construct with the later lamb and write group['lamb'] = 0: that brings no warning"
)
# What an optimizer may lack that was pickled by an older version.
SINCE_THEN: dict[str, Any] = {
    "max_grad_norm": None,
    "param_rounding": "nearest",
    "window_size": 100,
    "filter_type": "mean",
    "filter_warmup": True,
    "window_dtype": "float32",
    "filter_start_step": 0,
    "filter_stop_step": None,
}


def listed(params: Any) -> list[Any]:
    """Returns parameters, named ones or groups as a list; raises TypeError for what is none."""
    if not isinstance(params, Iterable):
        hint = ": give its parameters()" if isinstance(params, Module) else ""
        raise TypeError(f"params must be parameters or groups of them, got {type(params).__name__}{hint}")
    return list(params)


def checked_group(
    given: Mapping[str, Any], others: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns a copy of a group, checked, with its parameters as a list and its options as plain values.

    Args:
        given: The group that is added.
        others: Those that there are.
        defaults: The options that it need not name.

    Raises:
        ValueError, TypeError: An option is out of its range, or a parameter cannot be stepped.
    """
    warn_of_typos(given, ("params", "param_names", *defaults), stacklevel=3)
    group = {**given, **plain({name: given[name] for name in given if name in defaults})}
    if not isinstance(group["params"], (Tensor, set)):
        group["params"] = listed(group["params"])
    options = {**defaults, **group}
    check_options(options, given=True)
    max_norm_of([*others, options])
    params = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
    for index, param in enumerate(params):
        name, tensor = param if isinstance(param, tuple) else (index, param)
        # What cannot be stepped now may be owned.
        if not (isinstance(tensor, Tensor) and (is_lazy(tensor) or not tensor.requires_grad)):
            check_param(tensor, f"parameter {name!r} of group {len(others)}")
    if _idle(options) and not any(map(_idle, others)):
        name = options["grad_filter"]
        warnings.warn(IDLE.format(name, ", ".join(FILTERS[name].states), name), stacklevel=3)
    return group


def _idle(options: Mapping[str, Any]) -> bool:
    """Says whether a group's filter adds nothing."""
    return bool(options["grad_filter"] != "none" and options["lamb"] == 0)
