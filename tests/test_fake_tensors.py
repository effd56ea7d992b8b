"""Under FakeTensorMode, as memory estimators work: states are made and steps counted, nothing is computed."""

from typing import Any

import pytest
import torch
from stepping import BACKENDS, OPTIONS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from grokfused import GrokAdam, GrokAdamW, step_in_backward

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "every array": {"amsgrad": True, "param_rounding": "kahan", "state_dtype": "bfloat16"},
    "no filter": {"grad_filter": "none", "capturable": True},
    "a window": {"grad_filter": "mean", "window_size": 3},
    "clipping": {"max_grad_norm": 1.0},
}


def trained(kind: type[GrokAdam], steps: int = 2, **options: Any) -> tuple[GrokAdam, nn.Module]:
    model = nn.Sequential(nn.Linear(4, 3, dtype=torch.bfloat16), nn.Linear(3, 2, dtype=torch.bfloat16))
    optimizer = kind(model.parameters(), **OPTIONS, **options)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(5, 4, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
    return optimizer, model


def layout(optimizer: GrokAdam) -> list[dict[str, Any]]:
    return [
        {
            key: (value.shape, value.stride(), value.dtype, value.device)
            for key, value in state.items()
            if isinstance(value, torch.Tensor)
        }
        for state in optimizer.state.values()
    ]


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [GrokAdam, GrokAdamW])
def test_the_states_of_fake_parameters_are_laid_out_as_those_of_true_ones(kind, backend, options) -> None:
    true, _ = trained(kind, backend=backend, **options)
    with FakeTensorMode():
        fake, _ = trained(kind, backend=backend, **options)
        assert layout(fake) == layout(true)
        values = [v for state in fake.state.values() for k, v in state.items() if not k.endswith("_start")]
        assert all(isinstance(value, FakeTensor) for value in values)
        assert [state["step"].item() for state in fake.state.values()] == [2.0] * 4
        assert layout(fake) == layout(true)
        assert fake.state_dict()["state"].keys() == true.state_dict()["state"].keys()


def test_a_step_asks_no_fake_tensor_for_its_value() -> None:
    with FakeTensorMode():
        optimizer, model = trained(GrokAdamW, steps=1)
        group = optimizer.param_groups[0]
        # What has no value at all: a rate that was computed, a counter that was taken over.
        group["lr"], group["betas"] = torch.rand(()), (torch.rand(()), 0.9)
        counter = torch.rand(())
        optimizer.state[model[0].weight]["step"] = counter
        with pytest.raises(RuntimeError):
            counter.item()
        optimizer.step()
        assert optimizer.state[model[0].weight]["step"] is counter


def test_fake_parameters_are_stepped_in_the_backward_pass() -> None:
    with FakeTensorMode():
        optimizer, model = trained(GrokAdamW, steps=0)
        with step_in_backward(optimizer):
            model(torch.ones(5, 4, dtype=torch.bfloat16)).sum().backward()
        assert [state["step"].item() for state in optimizer.state.values()] == [1.0] * 4
        assert all(param.grad is None for param in model.parameters())


def test_fake_parameters_take_masks() -> None:
    with FakeTensorMode():
        optimizer, model = trained(GrokAdamW, steps=0)
        for param, mode in zip(model.parameters(), ("zero", "freeze"), strict=False):
            optimizer.set_mask(param, torch.ones_like(param, dtype=torch.bool), mode)
        model(torch.ones(5, 4, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
        assert [mask.shape for mask in optimizer.masks().values()] == [(3, 4), (3,)]
        assert optimizer.state[model[0].weight]["step"].item() == 1


def test_fake_parameters_are_refused_where_no_one_imagines() -> None:
    with FakeTensorMode():
        optimizer, _ = trained(GrokAdamW, steps=1)
    with pytest.raises(RuntimeError, match=r"parameter 0 of group 0 .* has no memory: .* only stands for"):
        optimizer.step()


def test_what_no_step_could_take_is_refused_of_fake_parameters_too() -> None:
    with FakeTensorMode():
        optimizer, model = trained(GrokAdamW, steps=1)
        optimizer.param_groups[0]["grad_filter"] = "median"
        with pytest.raises(ValueError, match=r"grad_filter must be one of .* got 'median'"):
            optimizer.step()
        assert optimizer.state[model[0].weight]["step"].item() == 1
