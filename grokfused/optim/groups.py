"""What is asked of parameter groups when they are given; a step looks at them anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy

from grokfused.state.storage import check_param
from grokfused.step.clipping import max_norm_of
from grokfused.step.options import check_options, plain, warn_of_typos


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
        group["params"] = list(group["params"])
    options = {**defaults, **group}
    check_options(options, given=True)
    max_norm_of([*others, options])
    params = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
    for index, param in enumerate(params):
        name, tensor = param if isinstance(param, tuple) else (index, param)
        # What cannot be stepped now may be owned.
        if not (isinstance(tensor, Tensor) and (is_lazy(tensor) or not tensor.requires_grad)):
            check_param(tensor, f"parameter {name!r} of group {len(others)}")
    return group
