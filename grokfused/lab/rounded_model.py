"""A small byte-level language model whose parameters and states are stored as a row says.

Forward and backward pass are computed in float32 from the widened parameters, so that rows differ in nothing
but how parameters (and gradients, to the same bits) are stored.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from grokfused import GrokAdamW
from grokfused.lab.data import BYTES, Batch, Text, windows
from grokfused.lab.model import Decoder
from grokfused.lab.state_bytes import states_bytes

LOSS_SCALE = 1024.0  # a power of two: it changes nothing but which float16 gradients underflow


@dataclass(frozen=True)
class Setting:
    """What all runs share; ``lr`` falls to 0 on a cosine, ``held_out`` is a share of the text."""

    dim: int = 64
    layers: int = 2
    context: int = 16
    batch: int = 128
    steps: int = 1_000
    lr: float = 1e-3
    weight_decay: float = 0.01
    held_out: float = 0.1
    questions: int = 8_192  # windows of the text held out


FULL = Setting()


QUICK = Setting(dim=16, layers=1, context=8, batch=64, steps=120, questions=1_024)


class Row(NamedTuple):
    """How a run stores its parameters and its optimizer's states."""

    param_dtype: torch.dtype
    param_rounding: str = "nearest"
    state_dtype: torch.dtype | str = torch.float32

    def options(self) -> dict[str, str]:
        """Returns it as plain values."""
        return {name: str(value).removeprefix("torch.") for name, value in self._asdict().items()}

    @property
    def what(self) -> str:
        """What tables call it."""
        param, rounding, state = self.options().values()
        rounded = "" if self.param_dtype is torch.float32 else f", {rounding}"
        states = {"float32": "", "block8": ", 8-bit states"}.get(state, f", {state} states")
        return f"{param}{rounded}{states}"

    @property
    def held_bytes(self) -> float:
        """Bytes that parameter and states take, per parameter."""
        arrays = 2 if self.param_rounding == "kahan" else 1
        return arrays * self.param_dtype.itemsize + states_bytes(self.state_dtype, 2)

    @property
    def moved_bytes(self) -> float:
        """Bytes that a step moves, per parameter: all that is held, both ways, and the gradient."""
        return 2 * self.held_bytes + self.param_dtype.itemsize


class Model:
    """One model in training.

    Args:
        row: How its parameters are stored.
        seed: Decides the first weights and the batches: the same in every row.
        setting: What to train, and for how long.
        text: What it learns.
        device: Where. (default: "cpu")
    """

    def __init__(self, row: Row, seed: int, setting: Setting, text: Text, device: str = "cpu") -> None:
        self.setting, self.text, self.device = setting, text, device
        torch.manual_seed(seed)
        self.model = Decoder(BYTES, setting.dim, setting.layers, length=setting.context).to(device)
        self.random = torch.Generator().manual_seed(seed)
        self.stored = [
            param.detach().to(row.param_dtype).requires_grad_() for param in self.model.parameters()
        ]
        self.optimizer = GrokAdamW(
            self.stored,
            lr=setting.lr,
            weight_decay=setting.weight_decay,
            grad_filter="none",
            param_rounding=row.param_rounding,
            state_dtype=row.state_dtype,
            seed=seed,
        )
        self.optimizer.grad_scale = torch.tensor(LOSS_SCALE, device=device)
        self.optimizer.found_inf = torch.tensor(0.0, device=device)

    @torch.no_grad()
    def widen(self) -> None:
        """Gives the model the stored parameters, as float32."""
        for param, stored in zip(self.model.parameters(), self.stored, strict=True):
            param.copy_(stored)

    def windows(self, text: Tensor, count: int, random: torch.Generator) -> Batch:
        """Returns random windows of a text and the bytes that follow them."""
        questions, answers = windows(text, count, self.setting.context, random)
        return questions.to(self.device), answers.to(self.device)

    def losses(self) -> Iterator[float]:
        """Trains to the end, and yields the loss of each batch."""
        setting = self.setting
        for step in range(setting.steps):
            self.optimizer.param_groups[0]["lr"] = (
                setting.lr * (1 + math.cos(math.pi * step / setting.steps)) / 2
            )
            self.widen()
            questions, answers = self.windows(self.text.train, setting.batch, self.random)
            self.model.zero_grad()
            loss = cross_entropy(self.model(questions), answers)
            (loss * LOSS_SCALE).backward()
            for param, stored in zip(self.model.parameters(), self.stored, strict=True):
                assert param.grad is not None
                stored.grad = param.grad.to(stored.dtype)
            self.optimizer.step()
            yield loss.item()

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Returns the mean loss of the stored parameters on the text held out, in nats per byte."""
        self.widen()
        random = torch.Generator().manual_seed(0)  # the same questions for all
        asked = self.windows(self.text.held_out, self.setting.questions, random)
        losses = [
            cross_entropy(self.model(questions), answers, reduction="sum")
            for questions, answers in zip(*(part.split(1024) for part in asked), strict=True)
        ]
        return float(torch.stack(losses).sum()) / self.setting.questions
