"""grokadamw's GrokAdamW: its arguments and group options, translated before each step into those of ours."""

from __future__ import annotations

import math
import numbers
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch._compile import _disable_dynamo

from grokfused import GrokAdamW as FusedGrokAdamW
from grokfused.compat.grokadamw_state import GIVEN, as_ours, by_given_group, is_theirs
from grokfused.optim.layerwise import layerwise_beta1
from grokfused.schedules import grokking_signal
from grokfused.step.scalars import BELOW_ONE, FLOAT32_MAX

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

    For the layer l of each group, of which each parameter is one (``grokfused.layerwise_beta1``):

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
    - param_groups has a group for each beta1; theirs has those given, and counts layers in each step.
    - A signal below 0 counts as 0; theirs raises alpha above alpha_init, beyond 1 too.
    - A loss below 0, and a loss or signal that is not finite, is an error; theirs goes on.

    Their options in the groups are what counts. They are read before each step, and ``alpha`` and
    ``max_grad_norm`` are written by them; gamma and betas count when a group is added. ``train_loss`` and
    ``eval_loss``, written into a group, make the signal where there are no functions; written into one of the
    groups that a given one became, they hold for all of these. The options of ``grokfused.GrokAdamW`` may
    stand in groups.

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
        options = _ours(self._theirs, 0.0) | {"lamb": lamb, "grad_ema_init": "zero"}
        super().__init__(params, lr, betas, eps, weight_decay, **options)
        del self._theirs  # they are defaults by now

    def _own(self, params: Any, defaults: dict[str, Any]) -> None:
        super()._own(params, defaults | self._theirs)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds the groups that a group of parameters becomes, one for each beta1; see ``layerwise_beta1``.

        Raises:
            ValueError, TypeError: As for the class. Nothing was changed.
        """
        if not isinstance(param_group, dict) or "params" not in param_group:
            super().add_param_group(param_group)  # which raises
            return
        options = {**self.defaults, **param_group}
        _check(options)
        begin = len(self.param_groups)
        number = 1 + max((group[GIVEN] for group in self.param_groups), default=-1)
        try:
            for part in layerwise_beta1([param_group], options["gamma"], options["betas"]):
                super().add_param_group({**part, **_ours(options, 0.0), GIVEN: number})
        except BaseException:
            del self.param_groups[begin:]
            raise

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step on every parameter that has a gradient, with the alpha of the signal as it is then.

        Args:
            closure: Re-evaluates the model and returns the loss. (default: None)

        Returns:
            What the closure returned, or None.
        """
        if closure is None:
            self._translate()
            return super().step()

        def evaluated() -> Any:
            loss = closure()
            self._translate()
            return loss

        return super().step(evaluated)

    step.hooked = True  # type: ignore[attr-defined]  # as the step that it calls

    @_disable_dynamo
    def _translate(self) -> None:
        """Writes what their options in the groups mean in ours; whatever fails has changed nothing yet."""
        found = []
        for parts in by_given_group(self.param_groups):
            for part in parts:
                _check(part)
            signal = _signal(parts)
            found += [(part, _ours(part, signal)) for part in parts]
        for part, options in found:
            part.update(options)

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
            ValueError: The state dict does not fit; gamma is 0 in one and not in the other; or their states
                cannot be told apart. Nothing was changed.
        """
        kept = [(group[GIVEN], group[FNS]) for group in self.param_groups]
        super().load_state_dict(
            as_ours(state_dict, self.param_groups) if is_theirs(state_dict) else state_dict
        )
        for group, (number, functions) in zip(self.param_groups, kept, strict=True):
            group |= {GIVEN: number, FNS: functions}


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


def _ours(options: Mapping[str, Any], signal: float) -> dict[str, Any]:
    """Returns what their options, checked, mean in ours."""
    lowered = math.exp(-float(options["grokking_signal_decay_rate"]) * signal)
    limit = float(options["gradient_clipping"])
    return {
        "alpha": float(options["alpha_init"]) * lowered,
        "max_grad_norm": limit if 0.0 < limit <= FLOAT32_MAX else None,
    }


def _signal(parts: Sequence[Mapping[str, Any]]) -> float:
    """Returns the grokking signal of the groups that one given group became, >= 0."""
    functions = parts[0][FNS]
    if functions is None:
        train_loss, eval_loss = (_first(parts, name) for name in ("train_loss", "eval_loss"))
        return 0.0 if train_loss is None or eval_loss is None else grokking_signal(train_loss, eval_loss)
    signals = [value for function in functions if (value := _asked(function)) is not None]
    return max(0.0, sum(signals) / len(signals)) if signals else 0.0


def _first(parts: Sequence[Mapping[str, Any]], name: str) -> Any:
    return next((part[name] for part in parts if part.get(name) is not None), None)


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
