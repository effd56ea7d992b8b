"""GrokAdam, a drop-in replacement of torch.optim.Adam: what it and GrokAdamW (adamw.py) do between steps."""

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
from grokfused.optim.groups import SINCE_THEN, checked_group, listed
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

    Use it where you used ``torch.optim.Adam``. It is :class:`GrokAdamW`, which describes every option, but
    for the weight decay: that is added to the gradient, after the filter, as torch.optim.Adam does it, and is
    0 unless given. The paper's experiments have this optimizer.

    Equivalent to these five lines, to float32 rounding::

        optimizer = torch.optim.Adam(model.parameters(), lr, betas, eps, weight_decay)
        grads = None                                       # once; then, in every step:
        loss(model).backward()
        grads = gradfilter_ema(model, grads, alpha, lamb)  # the authors' function
        optimizer.step()

    For each element at step t = 1, 2, ..., with gradient g and parameter p::

        h = alpha * h + (1 - alpha) * g            slow gradient       (arXiv:2405.20233)
        g = g + lamb * h + weight_decay * p
        m = m + (1 - beta1) * (g - m)                                  (arXiv:1412.6980)
        v = beta2 * v + (1 - beta2) * g * g
        p = p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

    Ranges hold for what is given here and to ``add_param_group``. Of what schedulers write later a step
    refuses only what would make every parameter infinite or NaN: a number that is not finite, a beta1 of 1 or
    -1, and a beta2 or an alpha beyond [-1, 1].

    Args:
        params: Parameters, named parameters, or groups of them.
        lr: Step length, >= 0. (default: 1e-3)
        betas: Memories of the two moments, in [0, 1). (default: (0.9, 0.999))
        eps: Added to the root of the second moment, >= 0. (default: 1e-8)
        weight_decay: Added to the gradient, times the parameter. >= 0. (default: 0.0)
        amsgrad: Divide by the largest second moment so far. (default: False)
        grad_filter: "ema", "mean" or "none". (default: "ema")
        alpha: How long "ema" remembers: 1 / (1 - alpha) steps. In [0, 1). (default: 0.98)
        lamb: How much of the remembered gradient is added. (default: 2.0)
        grad_ema_init: What "ema" starts as: the "first" gradient or "zero". (default: "first")
        window_size: Gradients in the window of "mean", in [2, 2^24]. (default: 100)
        filter_type: "mean" or "sum" of that window. (default: "mean")
        filter_warmup: Amplify nothing until the window is full. (default: True)
        window_dtype: torch.float32 or torch.bfloat16. (default: torch.float32)
        filter_start_step: Amplify only in steps t > this. (default: 0)
        filter_stop_step: And only in steps t <= this; None: no end. (default: None)
        max_grad_norm: Limit of the norm of all gradients, > 0; None: no limit. (default: None)
        maximize: Ascend instead of descend. (default: False)
        capturable: For CUDA graphs: the device counts the steps. (default: False)
        foreach: Accepted; no effect. (default: None)
        fused: Accepted; no effect. (default: None)
        differentiable: Must be False. (default: False)
        state_dtype: torch.float32, torch.bfloat16 or "block8". (default: torch.float32)
        state_rounding: Of bfloat16 states: "stochastic" or "nearest". (default: "stochastic")
        param_rounding: Of 16-bit parameters: "nearest", "stochastic" or "kahan". (default: "nearest")
        seed: Of stochastic rounding. (default: 0)
        backend: "auto", "native", "triton" or "reference". (default: "auto")
        unscales_grads: Whether GradScaler leaves the unscaling to the step. (default: True)

    Raises:
        ValueError: As for :class:`GrokAdamW`, and so the other errors. Nothing was changed.
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
        **unknown: Any,  # refused, with the name of the option that may be meant
    ) -> None:
        defaults = dict(locals())
        for not_an_option in ("self", "params", "unknown", "__class__"):
            defaults.pop(not_an_option, None)
        refuse_unknown(unknown, defaults)
        check_flag("unscales_grads", defaults.pop("unscales_grads"))
        defaults = plain(defaults)
        check_options(defaults, given=True)
        self._own(params if isinstance(params, Tensor) else listed(params), defaults)
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
