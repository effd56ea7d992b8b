"""Losses and parts of losses that papers around grokking and fine-tuning use, each in one expression."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, normalize, pdist

__all__ = ["alignment", "distillation", "norm_and_direction", "slerp", "uniformity"]


def _got(**tensors: Tensor) -> str:
    return "got " + ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())


def distillation(student: Tensor, teacher: Tensor, temperature: float = 4.0) -> Tensor:
    """Returns ``T^2 * KL(softmax(teacher / T) || softmax(student / T))``, a batch's mean (arXiv:1503.02531).

    Args:
        student: Logits, float [batch, classes].
        teacher: The same of the teacher; no gradient flows there.
        temperature: T, > 0. (default: 4.0)

    Raises:
        ValueError: The two are not alike [batch, classes], or the temperature is out of range.
    """
    if student.dim() != 2 or student.shape != teacher.shape:
        raise ValueError(f"logits must be [batch, classes], {_got(student=student, teacher=teacher)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    given, wanted = (log_softmax(logits / temperature, 1) for logits in (student, teacher.detach()))
    return kl_div(given, wanted, reduction="batchmean", log_target=True) * temperature**2


def norm_and_direction(student: Tensor, teacher: Tensor, class_means: Tensor, targets: Tensor) -> Tensor:
    """Returns the norm-and-direction loss of features, the mean of a batch (arXiv:2305.17007):

        1 - <f_s, e_y> / max(||f_s||, ||f_t||),    e_y = c_y / ||c_y||

    While a student's feature is shorter than its teacher's, it is pulled along the class's direction e_y;
    once it is longer, only its direction counts.

    Args:
        student: Features f_s before the last layer, float [batch, features].
        teacher: Features f_t of the same examples; no gradient flows there.
        class_means: The teacher's mean feature c of each class, [classes, features]; none may be 0.
        targets: The classes y, int64 [batch].

    Raises:
        ValueError: The features have other shapes (a student of other width needs a projection), or there is
            not one class for each.
    """
    if student.shape != teacher.shape or student.shape[1:] != class_means.shape[1:]:
        shapes = _got(student=student, teacher=teacher, class_means=class_means)
        raise ValueError(f"features of student, teacher and classes must have one width, {shapes}")
    _check_targets(student, targets)
    directions = normalize(class_means.detach(), dim=1)[targets]
    along = (student * directions).sum(1)
    longest = torch.maximum(student.norm(dim=1), teacher.detach().norm(dim=1))
    return (1 - along / longest).mean()


def _check_targets(features: Tensor, targets: Tensor) -> None:
    if features.dim() != 2 or targets.shape != features.shape[:1]:
        shapes = _got(features=features, targets=targets)
        raise ValueError(f"features [batch, features] need a class each, targets [batch], {shapes}")


def alignment(features: Tensor, targets: Tensor) -> Tensor:
    """Returns the mean of ``||x - y||^2`` over all pairs of one class, 0 if there is none (arXiv:2005.10242).

    Args:
        features: Of norm 1, float [batch, features].
        targets: The classes, int64 [batch].

    Raises:
        ValueError: There is not one class for each.
    """
    _check_targets(features, targets)
    squares = pdist(features).square()
    first, second = torch.triu_indices(len(features), len(features), 1, device=features.device)
    alike = targets[first] == targets[second]
    return squares[alike].mean() if bool(alike.any()) else features.sum() * 0


def uniformity(features: Tensor) -> Tensor:
    """Returns ``log mean exp(-2 ||x - y||^2)`` over all pairs, low where evenly spread (arXiv:2005.10242).

    Args:
        features: Of norm 1, float [batch, features]; two or more.
    """
    return pdist(features).square().mul(-2).exp().mean().clamp_min(1e-6).log()


def slerp(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """Returns points on the great circles between vectors of norm 1:

        (sin((1 - t) a) x + sin(t a) y) / sin(a),    cos(a) = <x, y>

    Args:
        first: x, float [..., features].
        second: y, the same shape.
        share: t in [0, 1], [...].
    """
    angle = (first * second).sum(-1).clamp(-1 + 1e-6, 1 - 1e-6).acos()
    weights = torch.stack([((1 - share) * angle).sin(), (share * angle).sin()]) / angle.sin()
    return weights[0][..., None] * first + weights[1][..., None] * second
