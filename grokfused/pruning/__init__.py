"""Masks made of scores, and tickets, as in "Bridging Lottery Ticket and Grokking" (arXiv:2310.19470).

``SCORES`` holds five methods (scores.py); the masks are bool tensors for ``optimizer.set_masks``.
"""

from __future__ import annotations

import numbers
import os
import pickle
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from grokfused.pruning.scores import (
    SCORES,
    Batches,
    Named,
    Score,
    grasp,
    has_two_dimensions,
    magnitude,
    random,
    snip,
    synflow,
)
from grokfused.pruning.torch_prune import from_prune

__all__ = [
    "SCORES",
    "Ticket",
    "find_masks",
    "find_ticket",
    "from_prune",
    "grasp",
    "has_two_dimensions",
    "jaccard_distance",
    "magnitude",
    "masks_from_scores",
    "random",
    "snip",
    "synflow",
]

# Rounds in which each method prunes: SynFlow's authors use 100, the others prune at once.
ROUNDS = {"synflow": 100}
# How much is kept after round r of n, if `density` is kept in the end.
SCHEDULES: dict[str, Callable[[float, int, int], float]] = {
    "linear": lambda density, r, n: 1 - (1 - density) * r / n,
    "exponential": lambda density, r, n: density ** (r / n),
}


def _check_density(density: object) -> None:
    if isinstance(density, bool) or not isinstance(density, numbers.Real):
        raise TypeError(f"density, the share of weights that is kept, must be a number, got {density!r}")
    if not 0 <= float(density) <= 1:
        raise ValueError(f"density, the share of weights that is kept, must be in [0, 1], got {density}")


def _largest(scores: Tensor, density: float) -> Tensor:
    """Returns a bool [n] of the largest ``round(density * n)`` scores [n]; of equal ones, the first."""
    kept = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    order = torch.sort(scores, descending=True, stable=True).indices
    kept[order[: round(density * scores.numel())]] = True
    return kept


def masks_from_scores(scores: Mapping[str, Tensor], density: float, scope: str = "global") -> Named:
    """Keeps the weights of the largest scores, exactly ``round(density * count)`` of them.

    Of equal scores the first are kept (earlier tensors first, within them in C order): the same result on
    every device and in every run.

    Args:
        scores: Name -> scores of any shape and floating dtype.
        density: The share of weights that is kept, in [0, 1]; the papers' pruning rate is 1 - density.
        scope: "global": over all tensors together; "local": the same share of each. (default: "global")

    Returns:
        Name -> bool mask of the scores' shape.

    Raises:
        ValueError: The density or the scope is none there is, or a score is NaN.
    """
    _check_density(density)
    if scope not in ("global", "local"):
        raise ValueError(f'scope must be "global" or "local", got {scope!r}')
    for name, tensor in scores.items():
        if tensor.isnan().any():
            raise ValueError(f"the scores of {name} hold NaN: nothing can be ranked by them")
    if scope == "local":
        return {name: _largest(s.reshape(-1), density).view(s.shape) for name, s in scores.items()}
    kept = (
        _largest(torch.cat([s.reshape(-1) for s in scores.values()]), density) if scores else torch.empty(0)
    )
    parts = kept.split([s.numel() for s in scores.values()]) if scores else ()
    return {name: part.view(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


@contextmanager
def _masked_weights(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Sets to 0 what the masks leave out while the block runs."""
    weights = {name: param for name, param in model.named_parameters() if name in masks}
    kept = {name: weight.detach().clone() for name, weight in weights.items()}
    try:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.masked_fill_(~masks[name], 0)
        yield
    finally:
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(kept[name])


def find_masks(
    model: nn.Module,
    score: str | Score,
    density: float,
    loss_fn: Any = None,
    batches: Batches = (),
    *,
    scope: str = "global",
    rounds: int | None = None,
    schedule: str = "exponential",
    **options: Any,
) -> Named:
    """Prunes in one or several rounds, each scored with the weights that the rounds before it have left.

    Args:
        model: The network; unchanged in the end.
        score: A name in ``SCORES``, or a function like those.
        density: The share of prunable weights that is kept in the end, in [0, 1].
        loss_fn: A function of outputs and targets; "snip" and "grasp" need it. (default: None)
        batches: (inputs, targets) of each; "snip", "grasp" and "synflow" need one or more. (default: none)
        scope: "global" or "local"; see ``masks_from_scores``. (default: "global")
        rounds: In how many steps it prunes. (default: 100 for "synflow", else 1)
        schedule: "linear" or "exponential": what is kept after each round. (default: "exponential")
        options: Passed on to the score: ``prunable``, ``seed``, ``temperature``.

    Returns:
        Name -> bool mask.

    Raises:
        ValueError: There is no such score, schedule, density or number of rounds, or a score lacks batches.
        TypeError: The density is no number, or a score lacks its loss.
    """
    _check_density(density)
    if isinstance(score, str) and score not in SCORES:
        raise ValueError(f"score must be one of {tuple(SCORES)} or a function, got {score!r}")
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule must be one of {tuple(SCHEDULES)}, got {schedule!r}")
    count = (ROUNDS.get(score, 1) if isinstance(score, str) else 1) if rounds is None else rounds
    if count < 1:
        raise ValueError(f"rounds must be >= 1, got {count}")
    measure = SCORES[score] if isinstance(score, str) else score
    masks: Named = {}
    for number in range(1, count + 1):
        with _masked_weights(model, masks):
            scores = measure(model, loss_fn, batches, **options)
        # What is pruned stays pruned, whatever its score is now.
        scores = {name: s.masked_fill(~masks[name], -torch.inf) if masks else s for name, s in scores.items()}
        masks = masks_from_scores(scores, SCHEDULES[schedule](density, number, count), scope)
    return masks


def jaccard_distance(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> float:
    """Returns ``1 - |A and B| / |A or B|`` over the kept elements of all masks; 0 where neither keeps any.

    Raises:
        ValueError: The masks are not of the same tensors.
    """
    if {n: m.shape for n, m in first.items()} != {n: m.shape for n, m in second.items()}:
        own, others = ({name: list(mask.shape) for name, mask in masks.items()} for masks in (first, second))
        raise ValueError(f"the two sets of masks must have the same names and shapes, got {own} and {others}")
    shared = sum(int((mask & second[name]).sum()) for name, mask in first.items())
    either = sum(int((mask | second[name]).sum()) for name, mask in first.items())
    return 1 - shared / either if either else 0.0


@dataclass(frozen=True)
class Ticket:
    """A sparse network that may win: masks, and the weights the dense network began with.

    ``masks`` is name -> bool; ``initial_state`` a ``state_dict`` of the model at initialisation.
    """

    masks: Named
    initial_state: Named

    def rewind(self, model: nn.Module) -> None:
        """Puts the model back to its beginning, with 0 where it is pruned.

        The optimizer has to be told too: ``optimizer.set_masks`` of a new optimizer, whose states begin at 0.

        Raises:
            RuntimeError: The model is another one, as ``load_state_dict`` says.
        """
        model.load_state_dict(self.initial_state)
        with torch.no_grad():
            for name, param in model.named_parameters():
                if name in self.masks:
                    param.masked_fill_(~self.masks[name].to(param.device), 0)

    def norm_ratio(self, p: int) -> float:
        """Returns r_p: the ticket's norm of order ``p`` over the dense network's, both averaged by tensor."""
        dense = [self.initial_state[name].double() for name in self.masks]
        sparse = [weight * mask for weight, mask in zip(dense, self.masks.values(), strict=True)]
        total, kept = (sum(float(w.norm(p)) for w in weights) for weights in (dense, sparse))
        if total == 0:
            raise ValueError("the dense network's prunable weights are all 0: no scale gives them a norm")
        return kept / total

    def rewind_dense(self, model: nn.Module, p: int) -> None:
        """Puts the model back to its beginning, dense, scaled to the ticket's norm: the paper's control.

        Args:
            model: The network.
            p: 1 or 2, the order of the norm.
        """
        if p not in (1, 2):
            raise ValueError(f"p must be 1 or 2, got {p}")
        model.load_state_dict(self.initial_state)
        with torch.no_grad():
            for name, param in model.named_parameters():
                if name in self.masks:
                    param.mul_(self.norm_ratio(p))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the ticket; plain tensors, so that reading it runs no code."""
        torch.save({"masks": self.masks, "initial_state": self.initial_state}, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Ticket:
        """Reads a ticket that ``save`` wrote.

        Raises:
            ValueError: The file holds something else.
        """
        try:
            found = torch.load(path, weights_only=True, map_location=device)
            parts = [found.pop("masks"), found.pop("initial_state")]
            whole = not found and all(isinstance(t, Tensor) for part in parts for t in part.values())
        except (pickle.UnpicklingError, EOFError, RuntimeError, AttributeError, KeyError, TypeError) as error:
            found = f"{type(error).__name__}: {error}"
            raise ValueError(f"{os.fspath(path)} holds no ticket, as save() writes one ({found})") from error
        if not whole or any(mask.dtype is not torch.bool for mask in parts[0].values()):
            raise ValueError(f"{os.fspath(path)} holds no ticket: two dicts, of bool masks and of tensors")
        return cls(*parts)


def find_ticket(
    model: nn.Module,
    initial_state: Mapping[str, Tensor],
    density: float,
    score: str | Score = "magnitude",
    **how: Any,
) -> Ticket:
    """Prunes a trained model and pairs the masks with the weights it began with.

    Args:
        model: The trained network.
        initial_state: Its ``state_dict`` at initialisation; copied.
        density: The share of prunable weights that is kept.
        score: See ``find_masks``. (default: "magnitude", the paper's)
        how: Passed on to ``find_masks``.

    Raises:
        ValueError: As ``find_masks``, or the state lacks a pruned weight.
    """
    masks = find_masks(model, score, density, **how)
    missing = sorted(set(masks) - set(initial_state))
    if missing:
        raise ValueError(f"initial_state lacks {missing}: it is not of this model")
    for name, mask in masks.items():
        if initial_state[name].shape != mask.shape:
            given, own = list(initial_state[name].shape), list(mask.shape)
            raise ValueError(f"initial_state[{name!r}] has shape {given}, the model's {own}")
    return Ticket(masks, {name: tensor.detach().clone() for name, tensor in initial_state.items()})
