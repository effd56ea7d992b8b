"""Deep learning on a data diet (arXiv:2107.07075): train on what EL2N or GraNd found hard, or easy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from grokfused import GrokAdamW
from grokfused.lab.data import digits, digits_on, reviews
from grokfused.lab.measures import roc_area
from grokfused.lab.papers.frame import Experiment, Run, Size
from grokfused.lab.papers.training import Batches, Training, accuracy, falling
from grokfused.lab.papers.watch import Watch
from grokfused.scores import el2n, grand


@dataclass(frozen=True)
class Setting:
    """What all runs share; ``pruned`` are shares of the data, ``noisy`` that of labels drawn anew."""

    train: int = 2_000
    held_out: int = 2_000
    hidden: int = 100
    networks: int = 5  # whose scores are averaged
    early: int = 150  # steps before they score
    steps: int = 600
    batch: int = 50
    lr: float = 2e-3
    noisy: float = 0.1
    pruned: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 0.9)


class Row(NamedTuple):
    """Data, a score (of GraNd at the beginning where ``at_once``), and what of the data is kept."""

    what: str
    data: str
    score: str = "el2n"
    keep: str = "hardest"
    at_once: bool = False


DATA = ("digits", "reviews")
KINDS: dict[str, tuple[str, str, str, bool]] = {
    "el2n": ("EL2N early, hardest kept", "el2n", "hardest", False),
    "grand": ("GraNd early, hardest kept", "grand", "hardest", False),
    "grand-0": ("GraNd at the beginning, hardest kept", "grand", "hardest", True),
    "easiest": ("EL2N early, easiest kept", "el2n", "easiest", False),
    "random": ("random", "el2n", "random", False),
}
ROWS = {
    f"{data}-{kind}": Row(f"{data}: {what}", data, score, keep, at_once)
    for data in DATA
    for kind, (what, score, keep, at_once) in KINDS.items()
}


def load(data: str, setting: Setting, device: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns inputs [n, features] and classes to train on, and those held out."""
    if data == "digits":
        images, shown, held, truth = digits_on(device, setting.train, setting.held_out)
        return images.flatten(1), shown, held.flatten(1), truth
    count = setting.train + setting.held_out
    tokens, praise = (part.to(device) for part in reviews(count))
    present = one_hot(tokens, 1_000).amax(1).float()[:, 1:]
    return (
        present[: setting.train],
        praise[: setting.train],
        present[setting.train :],
        praise[setting.train :],
    )


def train(inputs: Tensor, classes: Tensor, steps: int, seed: int, setting: Setting) -> nn.Module:
    """Returns a perceptron that was trained for so many steps of a schedule of ``setting.steps``."""
    torch.manual_seed(seed)
    layers = (nn.Linear(inputs.shape[1], setting.hidden), nn.ReLU(), nn.Linear(setting.hidden, 10))
    model = nn.Sequential(*layers).to(inputs.device)
    training = Training(
        model,
        GrokAdamW(model.parameters(), setting.lr, grad_filter="none"),
        Batches(len(classes), setting.batch, seed, str(inputs.device)),
        lambda rows: cross_entropy(model(inputs[rows]), classes[rows]),
        falling(setting.steps),
    )
    for _ in range(steps):
        training.step()
    return model


def scores_of(inputs: Tensor, classes: Tensor, row: Row, seed: int, setting: Setting) -> Tensor:
    """Returns the mean score of each example over networks of independent beginnings."""
    found = []
    for number in range(setting.networks):
        steps = 0 if row.at_once else setting.early
        model = train(inputs, classes, steps, 1_000 * (seed + 1) + number, setting)
        if row.score == "el2n":
            found.append(el2n(model(inputs).detach(), classes))
        else:
            found.append(grand(model, cross_entropy, inputs, classes))
    return torch.stack(found).mean(0)


def run(name: str, seed: int, setting: Setting, watch: Watch) -> Run:
    """Scores, prunes and trains anew at each share; and says how well the score finds wrong labels."""
    row = ROWS[name]
    inputs, classes, held, truth = load(row.data, setting, watch.device)
    random = torch.Generator().manual_seed(seed)
    if row.keep == "random":
        order = torch.randperm(setting.train, generator=random).to(watch.device)
    else:
        order = scores_of(inputs, classes, row, seed, setting).argsort(descending=row.keep == "hardest")
    measured: Run = {}
    for number, share in enumerate(setting.pruned, 1):
        kept = order[: round((1 - share) * setting.train)]
        model = train(inputs[kept], classes[kept], setting.steps, seed, setting)
        measured[f"{share:g}"] = accuracy(model, held, truth)
        watch.show(number / (len(setting.pruned) + 1), f"{share:.0%} pruned")
    if name.endswith("el2n"):
        noisy = (torch.rand(setting.train, generator=random) < setting.noisy).to(watch.device)
        other = torch.randint(1, int(truth.max()) + 1, (setting.train,), generator=random).to(watch.device)
        wrong = torch.where(noisy, (classes + other) % (int(truth.max()) + 1), classes)
        measured["noise"] = roc_area(scores_of(inputs, wrong, row, seed, setting), noisy)
    return measured


def needs() -> None:
    """Raises ImportError where a data set is missing."""
    digits(), reviews()


EXPERIMENT = Experiment(
    rows=ROWS,
    run=run,
    sizes={
        "quick": Size(
            Setting(train=1_000, held_out=1_000, hidden=30, networks=3, steps=200, early=50),
            [row for row in ROWS if "grand" not in row],
            (0,),
        ),
        "usual": Size(Setting(), tuple(ROWS)),
        "full": Size(Setting(), tuple(ROWS), tuple(range(10))),
    },
    needs=needs,
)
