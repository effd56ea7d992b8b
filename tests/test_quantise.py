"""Integers for gradients: scales by their definitions, and rounding that keeps the mean."""

import math

import pytest
import torch
from torch.nn.functional import linear

from grokfused.lab import quantise
from grokfused.lab.quantise import SCALES, Norm, integer_layer, largest_integer, quantised


def ranges() -> torch.Tensor:
    return torch.tensor([8.0, 5.0, 3.9, 1.0, 0.3])


def test_scales_are_those_of_their_definitions() -> None:
    # Octaves below the largest: 0, 0, 1, 3, and 4, which the last of four groups takes.
    assert quantise.group_of(ranges()).tolist() == [0, 0, 1, 3, 3]
    found = {name: scales(ranges(), 4).mul(7).tolist() for name, scales in SCALES.items()}
    assert found["per tensor"] == pytest.approx([8] * 5)
    assert found["shifts"] == pytest.approx([8, 8, 4, 1, 1])
    assert found["float groups"] == pytest.approx([8, 8, 3.9, 1, 1])
    assert found["per channel"] == pytest.approx(ranges().tolist())


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("dim", [0, 1])
def test_what_is_left_are_few_integers_of_each_channel_and_none_is_cut_off(name, dim) -> None:
    torch.manual_seed(1)
    values = torch.randn(6, 40) * torch.tensor([1, 1, 0.3, 0.1, 0.02, 0.001])[:, None]
    scales = SCALES[name](values.abs().amax(1), 4)[:, None]
    kept = quantised(values if dim == 0 else values.T, 4, SCALES[name], dim)
    whole = (kept if dim == 0 else kept.T) / scales
    torch.testing.assert_close(whole, whole.round())
    assert whole.round().abs().max() <= largest_integer(4)
    assert ((whole * scales - values).abs() <= scales * 1.001).all()


def test_stochastic_rounding_keeps_the_mean_and_nearest_does_not() -> None:
    torch.manual_seed(2)
    values = torch.full((1, 40_000), 0.3)
    values[0, 0] = 1.0
    mean = quantised(values, 2, quantise.per_tensor)[0, 1:].mean()
    # The deviation of a mean of so many draws of 0 and 1.
    assert abs(mean - 0.3) < 5 * math.sqrt(0.21 / 40_000)
    assert quantised(values, 2, quantise.per_tensor, stochastic=False)[0, 1:].mean() == 0


def test_a_layer_of_integers_has_quantised_products_and_gradients() -> None:
    torch.manual_seed(3)
    inputs, weight = torch.randn(5, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    outputs = integer_layer(linear, 3, quantise.per_tensor)(inputs, weight)
    rounded = [
        quantised(each.detach(), 3, quantise.per_tensor, stochastic=False) for each in (inputs, weight)
    ]
    torch.testing.assert_close(outputs.detach(), linear(*rounded))
    # A gradient that is an integer of its scale already comes through as it is.
    coming = torch.randint(-3, 4, outputs.shape).float()
    coming[0] = 3.0
    outputs.backward(coming)
    torch.testing.assert_close(inputs.grad, coming @ rounded[1])
    torch.testing.assert_close(weight.grad, coming.T @ rounded[0])
    assert integer_layer(linear, 0, quantise.per_tensor) is linear


@pytest.mark.parametrize("l1", [True, False])
def test_a_norm_centres_and_divides_by_its_deviation(l1) -> None:
    torch.manual_seed(4)
    x = torch.randn(3, 2, 5, 5) * 4 + 1
    found = Norm(2, l1)(x).detach()
    for one, values in zip(found, x, strict=True):
        centred = values - values.mean()
        deviation = centred.abs().mean() if l1 else centred.square().mean().sqrt()
        # float32, and Norm adds its epsilon to the deviation, which the formula has not.
        torch.testing.assert_close(one, centred / deviation, rtol=1e-4, atol=1e-4)
