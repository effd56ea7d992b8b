"""grokadamw's GrokAdamW: its arguments and group options, translated before each step into those of ours."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from grokfused import GrokAdamW as FusedGrokAdamW
from grokfused.compat.grokadamw_state import as_ours, is_theirs
from grokfused.schedules import grokking_signal
from grokfused.step.members import Members
from grokfused.step.scalars import BELOW_ONE, FLOAT32_MAX, pair_of_betas

FNS = "grokking_signal_fns"


class _Range(NamedTuple):
    text: str
    low: float
    high: float


RANGES = {
    "alpha_init": _Range("in [0, 1)", 0.0, BELOW_ONE),
    "gamma": _Range("in [0, 1]", 0.0, 1.0),
    "grokking_signal_decay_rate": _Range(">= 0 and finite", 0.0, FLOAT32_MAX),
    "gradient_clipping": _Range("or infinity", -math.inf, math.inf),
}


class GrokAdamW(FusedGrokAdamW):
    """The optimizer of PyPI's grokadamw 0.1.2, by its arguments, their order and defaults, on the fused step.

    For the layer l = 0, 1, ... of a group, of which each parameter is one::

        alpha = alpha_init * exp(-grokking_signal_decay_rate * signal)
        beta1 = betas[0] * (1 - gamma)^l

    and then the step of ``grokfused.GrokAdamW``. The slow gradient starts as zeros, as in grokadamw. With
    gamma=0 and gradient_clipping=0 both take the same steps to float32 rounding. Differences:

    - The first moment of each layer is corrected by that layer's beta1; theirs by the first layer's.
    - gradient_clipping limits the norm of all gradients together; theirs that of each by itself.
    - p.grad is not written; theirs is clipped in place.
    - eps is added to the bias-corrected root, as in torch; theirs to the root before that correction.
    - A saved state holds tensors by number, and resumes; theirs holds parameters, and starts anew.
    - States lie beside their parameter, in float32; theirs on the CPU, in the parameter's dtype.
    - Layers are the parameters of a group that require a gradient; theirs those that have one now.
    - A signal below 0 counts as 0; theirs raises alpha above alpha_init, beyond 1 too.
    - A loss below 0, and a loss or signal that is not finite, is an error; theirs goes on.

    Each step reads their options in the groups: ``alpha`` and ``max_grad_norm`` there count for nothing.
    ``train_loss`` and ``eval_loss``, written into a group, make its signal where there are no functions. The
    other options of ``grokfused.GrokAdamW`` may stand in groups.

    Args:
        params: As for ``grokfused.GrokAdamW``.
        lr: As there. (default: 1e-3)
        betas: Two numbers in [0, 1); the first is that of layer 0. (default: (0.9, 0.999))
        eps: As there. (default: 1e-8)
        weight_decay: As there. (default: 1e-2)
        alpha_init: Memory of the slow gradient without a signal. In [0, 1). (default: 0.98)
        lamb: As there. (default: 2.0)
        gamma: How much beta1 falls from layer to layer. In [0, 1]. (default: 0.1)
        grokking_signal_fns: Functions without arguments that return a number or None, which is left out; the
            signal is their mean, asked for after the closure. One that raises is left out with a warning.
            None: the signal is ``grokfused.schedules.grokking_signal`` of the losses in the groups, or 0
            where there are none. Not saved. (default: None)
        grokking_signal_decay_rate: >= 0. (default: 0.1)
        gradient_clipping: ``max_grad_norm``; 0 or less: no limit. Equal in all groups. (default: 1.0)

    Raises:
        ValueError, TypeError, RuntimeError: As for ``grokfused.GrokAdamW``. Nothing was changed.
    """

    derived_options = ("alpha", "max_grad_norm")  # which a schedule must not drive

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        alpha_init: float = 0.98,
        lamb: float = 2.0,
        gamma: float = 0.1,
        grokking_signal_fns: Sequence[Callable[[], Any]] | None = None,
        grokking_signal_decay_rate: float = 0.1,
        gradient_clipping: float = 1.0,
    ) -> None:
        self._theirs = {
            "alpha_init": alpha_init,
            "gamma": gamma,
            FNS: grokking_signal_fns,
            "grokking_signal_decay_rate": grokking_signal_decay_rate,
            "gradient_clipping": gradient_clipping,
        }
        _check(self._theirs)
        super().__init__(
            params, lr, betas, eps, weight_decay, alpha=alpha_init, lamb=lamb, grad_ema_init="zero"
        )
        del self._theirs  # they are defaults by now

    def _own(self, params: Any, defaults: dict[str, Any]) -> None:
        super()._own(params, defaults | self._theirs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters; options it does not name are the optimizer's own.

        Raises:
            ValueError, TypeError: As for the class. Nothing was changed.
        """
        if isinstance(param_group, dict):
            _check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    def as_stepped(self, members: Members) -> Members:
        """Returns the members of a step with a group for each layer, in which their options are ours."""
        if not members.keys:
            return members
        numbers = dict.fromkeys(members.group_of)
        for number in numbers:  # all, before functions are asked
            _check(members.groups[number])
        ours = {number: self._in_ours(members.groups[number]) for number in numbers}
        layers = {number: _layers(members.groups[number]) for number in numbers}
        places: dict[tuple[int, int], int] = {}
        groups: list[dict[str, Any]] = []
        group_of = []
        for key, number in zip(members.keys, members.group_of, strict=True):
            layer = layers[number].get(id(key), 0)
            place = places.setdefault((number, layer), len(groups))
            if place == len(groups):
                groups.append(_of_layer(ours[number], layer) if layer else ours[number])
            group_of.append(place)
        return members._replace(groups=groups, group_of=group_of)

    def _in_ours(self, group: dict[str, Any]) -> dict[str, Any]:
        """Returns a group, checked, with what its options mean in ours."""
        lowered = math.exp(-float(group["grokking_signal_decay_rate"]) * _signal(group))
        limit = _limit(group)
        if limit is not None and self._in_backward is not None:
            raise ValueError(f"gradient_clipping={limit} cannot be used with step_in_backward: set it to 0")
        return {**group, "alpha": float(group["alpha_init"]) * lowered, "max_grad_norm": limit}

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as ``grokfused.GrokAdamW`` does; functions are no part of it."""
        found = super().state_dict()
        return {**found, "param_groups": [{**group, FNS: None} for group in found["param_groups"]]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a state dict of this class, or one of grokadamw's own.

        In grokadamw's, states are keyed by parameters. Where those are this optimizer's, that tells whose
        they are; where they are not, as out of a file, their order does. It is that of the first gradients,
        so all parameters that require one must have had it in every step. Of what their own loading leaves
        behind the newest counts.

        Raises:
            ValueError: The state dict does not fit, or its states cannot be told apart. Nothing was changed.
        """
        functions = [group[FNS] for group in self.param_groups]
        super().load_state_dict(
            as_ours(state_dict, self.param_groups) if is_theirs(state_dict) else state_dict
        )
        for group, kept in zip(self.param_groups, functions, strict=True):
            group[FNS] = kept


def _check(options: Mapping[str, Any]) -> None:
    """Raises ValueError or TypeError naming the first of their options that is out of range."""
    for name, allowed in RANGES.items():
        value = options[name]
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            raise TypeError(f"{name} must be a number {allowed.text}, got {value!r}")
        if not allowed.low <= float(value) <= allowed.high:
            raise ValueError(f"Invalid {name} value: {value} ({name} must be a number {allowed.text})")
    functions = options[FNS]
    if functions is not None and not (isinstance(functions, (list, tuple)) and all(map(callable, functions))):
        raise TypeError(f"{FNS} must be None or a list of functions, got {functions!r}")


def _limit(options: Mapping[str, Any]) -> float | None:
    """Returns the limit of all gradients' norm, or None."""
    limit = float(options["gradient_clipping"])
    return limit if 0.0 < limit <= FLOAT32_MAX else None


def _layers(group: Mapping[str, Any]) -> dict[int, int]:
    """Returns the layer of each parameter of a group that has not the first beta of the group, by its id."""
    if not group["gamma"]:
        return {}
    return {id(param): layer for layer, param in enumerate(p for p in group["params"] if p.requires_grad)}


def _of_layer(group: dict[str, Any], layer: int) -> dict[str, Any]:
    beta1, beta2 = pair_of_betas(group["betas"])
    return {**group, "betas": (beta1 * (1.0 - float(group["gamma"])) ** layer, beta2)}


def _signal(group: Mapping[str, Any]) -> float:
    """Returns the grokking signal of a group, >= 0."""
    if group[FNS] is None:
        train_loss, eval_loss = group.get("train_loss"), group.get("eval_loss")
        return 0.0 if train_loss is None or eval_loss is None else grokking_signal(train_loss, eval_loss)
    signals = [value for function in group[FNS] if (value := _asked(function)) is not None]
    return max(0.0, sum(signals) / len(signals)) if signals else 0.0


def _asked(function: Callable[[], Any]) -> float | None:
    try:
        value = function()
    except Exception as error:
        warnings.warn(f"{FNS}: {function!r} raised {error!r} and is left out", RuntimeWarning, stacklevel=2)
        return None
    if value is None:
        return None
    number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or not math.isfinite(number):
        raise ValueError(f"{FNS}: {function!r} must return a finite number or None, got {value!r}")
    return float(number)
