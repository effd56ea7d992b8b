"""The AdamW room of the truth, against hand-worked steps in exact or float64 arithmetic."""

import math

import pytest
import torch

from grokfused import GrokAdamW
from grokfused.backends import reference
from grokfused.step.scalars import scalar_table, step_scalars

GROUP = {
    **GrokAdamW([torch.zeros(1)]).defaults,
    "lr": 0.125,
    "betas": (0.75, 0.9375),
    "eps": 0.5,
    "weight_decay": 0.25,
    "alpha": 0.5,
    "lamb": 2.0,
    "maximize": False,
}


def one_step(decay: str, step: float = 3.0, **values: float) -> dict[str, float]:
    row = scalar_table([step_scalars(GROUP, step, 0.0)])[0]
    tensors = {name: torch.tensor([value]) for name, value in values.items()}
    new = reference.step(tensors, reference.Scalars(*row.tolist()), "ema", decay)
    return {name: tensor.item() for name, tensor in new.items()}


@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
@pytest.mark.parametrize("largest", [None, 1.0, 100.0])
def test_one_step_is_the_equations(decay, largest) -> None:
    values = {"param": 1.5, "grad": -2.0, "exp_avg": 0.5, "exp_avg_sq": 4.0, "grad_ema": 1.0}
    if largest is not None:
        values["max_exp_avg_sq"] = largest
    new = one_step(decay, **values)

    slow = 0.5 * 1.0 + 0.5 * -2.0
    grad = -2.0 + 2.0 * slow
    param = 1.5
    if decay == "coupled":
        grad += 0.25 * param
    else:
        param *= 1 - 0.125 * 0.25
    mean = 0.75 * 0.5 + 0.25 * grad
    square = 0.9375 * 4.0 + 0.0625 * grad**2
    top = max(square, largest or 0.0)
    corrected = math.sqrt(top / (1 - 0.9375**3))
    param -= 0.125 * (mean / (1 - 0.75**3)) / (corrected + 0.5)

    # A few roundings of float32 (6e-8 each) against float64.
    assert new["grad_ema"] == pytest.approx(slow, rel=1e-6)
    assert new["exp_avg"] == pytest.approx(mean, rel=1e-6)
    assert new["exp_avg_sq"] == pytest.approx(square, rel=1e-6)
    assert new["param"] == pytest.approx(param, rel=1e-6)
    if largest is not None:
        assert new["max_exp_avg_sq"] == pytest.approx(top, rel=1e-6)


def test_the_root_is_correctly_rounded_for_long_tensors() -> None:
    squares = torch.rand(100_003, generator=torch.Generator().manual_seed(0))
    values = {name: torch.zeros_like(squares) for name in ("param", "grad", "exp_avg")}
    row = scalar_table([step_scalars({**GROUP, "betas": (0.0, 0.9375), "eps": 0.0}, 1.0, 0.0)])[0]
    numbers = reference.Scalars(*row.tolist())._replace(
        beta2=1.0, beta1_weight=0.0, step_size=1.0, denom_scale=1.0
    )
    values["exp_avg"] = torch.ones_like(squares)
    new = reference.adamw({**values, "exp_avg_sq": squares}, numbers, "decoupled")
    exact = torch.tensor([math.sqrt(x) for x in squares.tolist()], dtype=torch.float64).float()
    assert torch.equal(new["param"], -(1 / exact))


def test_a_nan_in_either_second_moment_stays_visible_under_amsgrad() -> None:
    nan = float("nan")
    for largest, square in ((nan, 1.0), (1.0, nan)):
        new = one_step(
            "decoupled",
            param=1.0,
            grad=1.0,
            grad_ema=0.0,
            exp_avg=0.0,
            exp_avg_sq=square,
            max_exp_avg_sq=largest,
        )
        assert math.isnan(new["max_exp_avg_sq"])
        assert math.isnan(new["param"])


def test_an_infinite_parameter_without_decay_stays_infinite() -> None:
    from grokfused import GrokAdam

    param = torch.tensor([float("-inf"), 1.0], requires_grad=True)
    param.grad = torch.zeros(2)
    GrokAdam([param], weight_decay=0.0).step()
    assert param.tolist() == [float("-inf"), 1.0]
