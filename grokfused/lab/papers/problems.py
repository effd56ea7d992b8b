"""Networks that grok and their tasks, as the tickets' runs need them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, one_hot

from grokfused.lab.addition import MLP, loss_of, modular_addition
from grokfused.lab.data import digits_on
from grokfused.lab.model import Decoder
from grokfused.lab.papers.frame import Run
from grokfused.lab.papers.training import accuracy
from grokfused.lab.perceptron import perceptron
from grokfused.pruning import find_masks, jaccard_distance

State = dict[str, Tensor]


class Net(NamedTuple):
    """A network and its task; ``dense`` is how long the dense one trains, ``budget`` the others at most.

    ``memorised`` is the step of the ticket that is taken too early.
    """

    modulus: int
    train_share: float
    width: int
    lr: float
    weight_decay: float
    dense: int
    memorised: int
    budget: int
    every: int = 20
    threshold: float = 0.95
    batch: int = 0


MLP_67 = Net(67, 0.4, 500, 1e-3, 1.0, 40_000, 2_000, 15_000)
MLP_31 = Net(31, 0.7, 128, 3e-3, 1.0, 4_000, 200, 4_000)
TRANSFORMER = Net(31, 0.7, 64, 1e-3, 1.0, 4_000, 200, 4_000)
DIGITS = Net(0, 0.0, 200, 1e-3, 2.0, 3_000, 150, 3_000, 50, 0.85, 200)


@dataclass
class Problem:
    """A model at its beginning, the loss of some rows of its data, and its accuracies."""

    model: nn.Module
    count: int
    loss: Callable[[Tensor], Tensor]
    measure: Callable[[], Run]
    batches: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # for scores


def problem_of(name: str, net: Net, seed: int, device: str) -> Problem:
    """Returns what a network learns, both drawn from the seed."""
    random = torch.Generator().manual_seed(seed)
    if name == "mnist":
        torch.manual_seed(seed)
        train, shown, held, truth = digits_on(device, 1_000, 4_000)
        model: nn.Module = perceptron((784, net.width, net.width, 10), scale=8.0).to(device)
        wanted = one_hot(shown, 10).float()

        def error(rows: Tensor) -> Tensor:
            return mse_loss(model(train[rows]), wanted[rows])

        return Problem(model, len(shown), error, _accuracies(model, (train, shown), (held, truth)))
    task = modular_addition(random, net.modulus, net.train_share)
    pairs = {"train": task.train, "test": task.test}
    if name == "transformer":
        torch.manual_seed(seed)
        model = Decoder(net.modulus + 1, net.width, layers=1, length=3).to(device)
        asked = {key: nn.functional.pad(each, (0, 1), value=net.modulus) for key, each in pairs.items()}
    else:
        model = MLP(net.modulus, random, net.width, 48).to(device)
        asked = {key: one_hot(each, net.modulus).sum(1).float() for key, each in pairs.items()}
    known = asked["train"].to(device), task.train_sums.to(device)
    new = asked["test"].to(device), task.test_sums.to(device)

    def loss(rows: Tensor) -> Tensor:
        return loss_of(model(known[0]), known[1])

    return Problem(model, len(known[1]), loss, _accuracies(model, known, new), [known])


def _accuracies(
    model: nn.Module, train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]
) -> Callable[[], Run]:
    return lambda: {"test": accuracy(model, *test), "train": accuracy(model, *train)}


def moved(model: nn.Module, weights: dict[int, State], density: float) -> list[tuple[int, float]]:
    """Returns (step, Jaccard distance) of the largest weights at each step and at the one before it."""
    found, before = [], None
    for step, state in weights.items():
        model.load_state_dict(state)
        masks = find_masks(model, "magnitude", density)
        if before is not None:
            found.append((step, jaccard_distance(before, masks)))
        before = masks
    return found
