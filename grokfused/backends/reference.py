"""The truth: the step in plain PyTorch, one rounding per operation, in the written order.

Every backend must equal this file bit for bit. It is written to be checked against the equations, so
it uses ``+ - * /`` only: torch's own fused forms (lerp, addcmul, addcdiv, add with alpha) reorder or
fuse roundings. It runs on CPU tensors whatever the device, because CUDA divides differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor

from grokfused.backends import block8, windows
from grokfused.backends.rounding import cut_off, random_key, round_to
from grokfused.backends.storage import in_blocks, in_their_dtypes, kept_elements, masked, numbers_in


class Scalars(NamedTuple):
    """One row of the op's scalar table; field for field ``csrc/step/scalars.h``.

    Each field is named for what it multiplies. ``grokfused.scalars`` derives them.
    """

    step: float
    grad_factor: float
    alpha: float
    alpha_weight: float
    lamb: float
    weight_decay: float
    param_scale: float
    beta1_weight: float
    beta2: float
    beta2_weight: float
    step_size: float
    denom_scale: float
    eps: float


def real_dtype(param: torch.dtype) -> torch.dtype:
    """Returns in which numbers a step of such parameters is computed: float64 for wide ones, else float32."""
    return torch.float64 if param in (torch.float64, torch.complex128) else torch.float32


def why_not(kind: Any) -> str | None:
    """Says why this backend cannot run a bucket of this kind: it always can."""
    return None


def ema(values: dict[str, Tensor], scalars: Scalars) -> dict[str, Tensor]:
    """Amplifies the slow part of the gradient (Lee et al. 2024, arXiv:2405.20233, algorithm 2).

    Args:
        values: float32 [n] each: ``grad``, in true units, and ``grad_ema``, the slow gradient so far.
        scalars: The step's ``Scalars``, as Python floats that float32 holds exactly.

    Returns:
        The amplified gradient and the new slow gradient, under the same names.
    """
    grad_ema = scalars.alpha * values["grad_ema"] + scalars.alpha_weight * values["grad"]
    return {"grad": values["grad"] + scalars.lamb * grad_ema, "grad_ema": grad_ema}


def no_filter(values: dict[str, Tensor], scalars: Scalars) -> dict[str, Tensor]:
    """Leaves the gradient as it is."""
    return {}


def mean(values: dict[str, Tensor], scalars: Scalars) -> dict[str, Tensor]:
    """Amplifies the mean of the last gradients (Lee et al. 2024, arXiv:2405.20233, algorithm 1).

    Args:
        values: float32 [n] each: ``grad``, in true units, and ``grad_sum``, that of the gradients before it
            in the window (``windows.sum_of_others``); and ``grad_window``, of the dtype of the window.
        scalars: The step's ``Scalars``, as Python floats that float32 holds exactly. ``lamb`` is that of the
            group over the length of the window; where it is 0 the gradient stays as it is, bit for bit.

    Returns:
        The amplified gradient, what enters the window, and the new sum, under the same names.
    """
    grad = values["grad"]
    grad_window = round_to(grad, values["grad_window"].dtype, None).to(grad.dtype)
    grad_sum = values["grad_sum"] + grad_window
    amplified = grad + scalars.lamb * grad_sum if scalars.lamb else grad
    return {"grad": amplified, "grad_window": grad_window, "grad_sum": grad_sum}


GRAD_FILTERS = {"ema": ema, "mean": mean, "none": no_filter}


def adamw(values: dict[str, Tensor], scalars: Scalars, decay: str) -> dict[str, Tensor]:
    """Updates moments and parameter (Kingma & Ba 2015, arXiv:1412.6980; arXiv:1711.05101, Alg. 2).

    Args:
        values: float32 [n] each: ``param``, ``grad`` (filtered), ``exp_avg``, ``exp_avg_sq`` and, for
            AMSGrad (arXiv:1904.09237), ``max_exp_avg_sq``.
        scalars: The step's ``Scalars``, as Python floats that float32 holds exactly.
        decay: "coupled" (torch.optim.Adam) or "decoupled" (torch.optim.AdamW).

    Returns:
        The new values, under the same names.
    """
    new = dict(values)
    if decay == "coupled":
        new["grad"] = new["grad"] + scalars.weight_decay * new["param"]
    else:
        new["param"] = new["param"] * scalars.param_scale
    grad = new["grad"]
    new["exp_avg"] = new["exp_avg"] + scalars.beta1_weight * (grad - new["exp_avg"])
    new["exp_avg_sq"] = scalars.beta2 * new["exp_avg_sq"] + scalars.beta2_weight * grad * grad
    second_moment = new["exp_avg_sq"]
    if "max_exp_avg_sq" in new:
        second_moment = torch.maximum(new["max_exp_avg_sq"], second_moment)
        new["max_exp_avg_sq"] = second_moment
    root = torch.from_numpy(numpy.sqrt(second_moment.numpy()))  # torch's is not always correctly rounded
    denom = root * scalars.denom_scale + scalars.eps
    new["param"] = new["param"] - scalars.step_size * new["exp_avg"] / denom
    return new


def unscaled(scalars: Scalars, grad_scale: Tensor | None) -> Scalars:
    """Returns the numbers for gradients of a loss that was multiplied by ``grad_scale``, rounded once."""
    if grad_scale is None:
        return scalars
    scale = grad_scale.reshape(1).cpu()
    factor = torch.tensor([scalars.grad_factor], dtype=scale.dtype, device="cpu") / scale
    return scalars._replace(grad_factor=factor.item())


def step(values: dict[str, Tensor], scalars: Scalars, grad_filter: str, decay: str) -> dict[str, Tensor]:
    """Takes one step: the rooms in their order.

    Args:
        values: float32 [n] each, as in ``adamw``, and what the filter remembers.
        scalars: The step's ``Scalars``, as Python floats that float32 holds exactly.
        grad_filter: A key of ``GRAD_FILTERS``.
        decay: "coupled" or "decoupled".

    Returns:
        The new values, under the same names.
    """
    new = dict(values)
    new["grad"] = new["grad"] * scalars.grad_factor
    new |= GRAD_FILTERS[grad_filter](new, scalars)
    return adamw(new, scalars, decay)


def memory_order(tensor: Tensor) -> list[int]:
    """Returns the dimensions of a tensor, the one that moves furthest through memory first."""
    return sorted(range(tensor.dim()), key=tensor.stride, reverse=True)


def in_memory_order(tensor: Tensor, like: Tensor) -> Tensor:
    """Returns a view whose C order is the order in which ``like`` lies in memory."""
    return tensor.permute(memory_order(like))


def view_of(name: str, array: Tensor, param: Tensor, step: float) -> Tensor:
    """Returns the part of an array that a step reads and writes, in memory order: of planes, one."""
    if name == block8.BASES:
        return array
    plane = array if array.dim() == param.dim() else array[place_in(array, step)]
    return in_memory_order(plane, param)


def place_in(ring: Tensor, step: float) -> int:
    """Returns which plane of a ring step 1, 2, ... writes."""
    return (int(step) - 1) % len(ring)


def in_a_window(values: dict[str, Tensor], ring: Tensor, param: Tensor, step: float) -> dict[str, Tensor]:
    """Returns the values as ``mean`` takes them; ``ring`` is the window with all its planes."""
    planes = [in_memory_order(plane, param).reshape(-1).cpu() for plane in ring]
    place = place_in(ring, step)
    sums = windows.sum_of_others(values["grad_sum"], planes, place)
    return {**values, "grad_window": planes[place], "grad_sum": sums}


@torch.no_grad()
def adamw_step_(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    steps: Sequence[Tensor],
    masks: Sequence[Tensor | None],
    states: Mapping[str, Sequence[Tensor]],
    scalars: Tensor,
    rows: Sequence[int],
    *,
    mask_modes: Sequence[int],
    grad_filter: str,
    decay: str,
    state_rounding: str,
    param_rounding: str,
    seed: int,
    grad_scale: Tensor | None = None,
    found_inf: Tensor | None = None,
) -> None:
    """Updates params, states and step counters in place; what a backend of Python's is called with.

    Args:
        params: float32, bfloat16, float16 or float64, all alike; any shape and any strides.
        grads: Like the parameters; read only.
        steps: One element each, which becomes its row's ``step``.
        masks: int32 [words], a bit per element in memory order (``kept_elements``), or None for a parameter
            without a mask.
        states: Name -> a tensor per parameter, of its shape or of planes of that (``view_of``):
            ``exp_avg`` and ``exp_avg_sq``, float32 or bfloat16, uint8 (``block8``), or float64 beside
            parameters of that; for AMSGrad ``max_exp_avg_sq`` and for the filter "ema" ``grad_ema``, alike;
            beside uint8 ``block_bases``, int32 [blocks]; for "mean" ``grad_window``, float32 or bfloat16, and
            ``grad_sum``, both float64 beside float64; with ``param_rounding`` "kahan", beside parameters of
            16 bits, ``kahan_comp``, like those.
        scalars: ``real_dtype`` [rows, fields of ``Scalars``].
        rows: The row of ``scalars`` for each tensor.
        mask_modes: For each parameter 0 ("zero") or 1 ("freeze"); see ``masked``.
        grad_filter: A key of ``GRAD_FILTERS``.
        decay: "coupled" or "decoupled".
        state_rounding: "nearest" or "stochastic"; how bfloat16 states are rounded. Those of 8 bits always are
            stochastically.
        param_rounding: "nearest", "stochastic" or "kahan"; how parameters of 16 bits are rounded
            (``round_stochastically``, ``cut_off``; arXiv:2010.06192).
        seed: Picks the random bits, together with step and element index.
        grad_scale: ``real_dtype``, one element: divides the gradients. (default: None, by 1)
        found_inf: float32, one element: where it is not 0, nothing changes. (default: None, 0)

    Raises:
        ValueError: There is no such filter.
    """
    if grad_filter not in GRAD_FILTERS:
        raise ValueError(f"grad_filter must be one of {list(GRAD_FILTERS)}, got {grad_filter!r}")
    if found_inf is not None and found_inf.item() != 0:
        return
    stochastic = dict.fromkeys(states, state_rounding == "stochastic")
    stochastic |= {"param": param_rounding == "stochastic", "kahan_comp": False, "grad_window": False}
    real = real_dtype(params[0].dtype)
    for t, row in enumerate(rows):
        numbers, count = unscaled(Scalars(*scalars[row].tolist()), grad_scale), params[t].numel()
        arrays = {"param": params[t], "grad": grads[t]}
        arrays |= {name: list_[t] for name, list_ in states.items()}
        views = {name: view_of(name, array, params[t], numbers.step) for name, array in arrays.items()}
        before = {name: view.reshape(-1).cpu() for name, view in views.items()}
        values = numbers_in(before, real)
        if "grad_window" in states:
            values = in_a_window(values, arrays["grad_window"], params[t], numbers.step)
        if "kahan_comp" in states:
            values["param"] = values["param"] + values["kahan_comp"]
        new = step(values, numbers, grad_filter, decay)
        if "kahan_comp" in states:
            new["kahan_comp"] = cut_off(new["param"], params[t].dtype)
        key = random_key(seed, numbers.step)
        kept = None if (words := masks[t]) is None else kept_elements(words, count).cpu()
        mode = ("zero", "freeze")[mask_modes[t]]
        stored = in_their_dtypes(new, before, key, stochastic)
        if kept is not None:
            stored = {name: masked(array, before[name], kept, mode) for name, array in stored.items()}
        if block8.BASES in states:
            stored |= in_blocks(new, values, before, key, kept, mode)
        for name, array in stored.items():
            views[name].copy_(array.view(views[name].shape))
        steps[t].fill_(numbers.step)
