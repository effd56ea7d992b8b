"""The experiment: trains the decoder on the task, and can be stopped and resumed at any iteration."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR

from grokfused import GrokAdam, GrokAdamW
from grokfused.lab.graph import Graphed
from grokfused.lab.model import Decoder
from grokfused.lab.task import modular_multiplication

# The paper's: its baseline has no decay; and the field's usual AdamW. Those of ours go by the filter.
WEIGHT_DECAY = {"adam": 0.0, "adamw": 1.0}
WARM_UP = 10  # iterations; the first one has step length 0


class Filter(NamedTuple):
    """What the paper's run with a filter has, and which of our options that filter goes by."""

    weight_decay: float
    lamb: float
    options: tuple[str, ...]


FILTERS = {
    "ema": Filter(0.005, 2.0, ("alpha", "lamb")),
    "mean": Filter(0.01, 5.0, ("grad_filter", "window_size", "lamb")),
    "none": Filter(0.005, 0.0, ("grad_filter",)),
}
# Options that torch's optimizers do not have, and our filters not all.
OURS_ONLY = ("grad_filter", "alpha", "lamb", "window_size", "backend")


class OptionChanged(ValueError):
    """A run cannot be resumed with other options than it was made with; the message says which."""


@dataclass(frozen=True)
class Config:
    """Everything that decides a run, bit for bit; defaults are the paper's (SEED 0 of its code).

    ``lr`` is in parameter units per step; the filter and what it goes by matter to the Grok optimizers only.
    """

    optimizer: str = "grokadam"
    weight_decay: float = 0.005
    lr: float = 1e-3
    alpha: float = 0.98
    lamb: float = 2.0
    seed: int = 0
    device: str = "cpu"
    backend: str = "auto"
    modulus: int = 97
    batch_size: int = 512
    graph: bool = False  # the whole training step as one CUDA graph
    grad_filter: str = "ema"
    window_size: int = 100  # of the filter "mean"

    @property
    def ours(self) -> bool:
        """Whether the optimizer is one of this package."""
        return self.optimizer.startswith("grok")

    def options(self) -> dict[str, Any]:
        """Returns by name what decides this run: without a filter's options where there is no filter."""
        own = (*FILTERS[self.grad_filter].options, "backend") if self.ours else ()
        return {k: value for k, value in asdict(self).items() if k not in OURS_ONLY or k in own}

    def name(self) -> str:
        """Returns a directory name that tells runs apart."""
        shown = {
            "ema": f"-alpha{self.alpha:g}-lamb{self.lamb:g}",
            "mean": f"-mean{self.window_size}-lamb{self.lamb:g}",
            "none": "-nofilter",
        }
        filtered = shown[self.grad_filter] if self.ours else ""
        return f"{self.optimizer}-lr{self.lr:g}-wd{self.weight_decay:g}{filtered}-seed{self.seed}"


@dataclass(frozen=True)
class Evaluation:
    """One line of the metrics.

    ``loss`` and ``train_accuracy`` are taken while the last epoch trains, batch by batch. Accuracies are
    shares in [0, 1]; ``seconds`` count training and evaluation.
    """

    iteration: int
    loss: float
    train_accuracy: float
    validation_accuracy: float
    seconds: float


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Returns the optimizer that the config names, on the model's parameters."""
    parameters = model.parameters()
    shared: dict[str, Any] = {"lr": config.lr, "betas": (0.9, 0.98), "weight_decay": config.weight_decay}
    if config.graph:  # the schedule then writes where the captured step reads, as exactly as a float
        shared |= {"lr": torch.tensor(config.lr, dtype=torch.float64, device=config.device)}
        shared |= {"capturable": True}
    if not config.ours:
        kind = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
        return kind(parameters, **shared)
    ours = GrokAdam if config.optimizer == "grokadam" else GrokAdamW
    shared |= {"grad_filter": config.grad_filter if config.lamb else "none", "backend": config.backend}
    shared |= {"window_size": config.window_size}
    return ours(parameters, alpha=config.alpha, lamb=config.lamb, **shared)


class Experiment:
    """The state of one run: model, optimizer, warm-up, and the place in the shuffled epoch.

    Args:
        config: What to run.
        every: Epochs between two evaluations. (default: 2)
    """

    def __init__(self, config: Config, every: int = 2) -> None:
        self.config = config
        self.every = every
        torch.manual_seed(config.seed)
        self.model = Decoder(config.modulus + 2).to(config.device)
        # The authors draw the split from the same stream of random numbers, after the weights.
        self.random = torch.Generator()
        self.random.set_state(torch.get_rng_state())
        self.task = modular_multiplication(self.random, config.modulus, config.device)
        self.order = torch.arange(len(self.task.train))  # of the equations, in the last epoch
        self.optimizer = make_optimizer(config, self.model)
        # Its first steps, which prepare the capture, are not captured; torch would advise against them.
        self.optimizer._warned_capturable_if_run_uncaptured = config.graph
        self.step = Graphed(self.train_rows) if config.graph else self.train_rows
        self.schedule = LambdaLR(self.optimizer, lambda update: min(1.0, update / WARM_UP))
        self.iteration = 0
        self.seconds = 0.0

    def train_rows(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Takes one step on the training equations ``rows``; returns loss [] and correct answers []."""
        answers = self.task.train_answers[rows]
        logits = self.model(self.task.train[rows])
        loss = cross_entropy(logits, answers)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach(), (logits.argmax(1) == answers).sum()

    def train_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Takes one step and moves the warm-up on; returns what ``train_rows`` does."""
        results = self.step(rows)
        self.schedule.step()
        return results

    def run_epoch(self) -> tuple[float, float]:
        """Trains on each equation once; returns the mean loss of the batches and the train accuracy.

        As in the authors' code, an epoch shuffles what the last one has left: so the batches are theirs.
        """
        count = len(self.task.train)
        self.order = self.order[torch.randperm(count, generator=self.random)]
        order = self.order.to(self.config.device)
        results = [self.train_batch(rows) for rows in order.split(self.config.batch_size)]
        losses, correct = (torch.stack(column) for column in zip(*results, strict=True))
        self.iteration += len(results)
        return losses.mean().item(), correct.sum().item() / count

    @torch.no_grad()
    def validation_accuracy(self) -> float:
        """Returns the share of validation equations answered correctly."""
        answers = self.model(self.task.validation).argmax(1)
        return float((answers == self.task.validation_answers).float().mean())

    def evaluations(self, budget: int, stop_at: float = 0.95) -> Iterator[Evaluation]:
        """Trains, and yields an evaluation every few epochs.

        Args:
            budget: The first evaluation at or after so many iterations is the last.
            stop_at: The validation accuracy that ends the run. (default: 0.95)
        """
        accuracy = 0.0
        while self.iteration < budget and accuracy < stop_at:
            begin = time.perf_counter()
            for _ in range(self.every):
                loss, train_accuracy = self.run_epoch()
            accuracy = self.validation_accuracy()
            self.seconds += time.perf_counter() - begin
            yield Evaluation(self.iteration, loss, train_accuracy, accuracy, self.seconds)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a continued run depends on, as tensors and plain values."""
        return {
            "config": self.config.options(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": {
                key: value for key, value in self.schedule.state_dict().items() if key != "lr_lambdas"
            },
            "random": self.random.get_state(),
            "order": self.order,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where ``state_dict`` was taken.

        Raises:
            OptionChanged: The state belongs to a run with other options; the message names the first.
        """
        saved = state["config"]
        for name, value in self.config.options().items():
            made_with = saved.get(name, getattr(Config, name))
            if value != made_with:
                raise OptionChanged(
                    f"cannot resume: {name} is {value!r}, the run was made with {made_with!r}"
                )
        if "order" not in state:
            raise OptionChanged("cannot resume: the run was made by a version that shuffled otherwise")
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.config.graph:  # a checkpoint is loaded on the CPU, the captured step reads on the device
            for group in self.optimizer.param_groups:
                group["lr"] = group["lr"].to(self.config.device)
        self.schedule.load_state_dict({"lr_lambdas": [None], **state["schedule"]})
        self.random.set_state(state["random"])
        self.order = state["order"]
