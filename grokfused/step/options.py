"""What may stand in a parameter group: every option's range, checked in one place."""

from __future__ import annotations

import difflib
import numbers
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import numpy
import torch

from grokfused import backends
from grokfused.state.storage import PARAM_ROUNDINGS, STATE_DTYPES, dtype_name
from grokfused.step.clipping import check_max_norm
from grokfused.step.grad_filter import FILTERS, INITS, LONGEST, TYPES, WINDOW_DTYPES
from grokfused.step.scalars import checked_hyperparameters, pair_of_betas

CHOICES = {
    "grad_filter": tuple(FILTERS),
    "grad_ema_init": INITS,
    "filter_type": TYPES,
    "window_dtype": WINDOW_DTYPES,
    "state_dtype": tuple(STATE_DTYPES),
    "state_rounding": ("stochastic", "nearest"),
    "param_rounding": PARAM_ROUNDINGS,
    "backend": backends.NAMES,
}
BOOLS = (bool, numpy.bool_)
DTYPES = ("state_dtype", "window_dtype")  # of the choices, those that may be given as a torch.dtype
FLAGS = ("amsgrad", "maximize", "capturable", "differentiable", "filter_warmup")
# Whole numbers, each with the smallest and the largest that it may be.
COUNTS = {"seed": (0, 2**63 - 1), "window_size": (2, LONGEST), "filter_start_step": (0, LONGEST)}
# Accepted because torch.optim has them.
INERT = ("foreach", "fused")
# All options that are no number which a step multiplies by.
OPTIONS = (*CHOICES, *FLAGS, *INERT, *COUNTS, "filter_stop_step")


def check_flag(name: str, value: object) -> None:
    """Raises TypeError for what is neither True nor False, numpy's included."""
    if not isinstance(value, BOOLS):
        raise TypeError(f"{name} must be True or False, got {value!r}")


def check_count(name: str, value: Any, least: int, most: int) -> None:
    """Raises TypeError or ValueError for what is no integer in [least, most]."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer in [{least}, {most}], got {value!r}")
    if not least <= int(value) <= most:
        raise ValueError(f"{name} must be an integer in [{least}, {most}], got {value}")


def plain(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns options as plain values, which ``torch.load(weights_only=True)`` reads."""
    found = {name: _item(value) for name, value in options.items()}
    if "betas" in found:
        found["betas"] = tuple(map(_item, pair_of_betas(found["betas"])))
    return found | {name: dtype_name(name, found[name]) for name in DTYPES if name in found}


def _item(value: Any) -> Any:
    return value.item() if isinstance(value, numpy.generic) else value


def check_options(options: Mapping[str, Any], *, given: bool = False) -> None:
    """Raises ValueError or TypeError naming the first option that is out of its range.

    Args:
        options: All options of a group.
        given: Whether they are given now, or were written since; see ``scalars.GIVEN`` and ``LATER``.
            (default: False)
    """
    checked_hyperparameters(options, given=given)
    check_choices(options)
    check_max_norm(options["max_grad_norm"])


def check_choices(options: Mapping[str, Any]) -> None:
    """Raises ValueError or TypeError naming the first of ``OPTIONS`` that is out of its range."""
    for name, allowed in CHOICES.items():
        if name in DTYPES and isinstance(options[name], torch.dtype):  # as it may be given
            dtype_name(name, options[name])
        elif not (isinstance(options[name], str) and options[name] in allowed):
            raise ValueError(f"{name} must be one of {allowed}, got {options[name]!r}")
    if options["state_dtype"] == "block8" and options["state_rounding"] == "nearest":
        raise ValueError(
            "state_rounding='nearest' is not for state_dtype='block8': a second moment moves by less than "
            "half of what 4 bits tell apart, and would stand still; leave it 'stochastic'"
        )
    for name in FLAGS:
        check_flag(name, options[name])
    for name in INERT:
        if not (options[name] is None or isinstance(options[name], BOOLS)):
            raise TypeError(f"{name} must be None, True or False, got {options[name]!r}")
    for name, (least, most) in COUNTS.items():
        check_count(name, options[name], least, most)
    if (stop := options["filter_stop_step"]) is not None:
        check_count("filter_stop_step", stop, 0, LONGEST)
        if stop < (start := options["filter_start_step"]):
            raise ValueError(f"filter_stop_step must be at least filter_start_step, {start}, got {stop}")
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


def refuse_unknown(names: Iterable[str], known: Iterable[str]) -> None:
    """Raises TypeError for a keyword that is no option; the message names the option that may be meant."""
    for name in names:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; did you mean {nearest[0]!r}?" if nearest else f"; known are {list(known)}"
        raise TypeError(f"unexpected keyword argument {name!r}{hint}")


def warn_of_typos(group: Mapping[str, Any], known: Iterable[str], stacklevel: int) -> None:
    """Warns of keys of a group that are one slip away from an option: others may keep theirs there."""
    for name in group:
        meant = [option for option in known if name not in known and _is_a_slip(name, option)]
        if meant:
            warnings.warn(
                f"the key {name!r} of a parameter group is kept but is no option: did you mean {meant[0]!r}?",
                stacklevel=stacklevel + 1,
            )


def _is_a_slip(name: object, meant: str) -> bool:
    """True where one letter is missing, added or another, or two neighbours are exchanged."""
    if not isinstance(name, str) or len(meant) < 4 or abs(len(name) - len(meant)) > 1:
        return False
    pairs = enumerate(zip(name, meant, strict=False))
    begin = next((place for place, (a, b) in pairs if a != b), min(len(name), len(meant)))
    a, b = name[begin:], meant[begin:]
    if len(a) == len(b):
        return a[1:] == b[1:] or (a[:2] == b[1::-1] and a[2:] == b[2:])
    return a[1:] == b if len(a) > len(b) else a == b[1:]
