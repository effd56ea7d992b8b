"""The two tasks on which Grokfast is raced: x * y mod 97 for a Transformer, a + b mod 31 for a perceptron."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, one_hot

from grokfused.lab.addition import MLP, loss_of, modular_addition
from grokfused.lab.model import Decoder
from grokfused.lab.papers.cells import Row
from grokfused.lab.papers.frame import Run
from grokfused.lab.papers.training import Batches, Training, accuracy, curve, has_stayed
from grokfused.lab.papers.watch import Watch
from grokfused.lab.task import modular_multiplication
from grokfused.lab.training import WARM_UP


@dataclass(frozen=True)
class Setting:
    """What all runs share: the task, the network, and how long a run is."""

    modulus: int = 97
    dim: int = 128
    layers: int = 2
    batch: int = 512
    threshold: float = 0.95
    every: int = 20
    after: int = 100  # steps after the first crossing, to see whether it is stable
    steps: int = 1_600
    add_steps: int = 3_000
    add_trials: int = 30  # of each search
    multiply_trials: int = 40


# The second task, small enough for a search: a + b mod 31 of 70 % of the pairs, a perceptron, full batch.
ADD_MODULUS, ADD_SHARE, ADD_WIDTH, ADD_HIDDEN = 31, 0.7, 128, 48


def multiply(row: Row, seed: int, setting: Setting, watch: Watch, steps: int, part: str = "") -> list[Run]:
    """Trains the decoder with a row's optimizer; returns the curve of its validation accuracy."""
    torch.manual_seed(seed)
    model = Decoder(setting.modulus + 2, setting.dim, setting.layers).to(watch.device)
    task = modular_multiplication(torch.Generator().manual_seed(seed), setting.modulus, watch.device)
    training = Training(
        model,
        row.optimizer(model, beta2=0.98),
        Batches(len(task.train), setting.batch, seed, watch.device),
        lambda rows: cross_entropy(model(task.train[rows]), task.train_answers[rows]),
        lambda update: min(1.0, update / WARM_UP),
    )
    enough = has_stayed("validation", setting.threshold, setting.after if not part else 0)

    def measure() -> Run:
        return {"validation": accuracy(model, task.validation, task.validation_answers)}

    return curve(training, watch, steps, setting.every, measure, enough, part)


def add(row: Row, seed: int, setting: Setting, watch: Watch, steps: int, part: str = "") -> list[Run]:
    """Trains the perceptron; returns the curve of its test accuracy."""
    random = torch.Generator().manual_seed(seed)
    task = modular_addition(random, ADD_MODULUS, ADD_SHARE)
    model = MLP(ADD_MODULUS, random, ADD_WIDTH, ADD_HIDDEN).to(watch.device)
    train, test = (
        one_hot(part, ADD_MODULUS).sum(1).float().to(watch.device) for part in (task.train, task.test)
    )
    sums, wanted = task.train_sums.to(watch.device), task.test_sums.to(watch.device)
    optimizer = row.optimizer(model, beta2=0.98)
    training = Training(
        model, optimizer, Batches(len(sums), 0, seed, watch.device), lambda rows: loss_of(model(train), sums)
    )
    enough = has_stayed("validation", setting.threshold, setting.after if not part else 0)

    def measure() -> Run:
        return {"validation": accuracy(model, test, wanted)}

    return curve(training, watch, steps, setting.every, measure, enough, part)
