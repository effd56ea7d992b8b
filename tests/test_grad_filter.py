"""The gradient filter: Grokfast-EMA as the paper's algorithm 2 has it, and its two starts."""

import warnings

import pytest
import torch

from grokfused import GrokAdamW
from grokfused.step.grad_filter import FILTERS, Filter, Memory
from grokfused.step.options import CHOICES


def optimizer_on(param: torch.Tensor, **options) -> GrokAdamW:
    return GrokAdamW([param], lr=0.01, alpha=0.9, lamb=0.5, **options)


def grad_emas(optimizer: GrokAdamW, param: torch.Tensor, grads: list[float]) -> list[float]:
    seen = []
    for grad in grads:
        param.grad = torch.full_like(param, grad)
        optimizer.step()
        seen.append(optimizer.state[param]["grad_ema"].item())
    return seen


@pytest.mark.parametrize(("init", "start"), [("first", 2.0), ("zero", 0.2)])
def test_the_slow_gradient_starts_as_asked(init, start) -> None:
    param = torch.zeros(1, requires_grad=True)
    ema = grad_emas(optimizer_on(param, grad_ema_init=init), param, [2.0, 4.0])
    # 1e-6: float32's alpha is not 0.9 exactly.
    assert ema == pytest.approx([start, 0.9 * start + 0.4], rel=1e-6)


def test_the_first_gradient_is_kept_to_the_last_bit() -> None:
    param = torch.zeros(1, requires_grad=True)
    value = torch.tensor(0.1).item()
    assert grad_emas(optimizer_on(param), param, [value]) == [value]


def test_a_constant_gradient_is_amplified_by_one_plus_lamb() -> None:
    param = torch.zeros(1, requires_grad=True)
    optimizer = optimizer_on(param, betas=(0.0, 0.999))  # beta1 = 0: exp_avg is the filtered gradient
    grad_emas(optimizer, param, [3.0] * 5)
    assert optimizer.state[param]["exp_avg"].item() == pytest.approx(3.0 * 1.5, rel=1e-6)


def test_no_filter_keeps_no_memory() -> None:
    param = torch.zeros(5, requires_grad=True)
    param.grad = torch.ones(5)
    optimizer = optimizer_on(param, grad_filter="none")
    optimizer.step()
    assert set(optimizer.state[param]) == {"step", "exp_avg", "exp_avg_sq"}


def test_a_filter_turned_on_late_starts_at_that_gradient() -> None:
    param = torch.zeros(1, requires_grad=True)
    optimizer = optimizer_on(param, grad_filter="none")
    for _ in range(3):
        param.grad = torch.ones(1)
        optimizer.step()
    optimizer.param_groups[0]["grad_filter"] = "ema"
    assert grad_emas(optimizer, param, [5.0, 7.0]) == pytest.approx([5.0, 0.9 * 5 + 0.1 * 7], rel=1e-6)


def test_a_filter_turned_off_and_on_goes_on_with_its_memory() -> None:
    param = torch.zeros(1, requires_grad=True)
    optimizer = optimizer_on(param)
    grad_emas(optimizer, param, [2.0])
    optimizer.param_groups[0]["grad_filter"] = "none"
    optimizer.step()
    optimizer.param_groups[0]["grad_filter"] = "ema"
    assert grad_emas(optimizer, param, [2.0]) == [2.0]


def warnings_of(make) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make()
    return [str(warning.message) for warning in caught]


def params(count: int) -> list[torch.Tensor]:
    return [torch.zeros(1, requires_grad=True) for _ in range(count)]


def test_a_filter_that_adds_nothing_is_told_of_once() -> None:
    groups = [{"params": [param]} for param in params(3)]
    (told,) = warnings_of(lambda: GrokAdamW(groups, lamb=0))
    assert "lamb=0" in told
    assert "grad_filter='none'" in told
    optimizer = GrokAdamW(params(1), lamb=0.3)
    (again,) = warnings_of(lambda: optimizer.add_param_group({"params": params(1), "lamb": 0.0}))
    assert again == told


@pytest.mark.parametrize(
    ("name", "memory"),
    [("ema", "(grad_ema)"), ("mean", "(grad_window, grad_sum)"), ("echo", "(last_grad)")],
)
def test_the_memory_that_is_told_of_is_that_of_the_filter(name, memory, monkeypatch) -> None:
    monkeypatch.setitem(FILTERS, "echo", Filter({"last_grad": Memory()}))  # a new one, in no other table here
    monkeypatch.setitem(CHOICES, "grad_filter", tuple(FILTERS))
    (told,) = warnings_of(lambda: GrokAdamW(params(1), lamb=0, grad_filter=name))
    assert memory in told


def test_without_filter_or_with_a_lamb_that_is_written_later_nothing_is_told() -> None:
    def switch_off() -> None:
        optimizer = GrokAdamW(params(1), lamb=0.3)
        optimizer.param_groups[0]["lamb"] = 0.0
        GrokAdamW(params(1), lamb=0.3).load_state_dict(optimizer.state_dict())

    assert warnings_of(switch_off) == []
    assert warnings_of(lambda: GrokAdamW(params(2), lamb=0.0, grad_filter="none")) == []
