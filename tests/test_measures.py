"""Measures of networks that grok, each beside an independent computation of a few lines."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from grokfused.lab import measures


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(4)


def test_weight_norm_is_that_of_all_weights_in_one_row() -> None:
    model = nn.Linear(5, 3)
    flat = torch.cat([param.detach().flatten() for param in model.parameters()])
    assert measures.weight_norm(model.parameters()) == pytest.approx(
        math.sqrt(sum(float(w) ** 2 for w in flat))
    )


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_feature_rank_is_numpys(rank) -> None:
    features = torch.randn(20, rank) @ torch.randn(rank, 8)
    assert measures.feature_rank(features) == np.linalg.matrix_rank(features.numpy()) == rank


def test_effective_rank_counts_equal_directions_and_ignores_their_length() -> None:
    assert measures.effective_rank(3 * torch.eye(7)[:, :4]) == pytest.approx(4)
    uneven = torch.diag(torch.tensor([3.0, 1.0]))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert measures.effective_rank(uneven) == pytest.approx(math.exp(entropy))


def test_local_complexity_counts_units_whose_sign_differs_among_the_vertices() -> None:
    model, points = nn.Linear(3, 9), torch.randn(4, 3)
    ways = torch.linalg.qr(torch.randn(3, 2))[0].T
    expected = 0
    for x in points:
        vertices = [x + sign * 0.7 * way for way in ways for sign in (1, -1)]
        signs = [tuple((model(vertex) > 0).tolist()) for vertex in vertices]
        expected += sum(len({sign[unit] for sign in signs}) == 2 for unit in range(9))
    found = measures.local_complexity(lambda x: [model(x)], points, 0.7, ways)
    assert found == pytest.approx(expected / 4)
    assert found > 0
    twice = measures.local_complexity(lambda x: [model(x), model(x)], points, 0.7, ways)
    assert twice == pytest.approx(2 * found)


def test_the_tangent_kernel_is_the_product_of_gradients() -> None:
    model, inputs = (
        nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double(),
        torch.randn(3, 4).double(),
    )
    rows = []
    for x in inputs:
        slopes = [torch.autograd.grad(output, list(model.parameters())) for output in two(model, x)]
        rows.append(torch.cat([slope.flatten() for one in slopes for slope in one]))
    expected = torch.stack(rows) @ torch.stack(rows).T
    torch.testing.assert_close(measures.tangent_kernel(model, inputs), expected)


def two(model: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    return [model(x)[0], model(x)[1]]


def test_kernel_alignment_is_the_cosine_with_the_answers_kernel() -> None:
    targets = torch.eye(3)[[0, 1, 0, 2]]
    kernel = torch.randn(4, 4)
    a, b = kernel.flatten().double().numpy(), (targets @ targets.T).flatten().double().numpy()
    expected = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert measures.kernel_alignment(kernel, targets) == pytest.approx(expected, rel=1e-5)
    assert measures.kernel_alignment(targets @ targets.T, targets) == pytest.approx(1)


def test_output_scale_is_a_root_mean_square() -> None:
    assert measures.output_scale(torch.tensor([[3.0, 4.0], [0.0, 0.0]])) == pytest.approx(2.5)


@pytest.mark.parametrize("steps", [64, 65])
def test_slow_share_divides_power_by_its_period(steps) -> None:
    stream = torch.randn(steps, 3)
    power = np.abs(np.fft.fft(stream.double().numpy(), axis=0)) ** 2  # both signs of each frequency
    slow = np.abs(np.fft.fftfreq(steps)) <= 1 / 10
    assert measures.slow_share(stream, 10) == pytest.approx(power[slow].sum() / power.sum())
    wave = torch.arange(64.0)[:, None]
    assert measures.slow_share(torch.sin(2 * torch.pi * wave / 32), 16) == pytest.approx(1)
    assert measures.slow_share(torch.sin(2 * torch.pi * wave / 4), 16) == pytest.approx(0, abs=1e-9)


def test_low_frequency_share_is_of_the_sums_over_the_residual() -> None:
    position, residual = torch.rand(30), torch.randn(30)
    power = []
    for k in range(1, 11):
        wave = [complex(math.cos(a), math.sin(a)) for a in (-2 * math.pi * k * float(x) for x in position)]
        power.append(abs(sum(float(r) * w for r, w in zip(residual, wave, strict=True)) / 30) ** 2)
    expected = sum(power[:3]) / sum(power)
    assert measures.low_frequency_share(residual, position, 10, 3) == pytest.approx(expected, rel=1e-5)


def test_cosine_is_of_all_tensors_as_one_vector() -> None:
    first, second = [torch.randn(2, 3), torch.randn(4)], [torch.randn(2, 3), torch.randn(4)]
    a, b = (np.concatenate([t.double().numpy().ravel() for t in one]) for one in (first, second))
    assert measures.cosine(first, second) == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    assert measures.cosine(first, [torch.zeros(2, 3), torch.zeros(4)]) == 0


def test_roc_area_counts_pairs_in_the_right_order() -> None:
    scores, positive = torch.randn(25), torch.arange(25) % 3 == 0
    pairs = [(p, n) for p in scores[positive].tolist() for n in scores[~positive].tolist()]
    assert measures.roc_area(scores, positive) == pytest.approx(sum(p > n for p, n in pairs) / len(pairs))
