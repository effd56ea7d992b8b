"""How a value becomes 16 bits, and where random bits come from: the truth of storage, for reference.py."""

from __future__ import annotations

import torch
from torch import Tensor

_UINT32 = 0xFFFFFFFF


def scramble(bits: Tensor) -> Tensor:
    """Mixes 32 bits (int64 tensor in [0, 2**32)) bijectively: Chris Wellons' "lowbias32"."""
    bits = ((bits ^ (bits >> 16)) * 0x7FEB352D) & _UINT32
    bits = ((bits ^ (bits >> 15)) * 0x846CA68B) & _UINT32
    return bits ^ (bits >> 16)


def random_key(seed: int, step: float) -> Tensor:
    """Returns the key (int64 []) of one step's random bits."""
    return scramble(scramble(torch.tensor(seed & _UINT32, device="cpu")) ^ int(step))


def random_bits(numbers: Tensor, key: Tensor) -> Tensor:
    """Returns 32 random bits for each of these numbers; int64, of their shape."""
    return scramble(key ^ (numbers & _UINT32))


def state_draws(count: int, key: Tensor) -> Tensor:
    """Returns sixteen random bits per element (int64 [count]), from key and element index alone.

    They round all states of an element: each stays without bias, and states that are equal, as the two second
    moments of AMSGrad often are, stay equal. Two neighbours, of which the first one is even, have halves of
    the bits of the even number.
    """
    return _halves(count, key, 0)


def param_draws(count: int, key: Tensor) -> Tensor:
    """Returns the same for parameters. Their bits are those of odd numbers: they tell nothing of states."""
    return _halves(count, key, 1)


def _halves(count: int, key: Tensor, odd: int) -> Tensor:
    elements = torch.arange(count, device="cpu")
    bits = random_bits(elements // 2 * 2 + odd, key)
    return torch.where(elements % 2 == 0, bits >> 16, bits & 0xFFFF)


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
