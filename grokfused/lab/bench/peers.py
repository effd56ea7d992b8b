"""Other packages' optimizers, each set up to do the work of a GrokAdamW, or as near to it as it can.

None of them is needed: what is not installed, or fails, becomes a row that says so.
"""

from __future__ import annotations

import importlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from grokfused.lab.bench.implementations import (
    ADAMW,
    ALPHA,
    BETAS,
    EPS,
    GROKFAST,
    IMPLEMENTATIONS,
    LAMB,
    LR,
    NO_FILTER,
    WEIGHT_DECAY,
    Implementation,
    Work,
)
from grokfused.lab.bench.timing import Step
from grokfused.lab.bench.windows import WINDOWED

FILTER = {"grokfast_alpha": ALPHA, "grokfast_lamb": LAMB, "normalize_lr": False}


class PeerMissing(ImportError):
    """A peer's package is not installed; the message says how to install it."""


class Peer(NamedTuple):
    """An optimizer of another package: ``where`` is "module:class", ``package`` its name on PyPI."""

    package: str
    where: str
    options: dict[str, Any]
    work: Work
    writes_grads: bool = False

    def make(self, params: list[Tensor]) -> Step:
        """Returns its step; raises PeerMissing where it is not installed."""
        step: Step = self.optimizer(params).step
        return step

    def optimizer(self, params: list[Tensor]) -> torch.optim.Optimizer:
        """Returns itself; raises PeerMissing where it is not installed."""
        module, optimizer = self.where.split(":")
        try:
            made: torch.optim.Optimizer = getattr(importlib.import_module(module), optimizer)(
                params, **self.options
            )
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != module.partition(".")[0]:
                raise
            how = "pip install 'grokfused[bench]'"
            raise PeerMissing(f"{self.package} is not installed ({how})") from error
        return made

    def implementation(self, name: str) -> Implementation:
        """Returns the peer as one of those who take turns."""
        return Implementation(name, self.make, self.work, self.writes_grads)


BNB, AO = "bitsandbytes AdamW8bit", "torchao AdamW8bit"
PLAIN, OF_8_BITS = Work(NO_FILTER, states="as params"), Work(NO_FILTER, states="8 bits")
# grokadamw: its clipping is per tensor, and gamma changes beta1 from tensor to tensor: both are off. Its
# slow gradient starts as 0. grokfast-pytorch multiplies the decay by lr / (the lr at the beginning).
# HeavyBall frees the gradients it has used, and there is nothing to do in the next step: not here.
# The states of bitsandbytes and torchao are 8 bits (their scales, 1 % of that, are not counted).
PEERS: dict[str, Peer] = {
    "grokadamw": Peer(
        "grokadamw",
        "grokadamw:GrokAdamW",
        {**ADAMW, "alpha_init": ALPHA, "lamb": LAMB, "gamma": 0.0, "gradient_clipping": 0.0},
        GROKFAST._replace(options={"grad_ema_init": "zero"}),
    ),
    "grokfast-pytorch GrokFastAdamW": Peer(
        "grokfast-pytorch",
        "grokfast_pytorch:GrokFastAdamW",
        {"lr": LR, "betas": BETAS, "eps": EPS, "weight_decay": LR * WEIGHT_DECAY, **FILTER},
        GROKFAST,
        writes_grads=True,
    ),
    "pytorch_optimizer GrokFastAdamW": Peer(
        "pytorch_optimizer",
        "pytorch_optimizer:GrokFastAdamW",
        {**ADAMW, **FILTER},
        GROKFAST,
        writes_grads=True,
    ),
    "torch-optimi AdamW": Peer("torch-optimi", "optimi:AdamW", ADAMW, PLAIN),
    "heavyball AdamW": Peer(
        "heavyball", "heavyball:AdamW", {**ADAMW, "consume_grad": False}, Work(NO_FILTER)
    ),
    BNB: Peer("bitsandbytes", "bitsandbytes.optim:AdamW8bit", ADAMW, OF_8_BITS),
    AO: Peer("torchao", "torchao.optim:AdamW8bit", ADAMW, OF_8_BITS),
}
ALL: dict[str, Implementation] = {
    **{name: each for name, each in IMPLEMENTATIONS.items() if each.work},
    **{name: peer.implementation(name) for name, peer in PEERS.items()},
    **WINDOWED,
    **{name: each for name, each in IMPLEMENTATIONS.items() if not each.work},
}
