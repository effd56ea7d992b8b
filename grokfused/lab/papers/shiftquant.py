"""ShiftQuant (arXiv:2411.10948): power-of-two scales of groups, on recorded gradients and in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from grokfused import GrokAdamW
from grokfused.lab.data import BYTES, digits, digits_on, text_of, windows
from grokfused.lab.model import Decoder
from grokfused.lab.papers.frame import Experiment, Run, Size
from grokfused.lab.papers.networks import Convolutions
from grokfused.lab.papers.training import Batches, Training, accuracy, curve, falling
from grokfused.lab.papers.watch import Watch
from grokfused.lab.quantise import SCALES, quantised


@dataclass(frozen=True)
class Setting:
    """What all runs share; ``recorded_at`` are steps, ``bits`` those of the comparison of errors."""

    train: int = 2_000
    held_out: int = 2_000
    channels: int = 12
    steps: int = 300
    batch: int = 50
    lr: float = 4e-3
    recorded_at: tuple[int, ...] = (10, 50, 100)
    bits: tuple[int, ...] = (2, 3, 4, 5, 6, 7, 8)


class Row(NamedTuple):
    """A training: of the convolutions with so many bits, or one whose gradients and states are recorded."""

    what: str
    recorded: str = ""
    bits: int = 0
    scales: str = "shifts"
    l1: bool = True


ROWS = {
    "images": Row("recorded: convolutions on digits", recorded="images"),
    "text": Row("recorded: Transformer on text", recorded="text"),
    "float-l2": Row("float32, L2 normalisation", l1=False),
    "float": Row("float32, L1 normalisation"),
    "6": Row("6 bits, L1, shifts", bits=6),
    "4": Row("4 bits, L1, shifts", bits=4),
    "4-l2": Row("4 bits, L2, shifts", bits=4, l1=False),
    "4-tensor": Row("4 bits, L1, per tensor", bits=4, scales="per tensor"),
}


def training_on_images(row: Row, seed: int, setting: Setting, device: str) -> Training:
    """Returns the convolutions, ready to be trained on digits."""
    torch.manual_seed(seed)
    images, shown, _, _ = digits_on(device, setting.train, setting.held_out)
    model = Convolutions(setting.channels, row.bits, SCALES[row.scales], row.l1).to(device)
    batches = Batches(setting.train, setting.batch, seed, device)
    optimizer = GrokAdamW(model.parameters(), setting.lr, grad_filter="none")

    def loss(rows: Tensor) -> Tensor:
        return cross_entropy(model(images[rows]), shown[rows])

    return Training(model, optimizer, batches, loss, falling(setting.steps))


def training_on_text(seed: int, setting: Setting, device: str) -> Training:
    """Returns a small decoder, ready to be trained on the bytes of Python's language reference."""
    torch.manual_seed(seed)
    model = Decoder(BYTES, 32, layers=1, length=16).to(device)
    asked, follows = (
        part.to(device)
        for part in windows(text_of(0.1).train, 8_192, 16, torch.Generator().manual_seed(seed))
    )
    optimizer = GrokAdamW(model.parameters(), setting.lr, grad_filter="none")
    batches = Batches(len(follows), setting.batch, seed, device)
    return Training(model, optimizer, batches, lambda rows: cross_entropy(model(asked[rows]), follows[rows]))


def errors(tensors: list[Tensor], setting: Setting) -> dict[str, list[float]]:
    """Returns of each kind of scale the relative error (RMS, all tensors together) over the bits."""
    total = sum(float(tensor.square().sum()) for tensor in tensors)
    found: dict[str, list[float]] = {}
    for name, scales in SCALES.items():
        for bits in setting.bits:
            # Channels are the inputs of a layer, over which its products add up.
            wrong = [(quantised(tensor, bits, scales, dim=1) - tensor).square().sum() for tensor in tensors]
            found.setdefault(name, []).append(float(sum(wrong) / total) ** 0.5)
    return found


def run(name: str, seed: int, setting: Setting, watch: Watch) -> Run:
    """Trains; returns the accuracy, or the errors on what was recorded."""
    row = ROWS[name]
    if not row.recorded:
        _, _, held, truth = digits_on(watch.device, setting.train, setting.held_out)
        training = training_on_images(row, seed, setting, watch.device)
        measure = lambda: {"accuracy": accuracy(training.model, held, truth)}  # noqa: E731
        return {
            "accuracy": curve(training, watch, setting.steps, setting.steps // 3, measure)[-1]["accuracy"]
        }
    if row.recorded == "images":
        training = training_on_images(row, seed, setting, watch.device)
    else:
        training = training_on_text(seed, setting, watch.device)
    weights = [param for param in training.model.parameters() if param.dim() > 1]
    grads: list[Tensor] = []
    states: list[Tensor] = []
    for step in range(1, max(setting.recorded_at) + 1):
        training.step()
        if step in setting.recorded_at:
            grads += [weight.grad.clone() for weight in weights if weight.grad is not None]
            states += [training.optimizer.state[weight]["exp_avg"].clone() for weight in weights]
    return {"gradients": errors(grads, setting), "exp_avg": errors(states, setting)}


QUICK = Setting(train=500, held_out=1_000, channels=6, steps=90, recorded_at=(10, 40))
EXPERIMENT = Experiment(
    rows=ROWS,
    run=run,
    sizes={
        "quick": Size(QUICK, tuple(ROWS), (0,)),
        "usual": Size(Setting(), tuple(ROWS)),
        "full": Size(Setting(steps=1_500), tuple(ROWS), tuple(range(10))),
    },
    needs=digits,
)
