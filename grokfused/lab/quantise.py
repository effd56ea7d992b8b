"""Integers for gradients and states: scales per tensor, per group and per channel, powers of two among them.

A reconstruction after the abstract of ShiftQuant (arXiv:2411.10948), whose text was not at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

GROUPS = 4  # of channels
Scales = Callable[[Tensor, int], Tensor]


def largest_integer(bits: int) -> int:
    """Returns the largest integer of so many bits with a sign: the smallest one is not used."""
    return int(2 ** (bits - 1) - 1)


def group_of(ranges: Tensor, groups: int = GROUPS) -> Tensor:
    """Returns each channel's group, ``clamp(floor(log2(R / r_c)), 0, groups - 1)``, R the largest range."""
    octaves = (ranges.amax() / ranges.clamp_min(torch.finfo(ranges.dtype).tiny)).log2().floor()
    return octaves.clamp(0, groups - 1).long()


def per_tensor(ranges: Tensor, bits: int) -> Tensor:
    """Returns one scale for all channels: their largest magnitude, ``ranges`` [channels], is an integer."""
    return (ranges.amax() / largest_integer(bits)).expand(ranges.shape)


def per_channel(ranges: Tensor, bits: int) -> Tensor:
    """Returns a scale for each channel: the best that groups can come to."""
    return ranges / largest_integer(bits)


def by_shifts(ranges: Tensor, bits: int) -> Tensor:
    """Returns scales that differ by powers of two only: group j has ``2^-j R / largest integer``.

    A sum over channels then needs no other product than a shift, and no reordering in memory.
    """
    return torch.ldexp(per_tensor(ranges, bits), -group_of(ranges))


def by_groups(ranges: Tensor, bits: int) -> Tensor:
    """Returns scales of the same groups as any number: each group's largest magnitude is an integer."""
    group = group_of(ranges)
    largest = torch.zeros(GROUPS, dtype=ranges.dtype, device=ranges.device)
    return largest.scatter_reduce(0, group, ranges, "amax")[group] / largest_integer(bits)


SCALES: dict[str, Scales] = {
    "per tensor": per_tensor,
    "shifts": by_shifts,
    "float groups": by_groups,
    "per channel": per_channel,
}


def quantised(values: Tensor, bits: int, scales: Scales, dim: int = 0, stochastic: bool = True) -> Tensor:
    """Returns what is left of values in integers of so many bits, in the values' own units.

    Args:
        values: Of any shape.
        bits: With the sign; 2 or more.
        scales: One of ``SCALES``.
        dim: Where the channels are. (default: 0)
        stochastic: Round up with the probability of the rest, so that the mean is kept; else to the nearest.
            (default: True)
    """
    ranges = values.abs().transpose(0, dim).flatten(1).amax(1) if values.dim() > 1 else values.abs()
    shape = [1] * values.dim()
    shape[dim] = -1
    scale = scales(ranges, bits).clamp_min(torch.finfo(values.dtype).tiny).view(shape)
    ratio = values / scale
    whole = (ratio + torch.rand_like(ratio)).floor() if stochastic else ratio.round()
    return whole.clamp(-largest_integer(bits), largest_integer(bits)) * scale


class _Quantised(torch.autograd.Function):
    """Quantises forwards; the gradient passes as if nothing had happened."""

    @staticmethod
    def forward(context: Any, values: Tensor, bits: int) -> Tensor:
        return quantised(values, bits, per_tensor, stochastic=False)

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _QuantisedGrad(torch.autograd.Function):
    """Quantises the gradient that comes back, channel by channel (dimension 1), and nothing forwards."""

    @staticmethod
    def forward(context: Any, values: Tensor, bits: int, scales: Scales) -> Tensor:
        context.how = bits, scales
        return values.view_as(values)

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        bits, scales = context.how
        return quantised(grads[0], bits, scales, dim=1), None, None


def integer_layer(layer: Callable[..., Tensor], bits: int, scales: Scales) -> Callable[..., Tensor]:
    """Returns a layer (inputs, weight, ...) with inputs, weight and gradient quantised; 0 bits: as it is."""
    if not bits:
        return layer

    forwards: Callable[..., Tensor] = _Quantised.apply
    backwards: Callable[..., Tensor] = _QuantisedGrad.apply

    def quantised_layer(inputs: Tensor, weight: Tensor, **options: Any) -> Tensor:
        outputs = layer(forwards(inputs, bits), forwards(weight, bits), **options)
        return backwards(outputs, bits, scales)

    return quantised_layer


class Norm(nn.Module):
    """``gamma (x - mean) / deviation + beta`` over all but the batch; L1's deviation is mean ``|x - mean|``.

    Args:
        channels: In dimension 1; gamma and beta have one number for each.
        l1: Else the deviation is the root of the mean square. (default: True)
    """

    def __init__(self, channels: int, l1: bool = True) -> None:
        super().__init__()
        self.l1 = l1
        self.gamma, self.beta = (nn.Parameter(torch.full((channels, 1, 1), value)) for value in (1.0, 0.0))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [batch, channels, ...] to the same."""
        centred = x - x.mean((1, 2, 3), keepdim=True)
        over = (1, 2, 3)
        deviation = centred.abs().mean(over, True) if self.l1 else centred.square().mean(over, True).sqrt()
        return self.gamma * centred / (deviation + 1e-5) + self.beta
