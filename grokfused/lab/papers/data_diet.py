"""Deep learning on a data diet (arXiv:2107.07075): train on what EL2N or GraNd found hard, or easy."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from grokfused import GrokAdamW
from grokfused.lab.data import digits, digits_on, reviews
from grokfused.lab.measures import roc_area
from grokfused.lab.papers.frame import Paper, Record, Run, Size, Verdict, Watch, rows_in, runs_of
from grokfused.lab.papers.pages import paired, spread
from grokfused.lab.papers.training import Batches, Training, accuracy, falling
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


def shares(record: Record) -> list[str]:
    """Returns the shares that were pruned, as they are written."""
    return [f"{share:g}" for share in record["setting"]["pruned"]]


def cells(record: Record) -> list[list[str]]:
    """Returns the table: accuracies held out in per cent, at each pruned share."""
    found = []
    for row in rows_in(record):
        runs = runs_of(record, row)
        accuracies = [spread([100 * run[share] for run in runs], 1) for share in shares(record)]
        noise = spread([run["noise"] for run in runs], 2) if "noise" in runs[0] else ""
        found.append([ROWS[row].what, *accuracies, noise])
    return found


def verdict(record: Record) -> Verdict:
    """Returns what came out at half of the data, paired by seed."""
    more = {data: paired(record, f"{data}-el2n", f"{data}-random", "0.5") for data in DATA}
    mean = {data: 100 * statistics.mean(each) for data, each in more.items()}
    runs = {data: runs_of(record, f"{data}-el2n") for data in DATA}
    cost = {data: 100 * statistics.mean(run["0"] - run["0.5"] for run in runs[data]) for data in DATA}
    tenth = {
        data: 100 * statistics.mean(paired(record, f"{data}-el2n", f"{data}-random", "0.9")) for data in DATA
    }
    noise = {data: statistics.median(run["noise"] for run in runs[data]) for data in DATA}
    above = [each > 0 for one in more.values() for each in one]
    return Verdict(
        "yes" if all(above) else "in part" if any(above) else "no",
        ", ".join(f"{data} {mean[data]:+.1f} points over random at 50 %" for data in DATA),
        [
            f"With half of the data, the hardest by EL2N are {mean['digits']:+.2f} points from a random half "
            f"on digits and {mean['reviews']:+.2f} on reviews; all data gives {cost['digits']:+.2f} and "
            f"{cost['reviews']:+.2f} points more than they do.",
            f"With a tenth of the data the hardest are {tenth['digits']:+.1f} and {tenth['reviews']:+.1f} "
            "points from a random tenth: how much to prune, and from which end, depends on data and share.",
            f"Wrong labels (10 %) score above right ones with probability {noise['digits']:.2f} and "
            f"{noise['reviews']:.2f} by EL2N: what is kept longest of noisy data is its noise.",
        ],
    )


def draw(record: Record, figure: Figure) -> None:
    """Draws accuracy over the pruned share, a panel a data set; bars from smallest to largest."""
    for panel, data in enumerate(DATA, 1):
        axes = figure.add_subplot(1, len(DATA), panel)
        for row in (row for row in rows_in(record) if ROWS[row].data == data):
            columns = [[100 * run[share] for run in runs_of(record, row)] for share in shares(record)]
            middle = [statistics.median(column) for column in columns]
            ends = [[m - min(c) for m, c in zip(middle, columns, strict=True)]]
            ends.append([max(c) - m for m, c in zip(middle, columns, strict=True)])
            label = ROWS[row].what.removeprefix(f"{data}: ")
            axes.errorbar([100 * float(s) for s in shares(record)], middle, ends, capsize=2, label=label)
        axes.set(title=data, xlabel="pruned, %", ylabel="accuracy held out, %")
        axes.legend(frameon=False, fontsize=7)


def needs() -> None:
    """Raises ImportError where a data set is missing."""
    digits(), reviews()


COLUMNS = ("kept", "0 %", "25 %", "50 %", "75 %", "90 % pruned", "wrong labels found")
PAPER = Paper(
    name="data-diet",
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
    columns=COLUMNS,
    cells=cells,
    verdict=verdict,
    draw=draw,
    needs=needs,
)
