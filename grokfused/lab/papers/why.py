"""Why networks grok: what several papers measure, over the same runs, with and without the filter."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from grokfused import GrokAdamW
from grokfused.lab import measures
from grokfused.lab.addition import MLP, accuracy, loss_of, modular_addition
from grokfused.lab.papers.frame import Experiment, Run, Size
from grokfused.lab.papers.networks import Observed
from grokfused.lab.papers.training import Batches, Training, crossings, curve, has_stayed
from grokfused.lab.papers.watch import Watch


@dataclass(frozen=True)
class Setting:
    """What all runs share: a + b mod ``modulus``, full batch, and how the measures are taken."""

    modulus: int = 31
    train_share: float = 0.7
    width: int = 128
    hidden: int = 48
    lr: float = 3e-3
    weight_decay: float = 1.0
    threshold: float = 0.95
    steps: int = 8_000
    every: int = 50
    after: int = 500
    kernel_of: int = 48  # equations
    stream: int = 200  # steps of the gradient stream, of 64 elements
    period: int = 50  # steps, 1 / (1 - alpha)
    radius: float = 0.5


class Row(NamedTuple):
    """The filter's lamb, at alpha 0.98."""

    what: str
    lamb: float


ROWS = {"none": Row("no filter", 0.0), "ema": Row("EMA(0.98, 1)", 1.0)}
MEASURES = {
    "weight norm": "weight norm",
    "rank": "effective rank of the hidden features",
    "complexity": "local complexity around training data",
    "alignment": "alignment of the tangent kernel with the answers",
    "scale": "output scale",
    "slow": "power of the gradient stream at periods of 50 steps or more",
    "cosine": "cosine of gradient and slow gradient",
    "low": "power of the residual in the lowest fifth of frequencies",
}


def measured(model: Observed, counts: Tensor, sums: Tensor, setting: Setting, ways: Tensor, seen: int) -> Run:
    """Returns every measure, on the training data; ``seen`` are the steps so far."""
    network, part = model.network, counts[: setting.kernel_of]
    answers = one_hot(sums, setting.modulus).float()
    with torch.no_grad():
        logits = network(counts)
        hidden = model.hidden(counts)
        residual = 1 - logits.double().softmax(1).gather(1, sums[:, None])[:, 0]
    kernel = measures.tangent_kernel(network, part)
    half = setting.modulus // 2
    return {
        "weight norm": measures.weight_norm(network.parameters()),
        "rank": measures.effective_rank(hidden.relu()),
        "complexity": measures.local_complexity(
            lambda x: [model.hidden(x)], counts[:64], setting.radius, ways
        ),
        "alignment": measures.kernel_alignment(kernel, answers[: setting.kernel_of]),
        "scale": measures.output_scale(logits),
        "slow": measures.slow_share(model.stream[-seen:], setting.period),
        "cosine": measures.cosine(model.grads(), model.slow()),
        "low": measures.low_frequency_share(residual, sums / setting.modulus, half, max(1, half // 5)),
    }


def run(name: str, seed: int, setting: Setting, watch: Watch) -> Run:
    """Trains until some time after the network has generalised; returns the measures' curves."""
    random = torch.Generator().manual_seed(seed)
    task = modular_addition(random, setting.modulus, setting.train_share)
    network = MLP(setting.modulus, random, setting.width, setting.hidden)
    model = Observed(network, setting.stream).to(watch.device)
    train, test = (
        (one_hot(pairs, setting.modulus).sum(1).float().to(watch.device), sums.to(watch.device))
        for pairs, sums in ((task.train, task.train_sums), (task.test, task.test_sums))
    )
    ways = torch.linalg.qr(torch.randn(setting.modulus, 12, generator=random))[0].T.to(watch.device)
    lamb = ROWS[name].lamb
    optimizer = GrokAdamW(
        network.parameters(),
        setting.lr,
        betas=(0.9, 0.98),
        weight_decay=setting.weight_decay,
        grad_filter="ema" if lamb else "none",
        alpha=0.98,
        lamb=lamb,
    )
    optimizer.register_step_pre_hook(model.note)
    batches = Batches(len(train[1]), 0, seed, watch.device)
    training = Training(model, optimizer, batches, lambda rows: loss_of(network(train[0]), train[1]))

    def measure() -> Run:
        accuracies = {"test": accuracy(network, *test), "train": accuracy(network, *train)}
        return {**accuracies, **measured(model, *train, setting, ways, training.steps)}

    enough = has_stayed("test", setting.threshold, setting.after)
    points = curve(training, watch, setting.steps, setting.every, measure, enough)
    memorised, _ = crossings(points, "train", setting.threshold)
    generalised, stable = crossings(points, "test", setting.threshold)
    return {"memorised": memorised, "generalised": generalised, "stable": stable, "points": points}


QUICK = Setting(every=100, after=0, kernel_of=8)
EXPERIMENT = Experiment(
    rows=ROWS,
    run=run,
    sizes={
        "quick": Size(QUICK, tuple(ROWS), (0,)),
        "usual": Size(Setting(), tuple(ROWS)),
        "full": Size(Setting(modulus=67, train_share=0.4, width=500, steps=40_000), tuple(ROWS)),
    },
)
