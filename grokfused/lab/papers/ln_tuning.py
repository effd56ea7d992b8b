"""Tuning LayerNorms alone (arXiv:2503.19683): a small ViT of our own, moved to shifted images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrize import register_parametrization

from grokfused import GrokAdamW
from grokfused.lab.data import digits, digits_on
from grokfused.lab.papers.frame import Experiment, Run, Size
from grokfused.lab.papers.networks import LowRank, ViT
from grokfused.lab.papers.training import Batches, Training, curve, falling
from grokfused.lab.papers.watch import Watch
from grokfused.lab.step_times import step_times
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


def run(name: str, seed: int, setting: Setting, watch: Watch) -> Run:
    """Trains the ViT at first, or tunes it on shifted images."""
    row = ROWS[name]
    if row.time:
        return step_times(seed, watch.device)
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


QUICK = Setting(train=1_000, held_out=500, dim=32, depth=2, first_steps=300, steps=100)
EXPERIMENT = Experiment(
    rows=ROWS,
    run=run,
    sizes={
        "quick": Size(QUICK, tuple(ROWS), (0,)),
        "usual": Size(Setting(), tuple(ROWS)),
        "full": Size(Setting(first_steps=2_000), tuple(ROWS), tuple(range(10))),
    },
    needs=digits,
)
