"""What the roundings of 16-bit parameters cost and give (arXiv:2010.06192), in a small language model.

The text ships with Python: the language reference that ``help()`` shows. Forward and backward pass are
computed in float32 from the widened parameters, so that runs differ in nothing but how parameters (and
gradients, to the same bits) are stored.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy

from grokfused import GrokAdamW
from grokfused.lab.data import BYTES, Text, text_of, windows
from grokfused.lab.model import Decoder
from grokfused.lab.papers.cells import mean_of
from grokfused.lab.papers.frame import Paper, Record, Run, Size, Verdict, Watch
from grokfused.lab.papers.pages import paired
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


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
KINDS = (
    Row(F32),
    *(Row(dtype, rounding) for dtype in (BF16, F16) for rounding in ("nearest", "stochastic", "kahan")),
    Row(BF16, "stochastic", BF16),
    Row(BF16, "kahan", BF16),
    Row(F32, state_dtype="block8"),
    Row(BF16, "stochastic", "block8"),
    Row(BF16, "kahan", "block8"),
)
ROWS = {row.what: row for row in KINDS}


class Model:
    """One model in training.

    Args:
        row: How its parameters are stored.
        seed: Decides the first weights and the batches: the same in every row.
        setting: What to train, and for how long.
        text: What it learns.
    """

    def __init__(self, row: Row, seed: int, setting: Setting, text: Text) -> None:
        self.setting, self.text = setting, text
        torch.manual_seed(seed)
        self.model = Decoder(BYTES, setting.dim, setting.layers, length=setting.context)
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
        self.optimizer.grad_scale = torch.tensor(LOSS_SCALE)
        self.optimizer.found_inf = torch.tensor(0.0)

    @torch.no_grad()
    def widen(self) -> None:
        """Gives the model the stored parameters, as float32."""
        for param, stored in zip(self.model.parameters(), self.stored, strict=True):
            param.copy_(stored)

    def losses(self) -> Iterator[float]:
        """Trains to the end, and yields the loss of each batch."""
        setting = self.setting
        for step in range(setting.steps):
            self.optimizer.param_groups[0]["lr"] = (
                setting.lr * (1 + math.cos(math.pi * step / setting.steps)) / 2
            )
            self.widen()
            questions, answers = windows(self.text.train, setting.batch, setting.context, self.random)
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
        asked = windows(self.text.held_out, self.setting.questions, self.setting.context, random)
        losses = [
            cross_entropy(self.model(questions), answers, reduction="sum")
            for questions, answers in zip(*(part.split(1024) for part in asked), strict=True)
        ]
        return float(torch.stack(losses).sum()) / self.setting.questions


def run(name: str, seed: int, setting: Setting, watch: Watch) -> Run:
    """Trains the model; returns its loss on the text held out."""
    model = Model(ROWS[name], seed, setting, text_of(setting.held_out))
    for step, loss in enumerate(model.losses(), 1):
        if step % 50 == 0:
            watch.show(step / setting.steps, f"step {step:,}, loss {loss:.3f}")
            watch.save("", dict)  # Ctrl-C ends it; it begins anew, being half a minute
    return {"loss": model.held_out_loss()}


def above(record: Record, row: str) -> list[float]:
    """Returns by how much the row's loss is above that of float32, seed by seed."""
    return paired(record, row, "float32", "loss")


def cells(record: Record) -> list[list[str]]:
    """Returns the table, row by row; bytes are per parameter."""
    found = []
    for name, row in ROWS.items():
        more = above(record, name)
        ends = [f"{statistics.mean(more):+.4f}", f"{min(more):+.4f} to {max(more):+.4f}"]
        bytes_ = [f"{size:.4g}" for size in (row.held_bytes, row.moved_bytes)]
        mean = f"{mean_of(record, name, 'loss'):.4f}"
        found.append([name, *bytes_, mean, *(ends if name != "float32" else ["", ""])])
    return found


def verdict(record: Record) -> Verdict:
    """Returns what the figures say, and what they do not."""
    nearest, stochastic, kahan = (above(record, f"bfloat16, {how}") for how in ROUNDINGS)
    lost, left = statistics.mean(nearest), [statistics.mean(more) for more in (stochastic, kahan)]
    kept = all(abs(value) < 0.05 * lost for value in left) and min(nearest) > 0
    ranges = {name: above(record, name) for name in list(ROWS)[1:]}
    equal = [name for name, more in ranges.items() if min(more) <= 0 <= max(more)]
    reading = [
        f"bfloat16 rounded to nearest ends {lost:+.4f} nats per byte from float32, mean of the seeds; "
        f"rounded stochastically {left[0]:+.4f}, with Kahan's compensation {left[1]:+.4f}.",
        f"Seeds disagree on which side of float32 these end: {'; '.join(equal) or 'none'}.",
        "What nearest loses depends on how small steps are beside parameters. This is one small model, one "
        "lr and few seeds: an order, no interval, and no statement about large models.",
    ]
    holds = "yes" if kept else "no" if lost <= 0 else "in part"
    return Verdict(holds, f"{lost:+.3f} nats nearest, {left[0]:+.3f} stochastic", reading)


def draw(record: Record, figure: Figure) -> None:
    """Draws each row's loss above float32, seed by seed, over the bytes that it holds."""
    axes = figure.add_subplot()
    for number, (name, row) in enumerate(list(ROWS.items())[1:]):
        more = above(record, name)
        axes.plot([row.held_bytes] * len(more), more, "o^"[number % 2], markersize=5, label=name)
    axes.axhline(0, color="0.7", linewidth=0.8)
    axes.set(xlabel="bytes held per parameter", ylabel="loss above float32, nats per byte")
    axes.set_yscale("symlog", linthresh=1e-3)
    axes.legend(frameon=False, fontsize=7)


ROUNDINGS = ("nearest", "stochastic", "kahan")
COLUMNS = ("parameters", "bytes held", "bytes moved", "held-out loss", "above float32", "range")
PAPER = Paper(
    name="rounding",
    rows=ROWS,
    run=run,
    sizes={
        "quick": Size(QUICK, tuple(ROWS), (0,)),
        "usual": Size(FULL, tuple(ROWS)),
        "full": Size(FULL, tuple(ROWS), tuple(range(10))),
    },
    columns=COLUMNS,
    cells=cells,
    verdict=verdict,
    draw=draw,
)
