"""GrokAdamW: what most people use, and where every option is described."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from grokfused.optim.optimizer import GrokAdam


class GrokAdamW(GrokAdam):
    """AdamW on gradients whose slow part is amplified (Grokfast), in one pass over memory.

    Use it where you used ``torch.optim.AdamW``. In place of an AdamW begin with ``grad_filter="none"``, then
    try ``alpha=0.9, lamb=0.5``: the defaults of ``alpha`` and ``lamb`` are the paper's, for training that
    groks, and short runs of other kinds end worse with them (docs/which-settings.md).

    Equivalent to these five lines, to float32 rounding::

        optimizer = torch.optim.AdamW(model.parameters(), lr, betas, eps, weight_decay)
        grads = None                                       # once; then, in every step:
        loss(model).backward()
        grads = gradfilter_ema(model, grads, alpha, lamb)  # the authors' function
        optimizer.step()

    For each element at step t = 1, 2, ..., with gradient g and parameter p::

        g = g / grad_scale                             under a loss scale; negated if maximize
        g = g * min(1, max_grad_norm / (|g| + 1e-6))   if max_grad_norm; |g|: the norm of all gradients
        h = alpha * h + (1 - alpha) * g                slow gradient       (arXiv:2405.20233)
        h = mean of the last window_size g             instead, with grad_filter="mean"
        g = g + lamb * h
        p = p * (1 - lr * weight_decay)                                    (arXiv:1711.05101)
        m = m + (1 - beta1) * (g - m)                                      (arXiv:1412.6980)
        v = beta2 * v + (1 - beta2) * g * g
        p = p - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

    ``p.grad`` is never written. Every option is an entry of the parameter group: groups may differ, and an
    option may be changed between steps. Under ``torch.amp.GradScaler`` the gradients are unscaled in the same
    pass, and an overflow changes nothing, the step count included.

    Args:
        params: Parameters, named parameters, or groups of them; float32, bfloat16, float16, float64 or
            complex. Frozen parameters (``requires_grad=False``) may be of any dtype.
        lr: Step length, in parameter units per step. >= 0; a float or a tensor of one element. Keep the one
            that is best without the filter. (default: 1e-3)
        betas: Memories of the first and the second moment, both in [0, 1): floats or tensors of one element.
            A beta2 below 0.999 follows gradients whose size changes. (default: (0.9, 0.999))
        eps: Added to the root of the second moment, in gradient units. >= 0. A larger one takes smaller steps
            where gradients are tiny. (default: 1e-8)
        weight_decay: Share of each parameter that ``lr`` times this takes away in a step. >= 0. Try 1.0 where
            a network memorises and does not generalise, before the filter. (default: 1e-2)
        amsgrad: Divide by the largest second moment so far (arXiv:1904.09237); 4 more bytes a parameter. Try
            it where late steps suddenly become long. (default: False)
        grad_filter: Which memory of gradients is amplified. "ema", a decaying mean: 4 bytes a parameter.
            "mean", the plain mean of a window (Grokfast-MA): ``window_size`` times as much. "none": plain
            AdamW and no memory. May change between steps. (default: "ema")
        alpha: How long "ema" remembers: 1 / (1 - alpha) steps. In [0, 1). Lower it first where the filter
            harms: a long memory costs more than a large ``lamb``. (default: 0.98)
        lamb: How much of the remembered gradient is added. Any finite number. Lower it where training becomes
            unstable. The paper has 2 with "ema" and 5 with "mean". (default: 2.0)
        grad_ema_init: What "ema" starts as: the "first" gradient, as in the authors' code, or "zero", as in
            grokadamw. (default: "first")
        window_size: For "mean": how many gradients the window holds, in [2, 2^24]. It costs memory, not time:
            a running sum is kept. (default: 100)
        filter_type: For "mean": "mean", or "sum" to have ``lamb`` multiply the sum. (default: "mean")
        filter_warmup: For "mean": True amplifies nothing before the window is full, False takes the mean of
            what there is. (default: True)
        window_dtype: For "mean": torch.float32, or torch.bfloat16 for half the memory. The sum stays float32.
            (default: torch.float32)
        filter_start_step: Amplify only in steps t > this; before, the filter only remembers (the paper's two
            stages). (default: 0)
        filter_stop_step: And only in steps t <= this; None: no end. (default: None)
        max_grad_norm: Limits the norm of all gradients together, as ``torch.nn.utils.clip_grad_norm_`` does,
            without writing them. > 0, and equal in all groups. Use it instead of that call. A norm that is
            NaN makes the parameters NaN, as there. None: no limit. (default: None)
        maximize: Ascend instead of descend. (default: False)
        capturable: Have the device count the steps of CUDA parameters, so that a CUDA graph may hold the
            step. No effect on a CPU. (default: False)
        foreach: Accepted, so that a call of AdamW needs no edit; no effect. (default: None)
        fused: Likewise. (default: None)
        differentiable: Must be False. (default: False)
        state_dtype: What the states are stored in: torch.float32, torch.bfloat16 (half the memory) or
            "block8" (a quarter; 8-bit floats in blocks of 64). Narrow them where memory is short:
            docs/which-state-dtype.md. States of float64 and complex parameters keep the parameter's dtype.
            (default: torch.float32)
        state_rounding: How bfloat16 states are rounded: "stochastic" or "nearest". With "nearest" a second
            moment with beta2 = 0.999 stops moving; it is refused with "block8". (default: "stochastic")
        param_rounding: How bfloat16 and float16 parameters are rounded: "nearest" loses small updates;
            "stochastic" keeps their mean, at no cost in memory; "kahan" keeps what was cut off in a further
            state of 2 bytes a parameter. Where parameters have 16 bits, choose one of the last two:
            docs/papers/rounding.md. No effect on wider ones. (default: "nearest")
        seed: Picks the random bits of stochastic rounding, together with step and element index. (default: 0)
        backend: "auto", "native", "triton" or "reference"; see ``grokfused.info``. Name one to have an error
            instead of a slower one. (default: "auto")
        unscales_grads: Whether ``torch.amp.GradScaler`` leaves the unscaling to the step. Set False for code
            that looks at unscaled gradients between ``backward()`` and ``step()``; Lightning needs that to
            clip. Of the optimizer, not of a group. (default: True)

    State per parameter: ``step``, a scalar; ``exp_avg``, ``exp_avg_sq`` and, where their option asks for
    them, ``grad_ema``, ``grad_sum``, ``max_exp_avg_sq`` and ``kahan_comp``, each of the parameter's shape;
    ``grad_window``, ``window_size`` times that shape; ``block_bases`` with "block8"; ``mask``, a bit per
    element, where ``set_masks`` has set one.

    Raises:
        ValueError: An option is out of its range, or a parameter cannot be stepped. The message names it, its
            value and the range. Nothing was changed.
        TypeError: Likewise, of the wrong type.
        BackendUnavailable: ``backend`` was asked for by name and cannot run here (at the first step).
        RuntimeError: At a step: a gradient is sparse or does not fit its parameter. Nothing was changed.
        MemoryError: At a step: windows would not fit into the free memory. Nothing was allocated.
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
        given = dict(locals())
        for not_an_option in ("self", "unknown", "__class__"):
            given.pop(not_an_option)
        super().__init__(**given, **unknown)
