"""The table of papers: a new one is a file of this folder, whose name has _ for -, and a row here."""

from __future__ import annotations

from typing import NamedTuple


class About(NamedTuple):
    """What the page says of a paper before there are figures.

    Attributes:
        title: The paper's.
        source: Where it is, as "arXiv:2405.20233".
        claim: What it claims, in a sentence or two.
        ran: What we ran and what differs; names of the setting in braces are filled in.
    """

    title: str
    source: str
    claim: str
    ran: str


ABOUT = {
    "grokfast": About(
        "Grokfast: Accelerated Grokking by Amplifying Slow Gradients",
        "arXiv:2405.20233",
        "With the slow part of gradients amplified, x * y mod 97 groks 44 (EMA) to 50 times (MA) sooner.",
        "",
    ),
    "data-diet": About(
        "Deep Learning on a Data Diet: Finding Important Examples Early in Training",
        "arXiv:2107.07075",
        "Half of CIFAR-10 can be pruned without loss by EL2N scores from early in training.",
        """{train:,} digits of MNIST, and {train:,} Chinese product reviews as the set of characters in them (the
        harder set); {held_out:,} held out. A perceptron of {hidden} hidden units instead of ResNet-18. Scores are
        means over {networks} networks after {early} of {steps} steps (or none); retraining has {steps} steps of
        {batch} whatever is kept, GrokAdamW without filter, lr {lr:g} on a cosine. Columns: accuracy held out in %,
        median of the seeds (smallest to largest); the last one is the area under the ROC curve for {noisy:.0%} of
        labels drawn anew, scored with these labels.""",
    ),
    "nd-loss": About(
        "Improving Knowledge Distillation via Regularizing Feature Norm and Direction",
        "arXiv:2305.17007",
        "Adding a norm-and-direction loss on features to KD (KD++) gives 1.0 to 2.5 points on CIFAR-100.",
        """Digits of MNIST ({train:,} to train on, {held_out:,} held out) instead of CIFAR-100; perceptrons
        784-h-{features}-10 with h = {teacher_hidden} (teacher) and h = {student_hidden} (student) instead of
        ResNets, of equal feature width, so without a projection. {steps:,} steps of {batch} images, GrokAdamW
        without filter, lr {lr:g} falling to 0 on a cosine, T = {temperature:g}, weights KD 1 and ND 2. Every
        student has a teacher of its own seed.""",
    ),
}
