"""What the tests of checkpoints train, save and compare."""

from collections.abc import Sequence
from typing import Any

import torch
from stepping import ADAM, train
from torch import Tensor

from grokfused import GrokAdamW

OPTIONS = {**ADAM, "alpha": 0.93, "lamb": 1.7, "seed": 5}
SHAPES = {torch.float32: [9, 7], torch.bfloat16: [33], torch.float16: []}


def new_params(seed: int = 1) -> list[Tensor]:
    """Returns one parameter of each dtype and another float32 one, lying transposed."""
    random = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=random).to(dtype) for dtype, shape in SHAPES.items()]
    made.append(torch.randn(5, 6, generator=random).t())
    return [param.requires_grad_() for param in made]


def copies(params: Sequence[Tensor]) -> list[Tensor]:
    return [param.detach().clone().requires_grad_() for param in params]


def options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
    ]


def optimizer_in_use() -> GrokAdamW:
    params = new_params()
    optimizer = GrokAdamW([{"params": params[:2]}, {"params": params[2:], "lamb": 0.4}], **OPTIONS)
    train(optimizer, 2)
    return optimizer
