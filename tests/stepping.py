"""What several test files step with. No hyperparameter has its default value."""

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from grokfused.lab.agreement import differing_bits

BACKENDS = ("native", "reference")
ADAM = {"lr": 3e-3, "betas": (0.87, 0.993), "eps": 3e-7, "weight_decay": 0.037}
OPTIONS = {**ADAM, "alpha": 0.93, "lamb": 1.7}


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def new_param(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return randn(*shape, seed=seed).to(dtype).requires_grad_()


def mixed_params() -> list[Tensor]:
    dtypes = [torch.float32, torch.bfloat16, torch.float32, torch.float16, torch.float32]
    return [new_param(5 + 4 * i, 3, seed=i, dtype=dtype) for i, dtype in enumerate(dtypes)]


def train(optimizer: torch.optim.Optimizer, steps: int, seed: int = 2) -> None:
    """Takes steps on random gradients of the parameters' own dtypes, the same for every optimizer."""
    params = [param for group in optimizer.param_groups for param in group["params"]]
    random = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=random).to(param.dtype)
        optimizer.step()


def values(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Returns copies of all parameters and tensor states, by name."""
    found = {}
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for index, param in enumerate(params):
        found[f"{index} param"] = param.detach().clone()
        for key, state in optimizer.state.get(param, {}).items():
            value = state.words if key == "mask" else state
            found[f"{index} {key}"] = torch.as_tensor(value).clone()
    return found


def operators(call: Callable[[], object]) -> list[str]:
    """Returns the operators that a call runs, torch's and ours, by name and as often as they are run."""
    with torch.profiler.profile(acc_events=True) as profile:  # torch 2.11 warns of a profile without it
        call()
    return sorted(event.name for event in profile.events() if event.name.startswith(("aten", "grokfused")))


def assert_same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    different = {name: differing_bits(ours[name], theirs[name]) for name in ours}
    assert different == dict.fromkeys(different, 0)


def through_a_file(saved: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def ulps_of_the_largest(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in units of the last place of the largest element.

    Elements near 0 have far smaller units, but got there by subtracting numbers of the largest one's size.
    """
    if theirs.is_complex():
        ours, theirs = torch.view_as_real(ours), torch.view_as_real(theirs)
    largest = theirs.abs().max()
    ulp = torch.nextafter(largest, torch.full_like(largest, torch.inf)) - largest
    return ((ours - theirs).abs().max() / ulp).item()
