"""Scores of examples and losses, each beside a loop or its formula."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from grokfused.losses import alignment, distillation, norm_and_direction, slerp, uniformity
from grokfused.scores import el2n, grand


@pytest.fixture
def batch() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return model, torch.randn(11, 6).double(), torch.randint(3, (11,))


def test_el2n_is_the_norm_of_the_error_of_each_example(batch) -> None:
    model, inputs, targets = batch
    logits = model(inputs).detach()
    for scores, row, target in zip(el2n(logits, targets), logits, targets, strict=True):
        shares = row.exp() / row.exp().sum()
        error = [float(share) - int(at == target) for at, share in enumerate(shares)]
        assert float(scores) == pytest.approx(math.hypot(*error), rel=1e-12)


@pytest.mark.parametrize("chunk_size", [1, 4, 64])
def test_grand_is_the_norm_of_the_gradient_of_each_example(batch, chunk_size) -> None:
    model, inputs, targets = batch
    model[0].bias.requires_grad_(False)
    found = grand(model, cross_entropy, inputs, targets, chunk_size)
    assert all(param.grad is None for param in model.parameters())
    for score, question, target in zip(found, inputs, targets, strict=True):
        model.zero_grad()
        cross_entropy(model(question[None]), target[None]).backward()
        flat = torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad])
        assert float(score) == pytest.approx(float(flat.norm()), rel=1e-12)


def test_scores_refuse_what_does_not_fit(batch) -> None:
    model, inputs, targets = batch
    with pytest.raises(ValueError, match=r"got \[11, 3\] and \[10\]"):
        el2n(model(inputs), targets[1:])
    with pytest.raises(TypeError, match=r"int64, got torch.float32"):
        el2n(model(inputs), targets.float())
    with pytest.raises(ValueError, match="got 11 and 10"):
        grand(model, cross_entropy, inputs, targets[1:])
    with pytest.raises(ValueError, match="chunk_size must be >= 1, got 0"):
        grand(model, cross_entropy, inputs, targets, 0)


def features() -> list[torch.Tensor]:
    """Student, teacher, means of classes, classes: half of the students' features are the shorter ones."""
    torch.manual_seed(6)
    student = torch.randn(8, 5).double() * torch.tensor([0.1, 10.0]).repeat(4)[:, None]
    return [student, torch.randn(8, 5).double(), torch.randn(3, 5).double(), torch.randint(3, (8,))]


def test_the_norm_and_direction_loss_is_its_formula_and_has_its_gradient() -> None:
    student, teacher, means, targets = features()
    student.requires_grad_()
    loss = norm_and_direction(student, teacher.requires_grad_(), means, targets)
    loss.backward()
    assert teacher.grad is None
    total = 0.0
    for f_s, f_t, y, slope in zip(student.detach(), teacher.detach(), targets, student.grad, strict=True):
        e = means[y] / math.sqrt(sum(float(c) ** 2 for c in means[y]))
        longest = max(f_s.norm(), f_t.norm())
        total += 1 - float(f_s @ e / longest)
        # In closed form: along the class's direction where the student is shorter, else across its feature.
        unit = f_s / f_s.norm()
        expected = -e / f_t.norm() if f_s.norm() < f_t.norm() else -(e - (e @ unit) * unit) / f_s.norm()
        # float64: autograd and the closed form order their operations differently.
        torch.testing.assert_close(slope * 8, expected, rtol=1e-12, atol=1e-12)
    assert loss.item() == pytest.approx(total / 8, rel=1e-12)
    assert torch.autograd.gradcheck(
        lambda s: norm_and_direction(s, teacher.detach(), means, targets), student
    )


def test_features_of_other_widths_are_refused() -> None:
    student, teacher, means, targets = features()
    with pytest.raises(
        ValueError, match=r"one width, got student \[8, 4\], teacher \[8, 5\], class_means \[3, 5\]"
    ):
        norm_and_direction(student[:, 1:], teacher, means, targets)


def test_what_would_be_spread_over_a_batch_silently_is_refused() -> None:
    student, teacher, means, targets = features()
    with pytest.raises(ValueError, match=r"got features \[8, 5\], targets \[1\]"):
        norm_and_direction(student, teacher, means, targets[:1])
    with pytest.raises(ValueError, match=r"got features \[8, 5\], targets \[9\]"):
        alignment(student, torch.cat((targets, targets[:1])))
    with pytest.raises(ValueError, match=r"got student \[8, 5\], teacher \[1, 5\]"):
        distillation(student, teacher[:1])
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        distillation(student, teacher, 0)


def test_distillation_is_its_formula() -> None:
    student, teacher, _, _ = features()
    expected = 0.0
    for row, truth in zip(student / 4, teacher / 4, strict=True):
        p, q = truth.exp() / truth.exp().sum(), row.exp() / row.exp().sum()
        expected += 16 * float((p * (p / q).log()).sum()) / 8
    assert float(distillation(student, teacher)) == pytest.approx(expected, rel=1e-9)


def test_alignment_and_uniformity_are_means_over_pairs() -> None:
    points, targets = normalize(torch.randn(7, 4).double(), dim=1), torch.tensor([0, 1, 0, 2, 1, 0, 3])
    pairs = [(i, j) for i in range(7) for j in range(i)]
    squares = {pair: float((points[pair[0]] - points[pair[1]]).square().sum()) for pair in pairs}
    alike = [square for (i, j), square in squares.items() if targets[i] == targets[j]]
    assert float(alignment(points, targets)) == pytest.approx(sum(alike) / len(alike), rel=1e-9)
    spread = sum(math.exp(-2 * square) for square in squares.values()) / len(pairs)
    assert float(uniformity(points)) == pytest.approx(math.log(spread), rel=1e-9)
    assert float(alignment(points, torch.arange(7))) == 0


def test_slerp_stays_on_the_sphere_and_divides_the_angle() -> None:
    first, second = normalize(torch.randn(2, 9, 4).double(), dim=-1)
    share = torch.linspace(0, 1, 9).double()
    between = slerp(first, second, share)
    torch.testing.assert_close(between.norm(dim=-1), torch.ones(9).double())
    whole, part = ((first * other).sum(-1).clamp(-1, 1).acos() for other in (second, between))
    torch.testing.assert_close(part, share * whole, rtol=1e-6, atol=1e-6)
