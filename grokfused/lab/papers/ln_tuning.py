"""Tuning LayerNorms alone (arXiv:2503.19683): a small ViT of our own, moved to shifted images."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrize import register_parametrization

from grokfused import GrokAdamW
from grokfused.lab.data import digits, digits_on
from grokfused.lab.papers.cells import mean_of
from grokfused.lab.papers.frame import Paper, Record, Run, Size, Verdict, Watch, rows_in, runs_of
from grokfused.lab.papers.networks import LowRank, ViT
from grokfused.lab.papers.pages import spread
from grokfused.lab.papers.training import Batches, Training, curve, falling
from grokfused.losses import alignment, slerp, uniformity


@dataclass(frozen=True)
class Setting:
    """What all runs share: the ViT, how it is trained at first (``first``), and how it is tuned."""

    train: int = 2_000
    held_out: int = 1_000
    dim: int = 48
    depth: int = 3
    heads: int = 4
    rank: int = 4
    first_steps: int = 600
    first_lr: float = 2e-3
    tuned_on: int = 200
    steps: int = 200
    batch: int = 50


class Row(NamedTuple):
    """What is tuned: parameters whose names hold ``part``, and the head; with what lr and terms."""

    what: str
    part: str = ""
    lr: float = 2e-3
    terms: bool = False
    lora: bool = False
    time: bool = False


ROWS = {
    "first": Row("before tuning", part="everything"),
    "probe": Row("head only (linear probe)", lr=1e-2),
    "lora": Row("LoRA", lora=True, lr=1e-2),
    "full": Row("everything", part="everything"),
    "ln": Row("LayerNorms", part="norm", lr=1e-2),
    "ln-terms": Row("LayerNorms; L2 norm, alignment, uniformity, slerp", part="norm", lr=1e-2, terms=True),
    "time": Row("a step of 100 tensors of 1,024", time=True),
}


def shifted(images: Tensor) -> Tensor:
    """Returns the images with 0.4 of their contrast, brighter by 0.4, with noise of deviation 0.2."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(len(images)))
    return 0.4 + 0.4 * images + 0.2 * noise.to(images.device)


def tuned_parameters(model: ViT, row: Row, setting: Setting) -> list[nn.Parameter]:
    """Freezes what the row does not tune, and returns the rest."""
    for name, param in model.named_parameters():
        param.requires_grad_(row.part == "everything" or "head" in name or (row.part or "-") in name)
    if row.lora:
        for module in [each for each in model.blocks.modules() if isinstance(each, nn.Linear)]:
            register_parametrization(module, "weight", LowRank(module.weight, setting.rank))
    return [param for param in model.parameters() if param.requires_grad]


def with_terms(model: ViT, images: Tensor, shown: Tensor) -> Tensor:
    """Returns the loss with alignment, uniformity and features between those of one class."""
    features = model.features(images)
    order = shown.argsort(stable=True)  # neighbours in it mostly show the same
    pairs = torch.stack([order[:-1], order[1:]])[:, shown[order[:-1]] == shown[order[1:]]]
    first, second = features[pairs]
    between = slerp(first, second, torch.rand(pairs.shape[1], device=features.device))
    known = torch.cat([features, between]), torch.cat([shown, shown[pairs[0]]])
    scale = 10.0  # features of norm 1 need larger logits
    loss = cross_entropy(scale * model.head(known[0]), known[1])
    return loss + 0.1 * alignment(features, shown) + 0.5 * uniformity(features)


def step_times(seed: int) -> Run:
    """Returns microseconds a step of ours and of torch's fused AdamW, the medians of steps in turn."""
    torch.manual_seed(seed)
    made: list[tuple[torch.optim.Optimizer, list[float]]] = []
    fused = partial(torch.optim.AdamW, fused=True)
    for kind in (partial(GrokAdamW, grad_filter="none"), fused):
        params = [nn.Parameter(torch.randn(1_024)) for _ in range(100)]
        for param in params:
            param.grad = torch.randn(1_024)
        made.append((kind(params, 1e-3), []))
    for _ in range(200):
        for optimizer, times in made:
            begin = time.perf_counter()
            optimizer.step()
            times.append(1e6 * (time.perf_counter() - begin))
    ours, theirs = (statistics.median(times) for _, times in made)
    return {"ours": ours, "theirs": theirs}


def run(name: str, seed: int, setting: Setting, watch: Watch) -> Run:
    """Trains the ViT at first, or tunes it on shifted images."""
    row = ROWS[name]
    if row.time:
        return step_times(seed)
    images, shown, held, truth = digits_on(watch.device, setting.train, setting.held_out)
    torch.manual_seed(seed)
    model = ViT(setting.dim, setting.depth, setting.heads).to(watch.device)
    new, first = shifted(held), name == "first"
    if not first:
        model.load_state_dict(watch.kept(f"vit-{seed}"))
        images, shown = shifted(images[: setting.tuned_on]), shown[: setting.tuned_on]
    model.normed = row.terms
    params = tuned_parameters(model, row, setting)
    steps, lr = (setting.first_steps, setting.first_lr) if first else (setting.steps, row.lr)

    def loss(rows: Tensor) -> Tensor:
        if row.terms:
            return with_terms(model, images[rows], shown[rows])
        return cross_entropy(model(images[rows]), shown[rows])

    @torch.no_grad()
    def measure() -> Run:
        return {
            "shifted": (model(new).argmax(1) == truth).double().mean().item(),
            "before": (model(held).argmax(1) == truth).double().mean().item(),
        }

    batches = Batches(len(shown), setting.batch, seed, watch.device)
    training = Training(model, GrokAdamW(params, lr, grad_filter="none"), batches, loss, falling(steps))
    points = curve(training, watch, steps, max(1, steps // 4), measure)
    if first:
        watch.keep(f"vit-{seed}", model.state_dict())
    return {**points[-1], "tuned": sum(param.numel() for param in params), "tensors": len(params)}


COLUMNS = ("tuned", "shifted images", "images of before", "parameters", "tensors", "step")


def cells(record: Record) -> list[list[str]]:
    """Returns the table, accuracies in per cent."""
    found = []
    for row in rows_in(record):
        runs = runs_of(record, row)
        if ROWS[row].time:
            each = [spread([run[who] for run in runs]) for who in ("ours", "theirs")]
            shown = ["", "", "102,400", "100", f"GrokAdamW {each[0]} µs, torch fused {each[1]} µs"]
        else:
            accuracies = [spread([100 * run[name] for run in runs], 1) for name in ("shifted", "before")]
            shown = [*accuracies, *(f"{runs[0][name]:,}" for name in ("tuned", "tensors")), ""]
        found.append([ROWS[row].what, *shown])
    return found


def verdict(record: Record) -> Verdict:
    """Returns what came out: means over the seeds."""
    names = ("probe", "lora", "full", "ln", "ln-terms")
    mean = {row: 100 * mean_of(record, row, "shifted") for row in names}
    kept = {row: 100 * mean_of(record, row, "before") for row in names}
    above_probe, above_full = mean["ln"] - mean["probe"], mean["ln"] - mean["full"]
    terms = mean["ln-terms"] - mean["ln"]
    share = runs_of(record, "ln")[0]["tuned"] / runs_of(record, "full")[0]["tuned"]
    faster = mean_of(record, "time", "theirs") / mean_of(record, "time", "ours")
    wins = [above_probe > 1, above_full > -1, terms > 0]
    return Verdict(
        "yes" if all(wins) else "in part" if any(wins) else "no",
        f"LayerNorms {above_probe:+.1f} points over the probe, {above_full:+.1f} over everything",
        [
            f"LayerNorms and the head ({share:.1%} of the parameters) give {mean['ln']:.1f} % on shifted "
            f"images, the head alone {mean['probe']:.1f}, LoRA {mean['lora']:.1f}, everything "
            f"{mean['full']:.1f}.",
            f"L2-normalised features with the three terms change LayerNorm tuning by {terms:+.1f} points. On "
            f"the images of before, LayerNorms keep {kept['ln']:.1f} %, everything {kept['full']:.1f}.",
            f"A step of 100 tensors of 1,024 takes torch's fused AdamW {faster:.2f} times as long as ours "
            "(a wall clock, in turn, on a machine that was not idle).",
        ],
    )


def draw(record: Record, figure: Figure) -> None:
    """Draws each kind of tuning: accuracy on shifted images beside that on the images of before."""
    axes = figure.add_subplot()
    for row in (row for row in rows_in(record) if not ROWS[row].time):
        pairs = [(100 * run["before"], 100 * run["shifted"]) for run in runs_of(record, row)]
        axes.plot(*zip(*pairs, strict=True), "o", label=ROWS[row].what)
    axes.set(xlabel="accuracy on images of before, %", ylabel="accuracy on shifted images, %")
    axes.legend(frameon=False, fontsize=8)


QUICK = Setting(train=1_000, held_out=500, dim=32, depth=2, first_steps=300, steps=100)
PAPER = Paper(
    name="ln-tuning",
    rows=ROWS,
    run=run,
    sizes={
        "quick": Size(QUICK, tuple(ROWS), (0,)),
        "usual": Size(Setting(), tuple(ROWS)),
        "full": Size(Setting(first_steps=2_000), tuple(ROWS), tuple(range(10))),
    },
    columns=COLUMNS,
    cells=cells,
    verdict=verdict,
    draw=draw,
    needs=digits,
)
