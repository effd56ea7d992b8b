"""Grokking tickets (arXiv:2310.19470): the rows of the experiment, and one training run of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from grokfused import GrokAdamW
from grokfused.lab.addition import MLP, accuracy, loss_of, modular_addition
from grokfused.lab.training import Evaluation
from grokfused.pruning import Ticket, find_masks, find_ticket

State = dict[str, Tensor]


@dataclass(frozen=True)
class Setting:
    """What all runs of an experiment share; the defaults are the paper's, but for ``dense_epochs`` (30,000).

    ``density`` is the share of weights a ticket keeps, ``memorised_at`` the epoch of the ticket that is taken
    too early, ``budget`` the epochs that every run but the dense one gets at most.
    """

    modulus: int = 67
    train_share: float = 0.4
    width: int = 500
    hidden: int = 48
    density: float = 0.4
    lr: float = 1e-3
    weight_decay: float = 1.0
    lamb: float = 0.0
    dense_epochs: int = 40_000
    memorised_at: int = 2_000
    budget: int = 15_000
    every: int = 20


PAPER = Setting()
# Groks in seconds: fewer numbers, more of them for training.
QUICK = Setting(modulus=31, train_share=0.6, width=256, dense_epochs=13_500, memorised_at=1_000, budget=4_000)
THRESHOLD = 0.95


class Row(NamedTuple):
    """How a run differs from the dense one: its masks, its norm at the beginning, its decay."""

    what: str
    masks: str | None = (
        None  # "generalised" or "memorised" weights pruned by magnitude, or a score at the beginning
    )
    norm: int | None = None  # dense, but with the ticket's L1 or L2 norm
    decayed: bool = True


ROWS = {
    "dense": Row("the dense network"),
    "ticket": Row("ticket: largest weights after generalisation", masks="generalised"),
    "dense-l2": Row("dense, with the ticket's L2 norm", norm=2),
    "dense-l1": Row("dense, with the ticket's L1 norm", norm=1),
    "random": Row("random masks", masks="random"),
    "snip": Row("SNIP at initialisation", masks="snip"),
    "grasp": Row("GraSP at initialisation", masks="grasp"),
    "synflow": Row("SynFlow at initialisation, 100 rounds", masks="synflow"),
    "memorised": Row("ticket: largest weights when only memorised", masks="memorised"),
    "ticket-no-decay": Row("ticket, weight decay 0", masks="generalised", decayed=False),
    "dense-no-decay": Row("dense, weight decay 0", decayed=False),
}
QUICK_ROWS = ("dense", "ticket", "random", "memorised")


@dataclass(frozen=True)
class Config:
    """Everything that decides a run, bit for bit."""

    row: str
    seed: int
    setting: Setting = PAPER

    def options(self) -> dict[str, Any]:
        """Returns it as plain values."""
        return {"row": self.row, "seed": self.seed, **asdict(self.setting)}

    @property
    def budget(self) -> int:
        """Epochs at most."""
        return self.setting.dense_epochs if self.row == "dense" else self.setting.budget


class Run:
    """One network in training, full batch; can be stopped and resumed at any evaluation.

    Args:
        config: What to run.
        weights: Gives the dense run's weights after so many epochs; called only where a row needs them.
    """

    def __init__(self, config: Config, weights: Callable[[int], State]) -> None:
        setting = config.setting
        self.config = config
        random = torch.Generator().manual_seed(config.seed)
        task = modular_addition(random, setting.modulus, setting.train_share)
        self.model = MLP(setting.modulus, random, setting.width, setting.hidden)
        self.train, self.test = (
            (one_hot(pairs, setting.modulus).sum(1).float(), sums)
            for pairs, sums in ((task.train, task.train_sums), (task.test, task.test_sums))
        )
        masks = self._begin(ROWS[config.row], weights)
        self.optimizer = GrokAdamW(
            self.model.named_parameters(),
            lr=setting.lr,
            betas=(0.9, 0.98),
            weight_decay=setting.weight_decay if ROWS[config.row].decayed else 0.0,
            lamb=setting.lamb,
            grad_filter="ema" if setting.lamb else "none",
        )
        self.optimizer.set_masks(masks)
        self.iteration, self.seconds = 0, 0.0

    def _begin(self, row: Row, weights: Callable[[int], State]) -> State:
        """Puts the model where the row begins, and returns its masks."""
        setting = self.config.setting
        if row.norm is None and row.masks not in ("generalised", "memorised", None):
            how: dict[str, Any] = {"seed": self.config.seed} if row.masks == "random" else {}
            masks = find_masks(self.model, row.masks, setting.density, loss_of, [self.train], **how)
            Ticket(masks, self.model.state_dict()).rewind(self.model)
            return masks
        if row.norm is None and row.masks is None:
            return {}
        initial = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        epoch = setting.memorised_at if row.masks == "memorised" else setting.dense_epochs
        self.model.load_state_dict(weights(epoch))
        ticket = find_ticket(self.model, initial, setting.density)
        if row.norm is not None:
            ticket.rewind_dense(self.model, row.norm)
            return {}
        ticket.rewind(self.model)
        return ticket.masks

    def evaluations(self) -> Iterator[Evaluation]:
        """Trains, and yields an evaluation every few epochs, to the end of the run.

        The dense run goes on after it has generalised, for its ticket's sake; the others end there.
        """
        reached = False
        while self.iteration < self.config.budget and not (reached and self.config.row != "dense"):
            begin = time.perf_counter()
            for _ in range(self.config.setting.every):
                self.optimizer.zero_grad()
                loss = loss_of(self.model(self.train[0]), self.train[1])
                loss.backward()
                self.optimizer.step()
            self.iteration += self.config.setting.every
            train, test = accuracy(self.model, *self.train), accuracy(self.model, *self.test)
            reached = test >= THRESHOLD
            self.seconds += time.perf_counter() - begin
            yield Evaluation(self.iteration, loss.item(), train, test, self.seconds)

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a continued run depends on; the masks are in the optimizer's state."""
        return {
            "config": self.config.options(),
            "iteration": self.iteration,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues where ``state_dict`` was taken."""
        self.iteration, self.seconds = state["iteration"], state["seconds"]
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
