"""An optimizer whose filter is the mean of a window, and its steps; for the tests of windows."""

import torch

from grokfused import GrokAdam
from grokfused.lab.agreement import differing_bits

BACKENDS = ["native", "reference"]


def optimizer_of(params, **options) -> GrokAdam:
    window = {"grad_filter": "mean", "window_size": 5, "lamb": 5.0, "lr": 1e-2}
    return GrokAdam(params, **{**window, **options})


def states_of(optimizer) -> list[torch.Tensor]:
    """Returns parameters and states, in order."""
    found = []
    for param in optimizer.param_groups[0]["params"]:
        state = optimizer.state[param]
        found += [
            param.detach(),
            *(state[key] for key in sorted(state) if isinstance(state[key], torch.Tensor)),
        ]
    return [tensor.clone() for tensor in found]


def same(a, b) -> bool:
    return all(differing_bits(x, y) == 0 for x, y in zip(states_of(a), states_of(b), strict=True))


def run(optimizer, params, steps, seed=0) -> None:
    """Takes steps on random gradients, the same ones for the same seed and step."""
    for step in steps:
        for number, param in enumerate(params):
            random = torch.Generator().manual_seed(1000 * seed + 10 * step + number)
            param.grad = torch.randn(param.shape, generator=random).to(param.dtype)
        optimizer.step()


def made(*shapes, dtype=torch.float32, **options):
    random = torch.Generator().manual_seed(7)
    params = [torch.randn(shape, generator=random).to(dtype).requires_grad_() for shape in shapes]
    return optimizer_of(params, **options), params
