"""Grokfast on molecules with a graph network (arXiv:2405.20233): weight decay and filter apart."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import mse_loss

from grokfused.lab.data import molecules
from grokfused.lab.papers.cells import four, thinned
from grokfused.lab.papers.frame import Experiment, Run, Size
from grokfused.lab.papers.networks import GraphNetwork
from grokfused.lab.papers.training import Batches, Training, curve
from grokfused.lab.papers.watch import Watch


@dataclass(frozen=True)
class Setting:
    """What all runs share; ``scale`` multiplies the weights at the beginning."""

    count: int = 100
    train: int = 50
    width: int = 32
    scale: float = 2.0
    batch: int = 32
    every: int = 25
    steps: int = 1_500


ROWS = four(0.0, 0.01, alpha=0.9, lamb=1.0, lr=1e-3)


def run(name: str, seed: int, setting: Setting, watch: Watch) -> Run:
    """Trains the graph network; returns the smallest error held out."""
    torch.manual_seed(seed)
    atoms, bonds, solubility = (part.to(watch.device) for part in molecules(setting.count))
    wanted = (solubility - solubility.mean()) / solubility.std()
    model = GraphNetwork(atoms.shape[2], setting.width, setting.scale).to(watch.device)
    held = slice(setting.train, None)

    @torch.no_grad()
    def measure() -> Run:
        fits = mse_loss(model(atoms[: setting.train], bonds[: setting.train]), wanted[: setting.train])
        return {"error": mse_loss(model(atoms[held], bonds[held]), wanted[held]).item(), "fit": fits.item()}

    training = Training(
        model,
        ROWS[name].optimizer(model),
        Batches(setting.train, setting.batch, seed, watch.device),
        lambda rows: mse_loss(model(atoms[rows], bonds[rows]), wanted[rows]),
    )
    points = curve(training, watch, setting.steps, setting.every, measure)
    best = min(points, key=lambda point: point["error"])
    last = points[-1]
    return {
        "best": best["error"],
        "at": best["step"],
        "last": last["error"],
        "fit": last["fit"],
        "points": thinned(points),
    }


USUAL = Size(Setting(), tuple(ROWS), (0, 1, 2, 3, 4))
EXPERIMENT = Experiment(
    rows=ROWS,
    run=run,
    sizes={
        "quick": Size(Setting(width=8, steps=400, every=20), tuple(ROWS), (0,)),
        "usual": USUAL,
        "full": USUAL._replace(setting=Setting(steps=100_000), seeds=tuple(range(10))),
    },
    needs=molecules,
)
