"""Norm and direction of a student's features (arXiv:2305.17007): distillation on digits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, cross_entropy

from grokfused import GrokAdamW
from grokfused.lab.data import digits, digits_on
from grokfused.lab.papers.frame import Experiment, Run, Size
from grokfused.lab.papers.networks import Student
from grokfused.lab.papers.training import Batches, Training, curve, falling
from grokfused.lab.papers.watch import Watch
from grokfused.losses import distillation, norm_and_direction


@dataclass(frozen=True)
class Setting:
    """What all runs share. ``hidden`` is the width in front of the features, of teacher and student."""

    train: int = 1_000
    held_out: int = 2_000
    features: int = 64
    teacher_hidden: int = 400
    student_hidden: int = 12
    steps: int = 1_500
    batch: int = 50
    lr: float = 2e-3
    temperature: float = 4.0


class Row(NamedTuple):
    """Weights of the two terms beside cross entropy; ``teacher``: the run trains the teacher itself."""

    what: str
    kd: float = 0.0
    nd: float = 0.0
    teacher: bool = False


ROWS = {
    "teacher": Row("the teacher", teacher=True),
    "alone": Row("student alone"),
    "kd": Row("student, KD", kd=1.0),
    "nd": Row("student, ND", nd=2.0),
    "kd++": Row("student, KD++ (KD and ND)", kd=1.0, nd=2.0),
}


def run(name: str, seed: int, setting: Setting, watch: Watch) -> Run:
    """Trains the teacher, or a student of it; returns accuracy, norm and direction of features held out."""
    row = ROWS[name]
    images, shown, held, truth = digits_on(watch.device, setting.train, setting.held_out)
    torch.manual_seed(seed)
    hidden = setting.teacher_hidden if row.teacher else setting.student_hidden
    model = Student(hidden, setting.features).to(watch.device)
    teacher = Student(setting.teacher_hidden, setting.features).to(watch.device).requires_grad_(False)
    if not row.teacher:
        teacher.load_state_dict(watch.kept(f"teacher-{seed}"))
    theirs, taught = teacher(images)
    means = torch.stack([theirs[shown == digit].mean(0) for digit in range(10)])

    def loss(rows: Tensor) -> Tensor:
        features, logits = model(images[rows])
        total = cross_entropy(logits, shown[rows])
        if row.kd:
            total = total + row.kd * distillation(logits, taught[rows], setting.temperature)
        if row.nd:
            total = total + row.nd * norm_and_direction(features, theirs[rows], means, shown[rows])
        return total

    @torch.no_grad()
    def measure() -> Run:
        features, logits = model(held)
        right = (logits.argmax(1) == truth).double().mean().item()
        direction = cosine_similarity(features, means[truth]).mean().item()
        return {"accuracy": right, "direction": direction, "norm": features.norm(dim=1).mean().item()}

    optimizer = GrokAdamW(model.parameters(), setting.lr, grad_filter="none")
    batches = Batches(setting.train, setting.batch, seed, watch.device)
    training = Training(model, optimizer, batches, loss, falling(setting.steps))
    points = curve(training, watch, setting.steps, setting.steps // 10, measure)
    if row.teacher:
        watch.keep(f"teacher-{seed}", model.state_dict())
    return {**points[-1], "points": points}


USUAL = Size(Setting(), tuple(ROWS), (0, 1, 2, 3, 4))
EXPERIMENT = Experiment(
    rows=ROWS,
    run=run,
    sizes={
        "quick": Size(Setting(train=300, held_out=1_000, steps=300), tuple(ROWS), (0, 1)),
        "usual": USUAL,
        "full": USUAL._replace(seeds=tuple(range(20))),
    },
    needs=digits,
)
