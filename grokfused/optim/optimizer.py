"""The optimizers: GrokAdam and GrokAdamW, drop-in replacements of torch.optim.Adam and AdamW."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim import optimizer as torch_optimizer

from grokfused.optim import op
from grokfused.optim.compiled import compiled_step
from grokfused.optim.dynamo import TRACES_ASSIGNMENTS, break_at_assignments
from grokfused.optim.groups import SINCE_THEN, checked_group
from grokfused.optim.in_backward import StepInBackward
from grokfused.optim.masking import Masking
from grokfused.optim.saving import Saving
from grokfused.state.for_torch import TORCH_OPTIONS
from grokfused.state.saved_form import make_place
from grokfused.step.clipping import given_scale
from grokfused.step.members import Members, with_grads
from grokfused.step.options import check_flag, check_options, plain, refuse_unknown
from grokfused.step.wrappers import collision


class GrokAdam(Masking, Saving, Optimizer):
    """Adam on gradients whose slow part is amplified (Grokfast), in one pass over memory.

    For each element at step t = 1, 2, ...:

        g = g / grad_scale                         under a loss scale; negated if maximize
        g = g * min(1, max_grad_norm / (|g| + 1e-6))   if max_grad_norm; |g|: the norm of all gradients
        h = alpha * h + (1 - alpha) * g            slow gradient   (Lee et al. 2024, arXiv:2405.20233)
        h = mean of the last window_size g         instead, with grad_filter="mean"
        g = g + lamb * h
        g = g + weight_decay * p                   GrokAdam   (as torch.optim.Adam)
        p = p * (1 - lr * weight_decay)            GrokAdamW  (as torch.optim.AdamW, arXiv:1711.05101)
        m = m + (1 - beta1) * (g - m)              (Kingma & Ba 2015, arXiv:1412.6980)
        v = beta2 * v + (1 - beta2) * g * g
        p = p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

    ``p.grad`` is never modified. With ``grad_filter="none"``, or with ``lamb=0``, which keeps the filter's
    memory for nothing, this is torch.optim's optimizer to rounding. Every option is an entry of the parameter
    group, may differ between groups and may be changed between steps. The ranges below are those of what is
    given; of what schedulers write later torch.optim asks nothing, and here a step refuses only what would
    make every parameter infinite or NaN: a number that is not finite, a beta1 of 1 or -1, and a beta2 or an
    alpha beyond [-1, 1]. (It cannot see a tensor of the device with ``capturable``.)

    Args:
        params: Parameters (float32, bfloat16, float16, float64 or complex), named parameters, or groups of
            them. float64 steps in float64, complex as pairs of real numbers, as in torch. Frozen ones
            (``requires_grad=False``) may be of any dtype and layout, and lazy ones not initialized yet: what
            has a gradient in a step is checked then.
        lr: Step length, parameter units per step. >= 0; a float or a one-element tensor.
            (default: 1e-3)
        betas: Memories of the two moments, both in [0, 1): a sequence of floats or one-element tensors.
            (default: (0.9, 0.999))
        eps: Added to the root of the second moment, gradient units. >= 0. (default: 1e-8)
        weight_decay: >= 0. (default: 0 for GrokAdam, 1e-2 for GrokAdamW)
        amsgrad: Divide by the largest second moment so far (arXiv:1904.09237). (default: False)
        grad_filter: "ema"; "mean", the paper's Grokfast-MA; or "none" for plain Adam without the filter's
            memory. Changed between two steps, "ema" goes on from the slow gradient it had; a window is of
            the last steps, so "mean" begins another one. (default: "ema")
        alpha: Memory of the slow gradient; 1 / (1 - alpha) is its time constant in steps. In [0, 1).
            (default: 0.98)
        lamb: How much of the slow gradient, or of the mean, is added. Any finite number. The defaults of
            alpha and lamb are the paper's for "ema" (for "mean" it has 5); short runs without grokking end
            worse with them: docs/which-settings.md. (default: 2.0)
        grad_ema_init: "first": the slow gradient starts as the first gradient, as in the authors'
            code; "zero": it starts as 0. (default: "first")
        window_size: For "mean": how many gradients the window holds, the present one included; in
            [2, 2^24]. On average a step takes the same time whatever it is: it keeps their running sum, and
            every element's sum is taken afresh from the window once in window_size steps (1,024 neighbours
            of a tensor in the same one, so that many small tensors have theirs together). With A, the
            largest sum of an element's magnitudes in a window of the last 2 * window_size steps, its mean is
            then wrong by at most 3 * 2^-24 * A. A gradient that is infinite or NaN makes the sum so while it
            is in the window, and up to window_size - 1 steps longer. Gradients are counted by the
            parameter's ``step``: who sets that back deletes ``grad_window`` too. What a mask leaves out
            enters no window: after "freeze" the gradients from before it stand there, after "zero" zeros.
            (default: 100)
        filter_type: For "mean": "mean", or "sum" to have lamb multiply the sum. (default: "mean")
        filter_warmup: For "mean": True amplifies nothing until the window is full; False takes the mean
            of the gradients there are, from the first one on. (default: True)
        window_dtype: torch.float32 or torch.bfloat16 (rounded to nearest), in which windows are made, but
            those of float64 and complex parameters; the sum is float32 whatever it is.
            (default: torch.float32)
        filter_start_step: The filter amplifies in steps t > filter_start_step (the paper's two stages);
            before that it only remembers. (default: 0)
        filter_stop_step: And in steps t <= filter_stop_step; None: for ever. (default: None)
        max_grad_norm: Limits the Euclidean norm of all gradients of the optimizer together, in true units,
            before the filter sees them: ``torch.nn.utils.clip_grad_norm_`` without its pass over the
            gradients, and equal to it to rounding (the norm is torch's: its last bit may depend on the number
            of threads). > 0, and equal in all groups. DTensors count whole, other gradients as this process
            has them, with a warning where that is a part (FSDP1, ZeroRedundancyOptimizer). As there, masked
            elements count, and a norm that is not finite is not caught: NaN makes all parameters NaN,
            infinity those elements whose gradient is infinite or NaN, while the others step on 0.
            None: no limit. (default: None)
        maximize: Ascend instead of descend. (default: False)
        capturable: The device numbers the steps of CUDA parameters, and reads a learning rate and betas that
            are tensors there, so that a CUDA graph may hold the step; hyperparameters that are numbers are
            replayed as they were captured. No effect on CPU parameters. (default: False)
        foreach, fused: Accepted, so that an AdamW call site needs no edit; no effect.
        differentiable: Must be False.
        state_dtype: torch.float32, torch.bfloat16 or "block8", in which states are made, but those of float64
            and complex parameters, which have their parameter's dtype. "block8" keeps uint8 codes, floats of
            8 bits of which 64 neighbours share their octaves (``backends.block8``): a byte each, and 1/16 for
            all. ``grokfused.decode_state`` shows their numbers, ``state_dict()`` has them as bfloat16.
            (default: torch.float32)
        state_rounding: How bfloat16 states are rounded: "stochastic" (unbiased) or "nearest" (a second
            moment with beta2 = 0.999 then stops moving; refused with "block8"). (default: "stochastic")
        param_rounding: How bfloat16 and float16 parameters are rounded; no effect on float32. "nearest" loses
            every update below r / 2, r being the distance between neighbouring numbers (in bfloat16 |p| / 256
            to |p| / 128). These do not (arXiv:2010.06192):

                "stochastic":  p = r * floor(p / r + u),    u uniform in [0, 1): no bias, but noise
                "kahan":       p = p + c before the step;   c = p - round(p) after it, a further state

            c is 0 where the rounded p is not finite, and in float16 it holds nothing below 2^-24. Code that
            writes a parameter between steps leaves the c of its old value. (default: "nearest")
        seed: Picks the random bits of stochastic rounding, with step and element index (of a DTensor, the
            index in this process's shard). (default: 0)
        backend: "auto", "native", "triton" or "reference"; see ``grokfused.info()``. (default: "auto")
        unscales_grads: Whether torch.amp.GradScaler leaves the unscaling to the step. With False it unscales
            the gradients itself before the step, and leaves the step out after an overflow, as for an
            optimizer that knows nothing of it: for code that looks at unscaled gradients in between
            (Lightning and Fabric refuse to clip otherwise). Of the optimizer, not of a group.
            (default: True)

    Under ``torch.amp.GradScaler`` the gradients are unscaled in the same pass, and an overflow changes
    nothing, the step count included; the host does not wait to learn of it.

    State per parameter: ``step`` [] float32; ``exp_avg``, ``exp_avg_sq``, ``grad_ema`` (with "ema") and
    ``max_exp_avg_sq`` (with amsgrad), each of the parameter's shape and in its memory order, and so
    ``kahan_comp`` (with param_rounding="kahan"), of its dtype, and ``grad_sum`` (with "mean"), float32;
    ``grad_window`` (with "mean"), window_size times that shape; ``mask`` (where one is set, ``set_masks``), a
    bit per element.

    Raises:
        ValueError, TypeError: An option is out of its range or of the wrong type, or a parameter cannot
            be stepped; the message names it, its value and the range. Nothing was changed.
        BackendUnavailable: ``backend`` was asked for by name and cannot run here (at the first step).
        RuntimeError: At a step: a gradient is sparse or does not fit its parameter. Nothing was changed.
        MemoryError: At a step: windows would not fit into the memory that is free. Nothing was allocated.
    """

    decay = "coupled"
    # If True, torch.amp.GradScaler sets `grad_scale` and `found_inf` for the time of a step, and leaves the
    # gradients as they are: they are unscaled in the same pass. An attribute of the instance, as in torch:
    # one of the class would hide a False from those who look through a wrapper (Lightning's derives from
    # the class and asks the instance only for what the class lacks). False by choice: `unscales_grads`.
    _step_supports_amp_scaling: bool
    grad_scale: Tensor | None
    found_inf: Tensor | None
    _name: str  # by which compiled code finds it; of this object alone
    _in_backward: StepInBackward | None = None  # not pickled: its hooks are of these parameters

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        grad_filter: str = "ema",
        alpha: float = 0.98,
        lamb: float = 2.0,
        grad_ema_init: str = "first",
        window_size: int = 100,
        filter_type: str = "mean",
        filter_warmup: bool = True,
        window_dtype: torch.dtype | str = torch.float32,
        filter_start_step: int = 0,
        filter_stop_step: int | None = None,
        max_grad_norm: float | None = None,
        maximize: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        differentiable: bool = False,
        state_dtype: torch.dtype | str = torch.float32,
        state_rounding: str = "stochastic",
        param_rounding: str = "nearest",
        seed: int = 0,
        backend: str = "auto",
        unscales_grads: bool = True,
        **unknown: Any,
    ) -> None:
        defaults = dict(locals())
        for not_an_option in ("self", "params", "unknown", "__class__"):
            defaults.pop(not_an_option, None)
        refuse_unknown(unknown, defaults)
        check_flag("unscales_grads", defaults.pop("unscales_grads"))
        defaults = plain(defaults)
        check_options(defaults, given=True)
        self._own(params if isinstance(params, Tensor) else list(params), defaults)
        self._name = op.new_name(self)
        self._step_supports_amp_scaling = bool(unscales_grads)

    def _own(self, params: Any, defaults: dict[str, Any]) -> None:
        """Has torch take the parameters or groups, and tells of options that a wrapper may mean otherwise."""
        ours = {name: value for name, value in defaults.items() if name not in TORCH_OPTIONS}
        groups = [group for group in params if isinstance(group, dict)]
        doubt = collision(groups, ours, Optimizer, type(self).__name__)
        try:
            super().__init__(params, defaults)
        except (TypeError, ValueError) as error:
            if doubt:
                raise type(error)(f"{error}. {doubt}") from error
            raise
        if doubt:
            warnings.warn(doubt, stacklevel=4)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group of parameters; options it does not name are the optimizer's own.

        The very dict is kept, as in torch: what is written into it later holds from the next step. Keys that
        are no options are kept for whoever reads them, with a warning of one that is a slip of the pen away
        from an option.

        Raises:
            ValueError, TypeError: As for the class. Nothing was changed, not the dict either.
        """
        if not isinstance(param_group, dict) or "params" not in param_group:
            super().add_param_group(param_group)  # which raises
            return
        group = checked_group(param_group, self.param_groups, self.defaults)
        super().add_param_group(group)
        make_place([group])
        param_group.update(group)
        self.param_groups[-1] = param_group

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step on every parameter that has a gradient.

        A first step with a learning rate of 0 and gradients of zeros for all parameters makes the states, and
        is not counted: torch.distributed.checkpoint takes it to have them made.

        Args:
            closure: Re-evaluates the model and returns the loss. (default: None)

        Returns:
            What the closure returned, or None.
        """
        if torch.compiler.is_compiling():
            return _compiled_step(self) if closure is None else _compiled_step(self, closure)
        if _observed(self):
            # Hooks are shown the arguments that were given.
            return _observed_step(self) if closure is None else _observed_step(self, closure)
        return self._step(closure)

    # torch would wrap `step` to run hooks and to tell the profiler, at a fixed price per step that is
    # a tenth of a small model's; `step` above goes through that wrapper only when there is someone to tell.
    step.hooked = True  # type: ignore[attr-defined]

    def _step(self, closure: Callable[[], Any] | None = None) -> Any:
        if _can_capture():
            self._accelerator_graph_capture_health_check()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self._in_backward is not None:
            self._in_backward.check()
        else:
            op.take(self, with_grads(self), given_scale(self))
        return loss

    def as_stepped(self, members: Members) -> Members:
        """Returns the members of a step with the groups as it shall read them: as they are.

        For classes derived from this one, whose groups say it in other words (``grokfused.compat``). The real
        groups stay what users, schedulers and checkpoints see.
        """
        return members

    def __getstate__(self) -> dict[str, Any]:
        own = {"_step_supports_amp_scaling": self._step_supports_amp_scaling}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if "_name" not in self.__dict__:  # unpickled or copied
            self._name = op.new_name(self)
        op.groups_exchanged(self)
        for name, default in SINCE_THEN.items():
            self.defaults.setdefault(name, default)
        self.__dict__.setdefault("_step_supports_amp_scaling", True)
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)
        make_place(self.param_groups)  # pickled before groups had one


if not TRACES_ASSIGNMENTS:
    break_at_assignments(GrokAdam)


@cache
def _can_capture() -> bool:
    """True where there is a device whose graphs could hold a step."""
    return torch.accelerator.is_available()


_observed_step = Optimizer.profile_hook_step(GrokAdam._step)
_compiled_step = Optimizer.profile_hook_step(compiled_step)


def _observed(optimizer: Optimizer) -> bool:
    """True when a hook or a profiler waits for this optimizer's step."""
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or torch_optimizer._global_optimizer_pre_hooks
        or torch_optimizer._global_optimizer_post_hooks
        or torch.autograd.profiler._is_profiler_enabled
    )


class GrokAdamW(GrokAdam):
    """AdamW on gradients whose slow part is amplified (Grokfast), in one pass over memory.

    ``GrokAdam`` with decoupled weight decay, ``p = p * (1 - lr * weight_decay)``, and 1e-2 as its default;
    equations, arguments, state and errors are described there. Which alpha and lamb to try in place of an
    AdamW: docs/which-settings.md.
    """

    decay = "decoupled"

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)
