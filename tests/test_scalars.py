"""Scalars: derived in float64 from the equations, rounded once."""

import math
import random
from typing import Any

import numpy
import pytest
import torch

from grokfused import GrokAdamW
from grokfused.step.engine import ready
from grokfused.step.members import with_grads
from grokfused.step.scalars import Scalars, scalar_table, step_scalars

GROUP = {
    "lr": 3e-3,
    "betas": (0.87, 0.993),
    "eps": 3e-7,
    "weight_decay": 0.037,
    "alpha": 0.93,
    "lamb": 1.7,
    "maximize": False,
    "grad_filter": "ema",
    "window_size": 4,
    "filter_type": "mean",
    "filter_warmup": True,
    "filter_start_step": 0,
    "filter_stop_step": None,
}
MEAN = {**GROUP, "grad_filter": "mean"}


@pytest.mark.parametrize("step", [1.0, 2.0, 10.0, 1000.0, 2.0**24 - 1])
def test_each_scalar_is_its_formula_rounded_once(step) -> None:
    expected = Scalars(
        step=step,
        grad_factor=1.0,
        alpha=0.93,
        alpha_weight=1 - 0.93,
        lamb=1.7,
        weight_decay=0.037,
        param_scale=1 - 3e-3 * 0.037,
        beta1_weight=1 - 0.87,
        beta2=0.993,
        beta2_weight=1 - 0.993,
        step_size=3e-3 / (1 - 0.87**step),
        denom_scale=1 / math.sqrt(1 - 0.993**step),
        eps=3e-7,
    )
    table = scalar_table([step_scalars(GROUP, step, first=0.0)])
    assert table.dtype is torch.float32
    assert table.tolist() == [[float(numpy.float32(value)) for value in expected]]


def test_the_slow_gradient_starts_as_the_gradient_in_its_first_step_only() -> None:
    first = step_scalars(GROUP, 5.0, first=5.0)
    assert (first.alpha, first.alpha_weight) == (0.0, 1.0)
    assert step_scalars(GROUP, 6.0, first=5.0).alpha == 0.93


@pytest.mark.parametrize(
    ("options", "lambs"),
    [
        # The third step is the first that the memory has seen, the sixth the first of a full window of four.
        ({}, [0, 0, 0, 1.7 / 4, 1.7 / 4]),
        ({"filter_warmup": False}, [1.7, 1.7 / 2, 1.7 / 3, 1.7 / 4, 1.7 / 4]),
        ({"filter_type": "sum"}, [0, 0, 0, 1.7, 1.7]),
        ({"filter_type": "sum", "filter_warmup": False}, [1.7] * 5),
        ({"filter_start_step": 6}, [0, 0, 0, 0, 1.7 / 4]),
        ({"filter_stop_step": 6}, [0, 0, 0, 1.7 / 4, 0]),
        ({"grad_filter": "ema", "filter_start_step": 4, "filter_stop_step": 6}, [0, 0, 1.7, 1.7, 0]),
    ],
    ids=str,
)
def test_lamb_is_divided_by_the_gradients_that_there_are(options, lambs) -> None:
    group = {**MEAN, **options}
    assert [step_scalars(group, float(step), first=3.0).lamb for step in range(3, 8)] == lambs


def test_maximize_turns_the_gradient_round() -> None:
    assert step_scalars({**GROUP, "maximize": True}, 1.0, 0.0).grad_factor == -1.0


def test_parameters_with_their_own_step_counts_get_their_own_bias_correction() -> None:
    early, late = (torch.ones(3, requires_grad=True) for _ in range(2))
    optimizer = GrokAdamW([early, late], lr=0.1, weight_decay=0.0, lamb=0.0)
    early.grad = torch.ones(3)
    optimizer.step()
    optimizer.step()
    late.grad = torch.ones(3)
    optimizer.step()
    # Bias correction makes every step of a constant gradient -lr, to rounding: 3 steps and 1 step.
    torch.testing.assert_close(early, torch.full((3,), 0.7), rtol=0, atol=1e-6)
    torch.testing.assert_close(late, torch.full((3,), 0.9), rtol=0, atol=1e-6)
    assert [optimizer.state[p]["step"].item() for p in (early, late)] == [3.0, 1.0]


def test_a_step_counter_written_by_the_user_is_obeyed() -> None:
    param = torch.ones(3, requires_grad=True)
    other = torch.ones(3, requires_grad=True)
    optimizer = GrokAdamW([param, other])
    for p in (param, other):
        p.grad = torch.ones(3)
    optimizer.step()
    optimizer.state[param]["step"].fill_(41.0)
    optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in (param, other)] == [42.0, 2.0]


def rows_of(steps: list[float], starts: bool, **options: Any) -> list[tuple[float, ...]]:
    """Returns the scalars of parameters that have taken so many steps, as a native step derives them."""
    params = [torch.ones(1, requires_grad=True) for _ in steps]
    for param in params:
        param.grad = torch.ones(1)
    optimizer = GrokAdamW(params, backend="native", grad_ema_init="first" if starts else "zero")
    optimizer.param_groups[0].update(grad_filter=options["grad_filter"], window_size=options["window_size"])
    optimizer.step()
    for param, step in zip(params, steps, strict=True):
        optimizer.state[param]["step"] = torch.tensor(step)
    optimizer.param_groups[0].update(options)
    walk = ready(with_grads(optimizer), {})._walk
    return [tuple(row) for row in walk.scalars()]


@pytest.mark.parametrize("starts", [False, True])
def test_native_code_derives_them_alike(starts) -> None:
    draw = random.Random(starts)
    asked = 0
    for _ in range(200):
        options = {
            "lr": draw.choice([0.0, 1e-3, 10 ** draw.uniform(-12, 3), -1e-20, 1, torch.tensor(0.25)]),
            "betas": (draw.choice([0.0, 0.9, draw.random()]), draw.choice([0.0, 0.999, draw.random(), -0.5])),
            "eps": draw.choice([0.0, 1e-8, draw.random(), numpy.float64(0.5)]),
            "weight_decay": draw.choice([0.0, draw.random(), 1e38]),
            "alpha": draw.choice([0.0, 0.98, draw.random(), math.nextafter(1.0, 0.0), 1.0]),
            "lamb": draw.choice([0.0, 2.0, -draw.random(), 3e38]),
            "maximize": draw.choice([False, True, numpy.True_]),
            "grad_filter": draw.choice(["ema", "ema", "mean", "none"]),
            "window_size": 3,
            "filter_type": draw.choice(["mean", "sum"]),
            "filter_warmup": draw.choice([False, True]),
            "filter_start_step": draw.choice([0, 0, 1, 2]),
            "filter_stop_step": draw.choice([None, None, 2, 10**6]),
        }
        steps = sorted({float(draw.choice([0, 1, draw.randrange(2**24)])) for _ in range(3)})
        group = {**GROUP, **options}
        first = {"ema": float(starts), "mean": 1.0, "none": 0.0}[group["grad_filter"]]
        expected = [step_scalars(group, step + 1.0, first) for step in steps]
        assert rows_of(steps, starts, **options) == [tuple(map(float, row)) for row in expected]
        asked += any(type(value) is not float for value in (options["lr"], options["eps"]))
    assert 20 < asked < 180  # both ways were taken
