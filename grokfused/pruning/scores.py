"""How much each weight matters: the scores of five pruning methods, as compared in arXiv:2310.19470.

The larger a score, the sooner its weight is kept. Every function takes ``(model, loss_fn, batches)`` and
returns name -> scores of the weight's shape; it changes neither the model nor its gradients. ``batches`` is a
list or a loader of (inputs, targets), the loss is ``loss_fn(model(inputs), targets)``, that of several their
mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

Batches = Sequence[tuple[Any, Any]]
LossFn = Callable[[Any, Any], Tensor]
Named = dict[str, Tensor]
Predicate = Callable[[str, Tensor], bool]
Score = Callable[..., Named]


def has_two_dimensions(name: str, param: Tensor) -> bool:
    """Says which parameters are prunable by default: weights, no biases and norms."""
    return param.dim() >= 2


def prunable_parameters(model: nn.Module, prunable: Predicate = has_two_dimensions) -> Named:
    """Returns name -> parameter of those that may be pruned.

    Raises:
        ValueError: There are none.
    """
    found: Named = {name: param for name, param in model.named_parameters() if prunable(name, param)}
    if not found:
        raise ValueError(
            "no parameter of this model is prunable; by default those of 2 dimensions or more are"
        )
    return found


def _refuse_frozen(weights: Named) -> None:
    frozen = [name for name, weight in weights.items() if not weight.requires_grad]
    if frozen:
        raise ValueError(
            f"{frozen} are frozen and have no gradient: thaw them, or leave them out with prunable="
        )


def _mean_loss(model: nn.Module, loss_fn: LossFn, batches: Batches, temperature: float = 1.0) -> Tensor:
    if not callable(loss_fn):
        raise TypeError(f"this score needs loss_fn, a function of outputs and targets, got {loss_fn!r}")
    if not batches:
        raise ValueError(f"this score needs batches, at least one of (inputs, targets), got {batches!r}")
    losses = [loss_fn(model(inputs) / temperature, targets) for inputs, targets in batches]
    return torch.stack(losses).mean()


def magnitude(
    model: nn.Module, loss_fn: Any = None, batches: Any = (), *, prunable: Predicate = has_two_dimensions
) -> Named:
    """``|w|`` (Han et al. 2015, arXiv:1506.02626); needs neither loss nor batches."""
    return {name: weight.detach().abs() for name, weight in prunable_parameters(model, prunable).items()}


def random(
    model: nn.Module,
    loss_fn: Any = None,
    batches: Any = (),
    *,
    prunable: Predicate = has_two_dimensions,
    seed: int = 0,
) -> Named:
    """Standard normal numbers, the control of every other score.

    Args:
        model: The network.
        loss_fn: Not used.
        batches: Not used.
        prunable: Says which parameters get scores.
        seed: Picks the numbers. (default: 0)
    """
    numbers = torch.Generator().manual_seed(seed)
    weights = prunable_parameters(model, prunable)
    return {name: torch.randn(w.shape, generator=numbers).to(w.device) for name, w in weights.items()}


def snip(
    model: nn.Module, loss_fn: LossFn, batches: Batches, *, prunable: Predicate = has_two_dimensions
) -> Named:
    """``|w * g| / sum |w * g|``: how the loss feels the mask (Lee et al. 2019, arXiv:1810.02340, eq. 6)."""
    weights = prunable_parameters(model, prunable)
    _refuse_frozen(weights)
    with torch.enable_grad():
        loss = _mean_loss(model, loss_fn, batches)
        grads = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
    sensitivities = [(w * g).detach().abs() for w, g in zip(weights.values(), grads, strict=True)]
    total = torch.stack([s.sum() for s in sensitivities]).sum()
    return {name: s / total for name, s in zip(weights, sensitivities, strict=True)}


def grasp(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Batches,
    *,
    prunable: Predicate = has_two_dimensions,
    temperature: float = 200.0,
) -> Named:
    """``w * (H g)``: what a weight adds to the gradient's flow (Wang et al. 2020, arXiv:2002.07376).

    g and H are gradient and Hessian of the loss of ``model(inputs) / temperature``. The paper's score is
    ``-w * (H g)`` and it removes the largest (eq. 8): keeping the largest of its negative is the same.

    Args:
        model: The network; its outputs are logits.
        loss_fn: Takes logits and targets.
        batches: A few samples of each class.
        prunable: Says which parameters get scores.
        temperature: Divides the logits. (default: 200, the authors')
    """
    weights = prunable_parameters(model, prunable)
    _refuse_frozen(weights)
    tensors = list(weights.values())
    with torch.enable_grad():
        loss = _mean_loss(model, loss_fn, batches, temperature)
        grads = torch.autograd.grad(loss, tensors, create_graph=True, materialize_grads=True)
        # The gradient of stop(g) . g is H g.
        flow = torch.stack([(g.detach() * g).sum() for g in grads]).sum()
        products = torch.autograd.grad(flow, tensors, materialize_grads=True)
    return {
        name: (w * product).detach() for (name, w), product in zip(weights.items(), products, strict=True)
    }


def synflow(
    model: nn.Module, loss_fn: Any, batches: Batches, *, prunable: Predicate = has_two_dimensions
) -> Named:
    """``|w * dR/dw|`` with R the sum of the outputs of the network of ``|w|`` for an input of ones.

    One round of Tanaka et al. 2020 (arXiv:2006.05467, eq. 3); the original prunes in 100 rounds
    (``find_masks``). Float64, because R is a product over the layers; in evaluation mode, as the original.

    Args:
        model: The network. Its inputs must be numbers: give a network of tokens a one-hot form.
        loss_fn: Not used.
        batches: Only the shape of the first input matters, less its first dimension, which becomes 1.
        prunable: Says which parameters get scores.

    Raises:
        ValueError: There is no batch, or its inputs are not numbers but indices.
    """
    inputs = next(iter(batches), (None,))[0]
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise ValueError("synflow needs a batch whose inputs are floating-point: it replaces them by ones")
    names = prunable_parameters(model, prunable)
    everything = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    magnitudes = {
        name: t.detach().abs().double() if t.is_floating_point() else t for name, t in everything.items()
    }
    weights = {name: magnitudes[name].requires_grad_() for name in names}
    was_training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            output = functional_call(model, magnitudes, (torch.ones_like(inputs[:1]).double(),))
            grads = torch.autograd.grad(output.sum(), list(weights.values()), materialize_grads=True)
    finally:
        model.train(was_training)
    return {name: (w * g).detach().abs() for (name, w), g in zip(weights.items(), grads, strict=True)}


SCORES: dict[str, Score] = {
    "magnitude": magnitude,
    "random": random,
    "snip": snip,
    "grasp": grasp,
    "synflow": synflow,
}
