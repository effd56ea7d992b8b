"""What the tests of masks mask: parameters of edge shapes, random masks, gradients with NaN and infinity."""

import torch
from torch import Tensor

from grokfused import GrokAdam
from grokfused.state.arrays import NAMES

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROUNDING = {torch.float32: "nearest", torch.bfloat16: "kahan", torch.float16: "stochastic"}


def turned(tensor: Tensor) -> Tensor:
    return tensor.t().contiguous().t() if tensor.dim() == 2 else tensor


def bits(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view({2: torch.int16, 4: torch.int32}[tensor.element_size()])


def made(shape: list[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return turned(values.to(dtype)).requires_grad_()


def some(param: Tensor, density: float = 0.4, seed: int = 1) -> Tensor:
    return torch.rand(param.shape, generator=torch.Generator().manual_seed(seed)) < density


def set_grad(param: Tensor, seed: int, special: bool = True) -> None:
    random = torch.Generator().manual_seed(seed)
    grad = torch.randn(param.shape, generator=random)
    if special and param.numel():
        flat = grad.view(-1)
        for value in (torch.nan, torch.inf, -torch.inf):
            flat[torch.randint(param.numel(), (1 + param.numel() // 8,), generator=random)] = value
    param.grad = torch.empty_like(param).copy_(grad.to(param.dtype))


def states(optimizer: GrokAdam, param: Tensor) -> list[Tensor]:
    return [optimizer.state[param][key] for key in NAMES if key in optimizer.state[param]]
