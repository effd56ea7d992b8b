"""What a parameter group decides for its parameters, checked: which code steps them, and which arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any, NamedTuple

from grokfused.state.arrays import ARRAYS
from grokfused.step.grad_filter import Gate, gate_of, has_window, start_key
from grokfused.step.options import OPTIONS, check_choices


class Policy(NamedTuple):
    """One kind of step; the numbers of groups that share it may differ (``scalars``)."""

    backend: str
    grad_filter: str
    decay: str
    amsgrad: bool
    state_rounding: str
    param_rounding: str
    seed: int
    device_numbers: bool  # the device numbers the steps, where it can
    start: str  # the key of the note when the filter's memory was made; "" where that says nothing
    gate: Gate  # when the filter amplifies
    window_size: int
    used: tuple[bool, ...]  # array of ARRAYS -> whether the step needs it

    def for_backend(self) -> dict[str, Any]:
        """Returns the options that a backend's ``adamw_step_`` takes."""
        return {name: getattr(self, name) for name in FOR_BACKENDS}


FOR_BACKENDS = ("grad_filter", "decay", "state_rounding", "param_rounding", "seed")
_values = itemgetter(*OPTIONS)


@lru_cache(maxsize=256, typed=True)
def _policy(decay: str, scaled: bool, *values: Any) -> Policy:
    options = dict(zip(OPTIONS, values, strict=True))
    check_choices(options)
    return Policy(
        backend=options["backend"],
        grad_filter=options["grad_filter"],
        decay=decay,
        amsgrad=bool(options["amsgrad"]),  # numpy's, too
        state_rounding=options["state_rounding"],
        param_rounding=options["param_rounding"],
        seed=int(options["seed"]),
        device_numbers=scaled or bool(options["capturable"]),
        start=start_key(options),
        gate=gate_of(options),
        window_size=int(options["window_size"]) if has_window(options) else 0,
        used=tuple(bool(array.is_used(options)) for array in ARRAYS),
    )


def policies_of(
    groups: Sequence[Mapping[str, Any]], decay: str, scaled: bool
) -> tuple[list[Policy], list[int]]:
    """Returns the policies there are, and for each group which of them is its own.

    Args:
        groups: The parameter groups.
        decay: "coupled" or "decoupled".
        scaled: Whether numbers that only the device knows scale the gradients or may cancel the step.

    Raises:
        KeyError: A group has lost an option.
        ValueError, TypeError: An option is out of its range; the message names it.
    """
    found: dict[Policy, int] = {}
    own = []
    for group in groups:
        # Without decay the two are one; decoupled it is p * 1, which keeps even an infinite p.
        kind = decay if group["weight_decay"] else "decoupled"
        values = _values(group)
        try:
            policy = _policy(kind, scaled, *values)
        except TypeError:  # unhashable: out of range, and said so here
            policy = _policy.__wrapped__(kind, scaled, *values)
        own.append(found.setdefault(policy, len(found)))
    return list(found), own
