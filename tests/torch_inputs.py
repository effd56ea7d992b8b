"""PyTorch's own material for testing optimizers, used on ours: its inputs, its error inputs, its schedulers.

``torch.testing._internal.common_optimizers`` lists what the optimizers of torch must take and must refuse.
Here an ``OptimizerInfo`` of each of our classes hands the lists of Adam and AdamW to tests of our own, on
every backend there is. Backends are compared bit for bit; what an optimizer shows its users (hooks, groups,
names, learning rates) is compared with what torch's own optimizer shows when the same is done to it.
"""

import copy
from typing import Any

import pytest
import torch
from stepping import values
from torch import Tensor

pytest.importorskip("expecttest", reason="torch's own material for tests needs the package expecttest")
from torch.testing._internal.common_optimizers import ErrorOptimizerInput as ErrorOptimizerInput
from torch.testing._internal.common_optimizers import OptimizerErrorEnum as OptimizerErrorEnum
from torch.testing._internal.common_optimizers import (
    OptimizerInfo,
    OptimizerInput,
    _get_optim_inputs_including_global_cliquey_kwargs,
    optim_db,
)

import grokfused
from grokfused import GrokAdam, GrokAdamW
from grokfused.lab.agreement import disagreements

THEIRS = {GrokAdam: torch.optim.Adam, GrokAdamW: torch.optim.AdamW}


def info_of(kind: type[GrokAdam]) -> OptimizerInfo:
    """Returns torch's information on the optimizer that ``kind`` replaces, as it holds for ours."""
    theirs = next(info for info in optim_db if info.optim_cls is THEIRS[kind])
    return OptimizerInfo(
        kind,
        optim_inputs_func=theirs.optim_inputs_func,
        optim_error_inputs_func=theirs.optim_error_inputs_func,
        scheduler_inputs=theirs.scheduler_inputs,
        supported_impls=("foreach", "fused"),
        not_og_supported_flags=theirs.not_og_supported_flags,
        has_capturable_arg=True,
        supports_complex=True,
        supports_fused_on=("cpu", "cuda"),
    )


INFOS = [info_of(kind) for kind in THEIRS]


def inputs_of(info: OptimizerInfo, flags: bool = False) -> list[OptimizerInput]:
    """Returns torch's inputs: those for a CUDA device, which are all it has; their tensors lie on the CPU."""
    if flags:
        return _get_optim_inputs_including_global_cliquey_kwargs("cuda", torch.float32, info)
    return info.optim_inputs_func("cuda")


def label(value: Any) -> str:
    return getattr(value, "name", None) or getattr(value, "desc", None) or str(value)


def by_input(flags: bool = False) -> pytest.MarkDecorator:
    pairs = [(info, given) for info in INFOS for given in inputs_of(info, flags)]
    return pytest.mark.parametrize(("info", "given"), pairs, ids=label)


AVAILABLE = {name: found["available"] for name, found in grokfused.info()["backends"].items()}
PLACES = [(name, device) for name in AVAILABLE for device in AVAILABLE[name]]
on_every_backend = pytest.mark.parametrize(("backend", "device"), PLACES)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(31, 33), (7,), (), (0,), (3, 0)]


def new_params(device: str = "cpu", dtypes: tuple[torch.dtype, ...] = DTYPES) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    made = [_numbers(shape, dtype, random).to(device) for dtype in dtypes for shape in SHAPES]
    return [param.requires_grad_() for param in made]


def _numbers(shape: tuple[int, ...], dtype: torch.dtype, random: torch.Generator) -> Tensor:
    drawn = dtype if dtype in (torch.float64, torch.complex64, torch.complex128) else torch.float32
    return torch.randn(shape, generator=random, dtype=drawn).to(dtype)


def own(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns options of this optimizer's own: a scheduler writes into a learning rate that is a tensor."""
    return copy.deepcopy(kwargs)


def params_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def train(optimizer: torch.optim.Optimizer, steps: range = range(3)) -> None:
    """Takes steps on gradients that depend on the step's number and the parameter's shape and dtype only."""
    for step in steps:
        for param in params_of(optimizer):
            random = torch.Generator().manual_seed(step)
            param.grad = _numbers(param.shape, param.dtype, random).to(param.device)
        optimizer.step()


def assert_same_bits(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> None:
    ours, theirs = ({name: value.cpu() for name, value in values(each).items()} for each in (a, b))
    assert ours.keys() == theirs.keys()
    assert disagreements(ours, theirs) == {}
