"""What may stand in a parameter group: every option's range, checked in one place."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from grokfused import backends
from grokfused.state.storage import PARAM_ROUNDINGS, STATE_DTYPES
from grokfused.step.clipping import check_max_norm
from grokfused.step.grad_filter import FILTERS, INITS
from grokfused.step.scalars import checked_hyperparameters

CHOICES = {
    "grad_filter": tuple(FILTERS),
    "grad_ema_init": INITS,
    "state_dtype": tuple(STATE_DTYPES),
    "state_rounding": ("stochastic", "nearest"),
    "param_rounding": PARAM_ROUNDINGS,
    "backend": backends.NAMES,
}
FLAGS = ("amsgrad", "maximize", "capturable", "differentiable")
# Accepted because torch.optim has them.
INERT = ("foreach", "fused")
# All options that are no number which a step multiplies by.
OPTIONS = (*CHOICES, *FLAGS, *INERT, "seed")


def check_flag(name: str, value: object) -> None:
    """Raises TypeError for what is neither True nor False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_options(options: Mapping[str, Any]) -> None:
    """Raises ValueError or TypeError naming the first option that is out of its range."""
    checked_hyperparameters(options)
    check_choices(options)
    check_max_norm(options["max_grad_norm"])


def check_choices(options: Mapping[str, Any]) -> None:
    """Raises ValueError or TypeError naming the first of ``OPTIONS`` that is out of its range."""
    for name, allowed in CHOICES.items():
        if not (isinstance(options[name], str) and options[name] in allowed):
            raise ValueError(f"{name} must be one of {allowed}, got {options[name]!r}")
    for name in FLAGS:
        check_flag(name, options[name])
    for name in INERT:
        if not (options[name] is None or isinstance(options[name], bool)):
            raise TypeError(f"{name} must be None, True or False, got {options[name]!r}")
    seed = options["seed"]
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer in [0, 2**63), got {seed!r}")
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed must be an integer in [0, 2**63), got {seed}")
    if options["fused"] and options["differentiable"]:
        raise RuntimeError("`fused` does not support `differentiable`")
    if options["differentiable"]:
        raise ValueError(
            "differentiable=True is not supported: the step is one in-place pass that autograd cannot "
            "see; use torch.optim.AdamW(differentiable=True)"
        )
    if options["fused"] and options["foreach"]:
        raise RuntimeError("`fused` and `foreach` cannot be `True` together.")


def refuse_incomplete(groups: Iterable[dict[str, Any]], defaults: dict[str, Any]) -> None:
    """Raises ValueError for a group that has lost an option since it was added."""
    for number, group in enumerate(groups):
        lost = [name for name in defaults if name not in group]
        if lost:
            raise ValueError(f"param_groups[{number}] has lost {lost}: put them back")


def refuse_misspelt(names: Iterable[str], known: Iterable[str], *, any_unknown: bool) -> None:
    """Raises TypeError for a name that is not known but close to one that is (or for any)."""
    known = list(known)
    for name in names:
        if name in known:
            continue
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5 if any_unknown else 0.75)
        if nearest or any_unknown:
            hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known are {known}"
            raise TypeError(f"unexpected keyword argument {name!r}{hint}")
