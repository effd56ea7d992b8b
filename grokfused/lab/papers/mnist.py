"""Grokfast on MNIST (arXiv:2405.20233): weight decay and filter apart, in four cells."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import mse_loss, one_hot

from grokfused.lab.data import digits, digits_on
from grokfused.lab.papers.cells import Row, four, thinned
from grokfused.lab.papers.frame import Experiment, Run, Size
from grokfused.lab.papers.training import Batches, Training, accuracy, crossings, curve, has_stayed
from grokfused.lab.papers.watch import Watch
from grokfused.lab.perceptron import perceptron


@dataclass(frozen=True)
class Setting:
    """What all runs share; ``scale`` multiplies the weights at the beginning (Omnigrok, arXiv:2210.01117)."""

    train: int = 1_000
    held_out: int = 4_000
    hidden: int = 200
    scale: float = 8.0
    batch: int = 200
    threshold: float = 0.8
    every: int = 100
    after: int = 500
    steps: int = 16_000


ROWS = four(0.01, 2.0, alpha=0.8, lamb=0.1, lr=1e-3)


# Mean age of a gradient in a step: 9 + 1/11 * 4 steps, as with EMA(0.8, 0.1) and beta1 0.9.
ROWS["high-beta1"] = Row("decay 2, no filter, beta1 0.9034", 2.0, beta1=0.9034)


ROWS["low-strong"] = Row("decay 0.01, EMA(0.98, 2)", 0.01, grad_filter="ema", steps=12_000)


def run(name: str, seed: int, setting: Setting, watch: Watch) -> Run:
    """Trains the perceptron with a row's optimizer."""
    images, shown, held, truth = digits_on(watch.device, setting.train, setting.held_out)
    torch.manual_seed(seed)
    widths = (784, setting.hidden, setting.hidden, 10)
    model = perceptron(widths, setting.scale).to(watch.device)
    wanted = one_hot(shown, 10).float()
    training = Training(
        model,
        ROWS[name].optimizer(model),
        Batches(setting.train, setting.batch, seed, watch.device),
        lambda rows: mse_loss(model(images[rows]), wanted[rows]),
    )
    steps = min(ROWS[name].steps or setting.steps, setting.steps)
    enough = has_stayed("accuracy", setting.threshold, setting.after)
    points = curve(
        training, watch, steps, setting.every, lambda: {"accuracy": accuracy(model, held, truth)}, enough
    )
    first, stable = crossings(points, "accuracy", setting.threshold)
    best = max(point["accuracy"] for point in points)
    return {"first": first, "stable": stable, "best": best, "points": thinned(points)}


QUICK = Setting(held_out=1_000, hidden=100, steps=2_000, threshold=0.6, after=0)
USUAL = Size(Setting(), ("high", "high-ema", "high-beta1", "low", "low-ema"))
EXPERIMENT = Experiment(
    rows=ROWS,
    run=run,
    sizes={
        "quick": Size(QUICK, ("low", "high", "high-ema"), (0,)),
        "usual": USUAL,
        "full": USUAL._replace(rows=tuple(ROWS), setting=Setting(steps=100_000), seeds=tuple(range(10))),
    },
    needs=digits,
)
