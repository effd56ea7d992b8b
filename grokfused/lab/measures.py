"""What is measured of a network while it groks: small functions of tensors or of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev


def weight_norm(weights: Iterable[Tensor]) -> float:
    """Returns the L2 norm of all weights together."""
    return float(torch.stack([weight.detach().double().norm() for weight in weights]).norm())


def feature_rank(features: Tensor) -> int:
    """Returns how many singular values of activations [n, d] are above ``max(n, d) * eps * largest``.

    The rank that "Deep Grokking" follows (arXiv:2405.19454); eps is that of the features' dtype.
    """
    values = torch.linalg.svdvals(features.detach())
    return int((values > max(features.shape) * torch.finfo(features.dtype).eps * values[0]).sum())


def effective_rank(features: Tensor) -> float:
    """Returns ``exp(-sum p log p)`` of the shares p of the singular values: a rank without a threshold."""
    values = torch.linalg.svdvals(features.detach())
    shares = values[values > 0] / values.sum()
    return float((-(shares * shares.log()).sum()).exp())


def local_complexity(
    pre_activations: Callable[[Tensor], Sequence[Tensor]], points: Tensor, radius: float, directions: Tensor
) -> float:
    """Returns how many units change their sign among the vertices ``x +- radius * v``, the mean over points.

    "Deep networks always grok and here is why" (arXiv:2402.15555): how many linear regions of a ReLU network
    meet a small cross-polytope around the data.

    Args:
        pre_activations: Points [n, d] -> what each layer's ReLUs get, [n, units] each.
        points: x, [n, d].
        radius: In units of the input.
        directions: v, orthonormal, [p, d].
    """
    steps = radius * torch.cat([directions, -directions])
    vertices = (points[:, None] + steps).flatten(0, 1)
    with torch.no_grad():
        layers = pre_activations(vertices)
    signs = [(layer > 0).unflatten(0, (len(points), len(steps))) for layer in layers]
    crossed = [(sign.any(1) & ~sign.all(1)).sum(1) for sign in signs]
    return float(torch.stack(crossed).sum(0).double().mean())


def tangent_kernel(model: nn.Module, inputs: Tensor) -> Tensor:
    """Returns ``K_ij = sum over outputs and weights of df(x_i)/dw df(x_j)/dw``, [n, n], detached."""
    weights = {name: param.detach() for name, param in model.named_parameters()}
    slopes = jacrev(lambda given: functional_call(model, given, (inputs,)))(weights)
    flat = torch.cat([slope.flatten(2) for slope in slopes.values()], 2).flatten(1)
    kernel: Tensor = flat @ flat.T
    return kernel.detach()


def kernel_alignment(kernel: Tensor, targets: Tensor) -> float:
    """Returns ``<K, YY^T> / (||K|| ||YY^T||)`` of K [n, n] and targets Y [n, classes] (arXiv:2310.06110)."""
    wanted = targets @ targets.T
    return float((kernel * wanted).sum() / (kernel.norm() * wanted.norm()))


def output_scale(outputs: Tensor) -> float:
    """Returns the root mean square of a network's outputs."""
    return float(outputs.detach().square().mean().sqrt())


def slow_share(stream: Tensor, period: int) -> float:
    """Returns the share of a stream's power at periods of ``period`` steps or more, its mean included.

    What a filter of slow gradients acts on (arXiv:2405.20233): a stream is [steps, elements], one gradient a
    row; white noise has about ``2 / period``.
    """
    power = torch.fft.rfft(stream.double(), dim=0).abs().square()
    frequencies = torch.fft.rfftfreq(len(stream), device=stream.device)
    power[1 : (len(stream) + 1) // 2] *= 2  # but for the mean and the last one, a frequency stands for two
    return float(power[frequencies <= 1 / period].sum() / power.sum())


def low_frequency_share(residual: Tensor, position: Tensor, frequencies: int, low: int) -> float:
    """Returns the share of a residual's power in its first ``low`` of so many frequencies.

    The non-uniform transform of "Rationale from frequency perspective" (arXiv:2405.17479):
    ``F(k) = 1/n sum_i r_i exp(-2 pi i k x_i)``, k = 1, 2, ...

    Args:
        residual: r, [n].
        position: x, [n]: as along the data's first principal direction.
        frequencies: How many k.
        low: How many of them count as low.
    """
    k = torch.arange(1, frequencies + 1, dtype=torch.float64, device=position.device)
    waves = torch.exp(-2j * torch.pi * k[:, None] * position.double())
    power = (waves @ residual.to(waves.dtype) / len(residual)).abs().square()
    return float(power[:low].sum() / power.sum())


def cosine(first: Iterable[Tensor], second: Iterable[Tensor]) -> float:
    """Returns the cosine between two lists of tensors, each taken as one vector; 0 where one is 0."""
    a, b = (torch.cat([each.detach().flatten() for each in one]).double() for one in (first, second))
    lengths = a.norm() * b.norm()
    return float(a @ b / lengths) if lengths > 0 else 0.0


def roc_area(scores: Tensor, positive: Tensor) -> float:
    """Returns how often a positive example scores above another one; scores [n], positive bool [n]."""
    ranks = scores.argsort().argsort().double() + 1
    there, others = int(positive.sum()), int((~positive).sum())
    return float((ranks[positive].sum() - there * (there + 1) / 2) / (there * others))
