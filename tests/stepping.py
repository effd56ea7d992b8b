"""What several test files step with. No hyperparameter has its default value."""

import torch
from torch import Tensor

BACKENDS = ("native", "reference")
ADAM = {"lr": 3e-3, "betas": (0.87, 0.993), "eps": 3e-7, "weight_decay": 0.037}
OPTIONS = {**ADAM, "alpha": 0.93, "lamb": 1.7}


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


def ulps_of_the_largest(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, in units of the last place of the largest element.

    Elements near 0 have far smaller units, but got there by subtracting numbers of the largest one's size.
    """
    largest = theirs.abs().max()
    ulp = torch.nextafter(largest, torch.tensor(torch.inf)) - largest
    return ((ours - theirs).abs().max() / ulp).item()
