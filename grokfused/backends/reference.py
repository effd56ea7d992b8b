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

_UINT32 = 0xFFFFFFFF
LANES = 32  # elements to a word of a mask


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


GRAD_FILTERS = {"ema": ema, "none": no_filter}


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


def scramble(bits: Tensor) -> Tensor:
    """Mixes 32 bits (int64 tensor in [0, 2**32)) bijectively: Chris Wellons' "lowbias32"."""
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & _UINT32
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & _UINT32
    return bits ^ (bits >> 16)


def random_key(seed: int, step: float) -> Tensor:
    """Returns the key (int64 []) of one step's random bits."""
    return scramble(scramble(torch.tensor(seed & _UINT32, device="cpu")) ^ int(step))


def random_bits(count: int, key: Tensor) -> Tensor:
    """Returns 32 random bits per element (int64 [count]), from key and element index alone.

    The upper sixteen round all states of an element: each stays without bias, and states that are equal, as
    the two second moments of AMSGrad often are, stay equal. The lower sixteen round the parameter: over all
    keys every pair of halves comes once, so that its rounding tells nothing of theirs.
    """
    bits = ((key ^ (torch.arange(count, device="cpu") & _UINT32)) * 0x2C1B3C6D) & _UINT32
    return ((bits ^ (bits >> 16)) * 0x297A2D39) & _UINT32


def _carried_to_bfloat16(magnitude: Tensor, bits: Tensor) -> Tensor:
    # To the sixteen bits that will be cut off, add sixteen random ones: the carry rounds up.
    return (magnitude.view(torch.int32).long() + bits) >> 16


def _carried_to_float16(magnitude: Tensor, bits: Tensor) -> Tensor:
    normal = (magnitude.view(torch.int32).long() - (112 << 23) + (bits >> 3)) >> 13
    # Below 2**-14 float16 counts in units of 2**-24: of what lies between two, sixteen bits are looked at.
    subnormal = ((magnitude.clamp(max=2.0**-14) * 2.0**40).long() + bits) >> 16
    carried = torch.where(magnitude < 2.0**-14, subnormal, normal)
    return torch.where(magnitude < 2.0**16, carried, 0x7C00)


def round_stochastically(values: Tensor, bits: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Rounds float32 [n] to one of its two neighbours, up with probability equal to the fraction cut off.

    After the largest number comes infinity, at the distance of a further number: so a value between the two
    may become infinite that rounding to nearest would not make so, and no smaller one can. The probability is
    exact, except that below 2**-14 what float16 has no more than 2**-40 of counts for nothing.

    Args:
        values: float32 [n].
        bits: int64 [n], uniform in [0, 2**16).
        dtype: torch.bfloat16 or torch.float16. (default: torch.bfloat16)
    """
    carried = (_carried_to_float16 if dtype is torch.float16 else _carried_to_bfloat16)(values.abs(), bits)
    carried = torch.where(values.isnan(), 0x7FFF, carried)
    signed = torch.where(values.signbit(), carried - 0x8000, carried)
    return signed.to(torch.int16).view(dtype)


def round_to(values: Tensor, dtype: torch.dtype, bits: Tensor | None = None) -> Tensor:
    """Rounds float32 [n] to ``dtype``: to nearest even, or with ``bits`` stochastically."""
    if bits is None or dtype in (torch.float32, torch.float64):
        return values.to(dtype)
    return round_stochastically(values, bits, dtype)


def cut_off(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns what rounding float32 [n] to nearest takes away, for the next step to add (Kahan's sum).

    It is 0 where the rounded value is infinite or NaN: the next step shall find what it would find without,
    and not inf - inf.
    """
    rest = values - values.to(dtype).float()
    return torch.where(rest.isfinite(), rest, 0.0)


def kept_elements(words: Tensor, count: int) -> Tensor:
    """Returns the bits of a packed mask (int32 words; the lowest bit first) as bool [count]."""
    bits = words.view(torch.uint8)[:, None] >> torch.arange(8, dtype=torch.uint8, device=words.device)
    return (bits & 1).bool().view(-1)[:count]


def masked(new: Tensor, before: Tensor, kept: Tensor, mode: str) -> Tensor:
    """Returns what is written: by selection, because no multiplication takes a NaN away.

    Args:
        new: [n], what the step made of an array.
        before: [n], the array before the step.
        kept: bool [n], the mask: True where an element takes the step.
        mode: "zero": the others are 0; "freeze": they stay as they were, bit for bit.
    """
    return torch.where(kept, new, torch.zeros_like(before) if mode == "zero" else before)


def memory_order(tensor: Tensor) -> list[int]:
    """Returns the dimensions of a tensor, the one that moves furthest through memory first."""
    return sorted(range(tensor.dim()), key=tensor.stride, reverse=True)


def in_memory_order(tensor: Tensor, like: Tensor) -> Tensor:
    """Returns a view whose C order is the order in which ``like`` lies in memory."""
    return tensor.permute(memory_order(like))


def plane_of(state: Tensor, param: Tensor, step: float) -> Tensor:
    """Returns the part of a state that a step reads and writes: of planes, (step - 1) % planes."""
    return state if state.dim() == param.dim() else state[(int(step) - 1) % len(state)]


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
        states: Name -> a tensor per parameter, of its shape or of planes of that (``plane_of``):
            ``exp_avg`` and ``exp_avg_sq``, float32 or bfloat16, or float64 beside parameters of that; for
            AMSGrad ``max_exp_avg_sq`` and for the filter "ema" ``grad_ema``, the same; with
            ``param_rounding`` "kahan", beside parameters of 16 bits, ``kahan_comp``, like those.
        scalars: ``real_dtype`` [rows, fields of ``Scalars``].
        rows: The row of ``scalars`` for each tensor.
        mask_modes: For each parameter 0 ("zero") or 1 ("freeze"); see ``masked``.
        grad_filter: A key of ``GRAD_FILTERS``.
        decay: "coupled" or "decoupled".
        state_rounding: "nearest" or "stochastic"; how bfloat16 states are rounded.
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
    stochastic |= {"param": param_rounding == "stochastic", "kahan_comp": False}
    real = real_dtype(params[0].dtype)
    for t, row in enumerate(rows):
        arrays = {"param": params[t], "grad": grads[t]}
        arrays |= {
            name: plane_of(list_[t], params[t], scalars[row, 0].item()) for name, list_ in states.items()
        }
        ordered = {name: in_memory_order(array, params[t]) for name, array in arrays.items()}
        values = {name: view.reshape(-1).to("cpu", real) for name, view in ordered.items()}
        numbers = unscaled(Scalars(*scalars[row].tolist()), grad_scale)
        if "kahan_comp" in states:
            values["param"] = values["param"] + values["kahan_comp"]
        new = step(values, numbers, grad_filter, decay)
        if "kahan_comp" in states:
            new["kahan_comp"] = cut_off(new["param"], params[t].dtype)
        if any(stochastic.values()):
            bits = random_bits(params[t].numel(), random_key(seed, numbers.step))
        mask = masks[t]
        kept = None if mask is None else kept_elements(mask, params[t].numel()).cpu()
        for name, view in ordered.items():
            if name == "grad":
                continue
            drawn = (bits & 0xFFFF if name == "param" else bits >> 16) if stochastic[name] else None
            rounded = round_to(new[name], view.dtype, drawn)
            if kept is not None:
                mode = ("zero", "freeze")[mask_modes[t]]
                rounded = masked(rounded, view.reshape(-1).cpu(), kept, mode)
            view.copy_(rounded.view(view.shape))
        steps[t].fill_(numbers.step)
