"""How much each training example matters, early in training (Paul et al., arXiv:2107.07075).

Both scores are of one network; the paper averages them over some ten, trained for a few epochs from
independent initialisations. The largest are the hardest examples, or wrongly labelled ones.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import one_hot

__all__ = ["el2n", "grand"]


def el2n(logits: Tensor, targets: Tensor) -> Tensor:
    """Returns the norm of each example's error, ``||softmax(logits) - one_hot(target)||_2``: EL2N.

    Args:
        logits: Float [examples, classes].
        targets: The classes, int64 [examples].

    Returns:
        [examples], of the logits' dtype, in [0, sqrt(2)].

    Raises:
        ValueError: The shapes do not fit together.
        TypeError: The targets are no int64.
    """
    if logits.dim() != 2 or targets.shape != logits.shape[:1]:
        shapes = f"{list(logits.shape)} and {list(targets.shape)}"
        raise ValueError(f"el2n takes logits [examples, classes] and targets [examples], got {shapes}")
    if targets.dtype is not torch.int64:
        raise TypeError(f"el2n takes targets as numbers of classes, int64, got {targets.dtype}")
    error = logits.softmax(1) - one_hot(targets, logits.shape[1])
    norms: Tensor = error.norm(dim=1)
    return norms


def grand(
    model: nn.Module,
    loss_fn: Callable[[Tensor, Tensor], Tensor],
    inputs: Tensor,
    targets: Tensor,
    chunk_size: int = 64,
) -> Tensor:
    """Returns the norm of each example's gradient, ``||d loss(model(x), y) / d weights||_2``: GraNd.

    Args:
        model: A network without layers that mix examples (no batch norm in training mode); unchanged.
        loss_fn: Takes the outputs of a batch of one and its targets; returns a loss, [].
        inputs: [examples, ...].
        targets: [examples, ...].
        chunk_size: Examples whose gradients are in memory at once, each the size of the model. (default: 64)

    Returns:
        Float [examples]. All parameters that require a gradient count.

    Raises:
        ValueError: Inputs and targets are not equally many, or chunk_size is less than 1.
    """
    if len(inputs) != len(targets):
        raise ValueError(f"grand takes a target for each input, got {len(inputs)} and {len(targets)}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be >= 1, got {chunk_size}")
    weights = {name: param.detach() for name, param in model.named_parameters() if param.requires_grad}

    def loss_of(weights: dict[str, Tensor], question: Tensor, answer: Tensor) -> Tensor:
        return loss_fn(functional_call(model, weights, (question[None],)), answer[None])

    def norm_of(question: Tensor, answer: Tensor) -> Tensor:
        squares = [each.square().sum() for each in grad(loss_of)(weights, question, answer).values()]
        return torch.stack(squares).sum().sqrt()

    return vmap(norm_of, chunk_size=chunk_size)(inputs, targets).detach()
