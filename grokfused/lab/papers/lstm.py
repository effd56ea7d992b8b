"""Grokfast on reviews with an LSTM (arXiv:2405.20233): weight decay and filter apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from grokfused.lab.data import reviews
from grokfused.lab.papers.cells import four, thinned
from grokfused.lab.papers.frame import Experiment, Run, Size
from grokfused.lab.papers.networks import Reader
from grokfused.lab.papers.training import Batches, Training, curve
from grokfused.lab.papers.watch import Watch


@dataclass(frozen=True)
class Setting:
    """What all runs share; ``scale`` multiplies the weights at the beginning."""

    count: int = 3_000
    train: int = 2_000
    length: int = 30
    embedding: int = 32
    hidden: int = 48
    scale: float = 3.0
    batch: int = 50
    clip: float = 5.0
    every: int = 20
    steps: int = 500


# The learning rate is ten times the paper's and the decays a tenth: the same decay in a step.
ROWS = four(0.1, 1.0, alpha=0.98, lamb=2.0, lr=3e-3)


def run(name: str, seed: int, setting: Setting, watch: Watch) -> Run:
    """Trains the reader; returns the best accuracy and the smallest loss held out."""
    torch.manual_seed(seed)
    model = Reader(setting.embedding, setting.hidden, setting.scale).to(watch.device)
    tokens, praise = (part.to(watch.device) for part in reviews(setting.count, length=setting.length))
    wanted, held = praise.float(), slice(setting.train, None)

    @torch.no_grad()
    def measure() -> Run:
        logits = model(tokens[held])
        right = ((logits > 0) == praise[held].bool()).double().mean().item()
        return {"accuracy": right, "loss": bce(logits, wanted[held]).item()}

    training = Training(
        model,
        ROWS[name].optimizer(model, max_grad_norm=setting.clip),
        Batches(setting.train, setting.batch, seed, watch.device),
        lambda rows: bce(model(tokens[rows]), wanted[rows]),
    )
    points = curve(training, watch, setting.steps, setting.every, measure)
    return {
        "best": max(point["accuracy"] for point in points),
        "loss": min(point["loss"] for point in points),
        "last": points[-1]["accuracy"],
        "points": thinned(points),
    }


USUAL = Size(Setting(), tuple(ROWS), (0, 1, 2, 3, 4))
EXPERIMENT = Experiment(
    rows=ROWS,
    run=run,
    sizes={
        "quick": Size(Setting(count=400, train=300, length=20, hidden=16, steps=60), tuple(ROWS), (0,)),
        "usual": USUAL,
        "full": USUAL._replace(
            setting=Setting(hidden=256, embedding=64, steps=10_000), seeds=tuple(range(10))
        ),
    },
    needs=reviews,
)
