"""Steps during the backward pass: the values of the ordinary step, and no gradient left."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from stepping import BACKENDS, OPTIONS, values
from torch import nn

from grokfused import GrokAdamW, step_in_backward
from grokfused.lab.agreement import differing_bits

Train = Callable[[nn.Module, GrokAdamW, int], None]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and not any(differing_bits(a[name], b[name]) for name in a)


class Model(nn.Module):
    """Two layers, one of them used twice, and a parameter that the loss does not know."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(7, 7), nn.Linear(7, 3)
        self.unused = nn.Parameter(torch.ones(5))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(self.first(inputs).tanh()).tanh())


def made(backend: str, **options: Any) -> tuple[Model, GrokAdamW]:
    model = Model()
    groups = [
        {"params": list(model.first.named_parameters(prefix="first"))},
        {"params": [*model.second.named_parameters(prefix="second"), ("unused", model.unused)], "lr": 7e-3},
    ]
    return model, GrokAdamW(groups, **OPTIONS, **options, backend=backend)


def backward(model: Model, number: int) -> None:
    torch.manual_seed(100 + number)
    model(torch.randn(5, 7)).square().mean().backward()


def ordinary(model: Model, optimizer: GrokAdamW, number: int) -> None:
    optimizer.zero_grad()
    backward(model, number)
    optimizer.step()


def in_the_backward(model: Model, optimizer: GrokAdamW, number: int) -> None:
    backward(model, number)
    assert all(param.grad is None for param in model.parameters())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"state_dtype": torch.bfloat16, "seed": 5},
        {"amsgrad": True, "maximize": True},
        {"grad_filter": "none"},
        {"grad_filter": "mean", "window_size": 3},
    ],
    ids=str,
)
def test_it_equals_the_ordinary_step_bit_for_bit(backend, options) -> None:
    model, optimizer = made(backend, **options)
    other, plain = made(backend, **options)
    step_in_backward(optimizer)
    for number in range(5):
        in_the_backward(model, optimizer, number)
        ordinary(other, plain, number)
        assert same(values(optimizer), values(plain))
    assert model.unused not in optimizer.state


def test_a_gradient_is_freed_before_the_next_one_comes() -> None:
    model, optimizer = made("native")
    seen = []
    model.first.weight.register_hook(lambda _: seen.append(model.second.weight.grad))
    with step_in_backward(optimizer):
        backward(model, 0)
    assert seen == [None]
    backward(model, 1)
    assert seen[1] is not None, "without the handle the gradient of the later layer is there by then"


def with_a_scheduler(take: Train, model: Model, optimizer: GrokAdamW) -> None:
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.01, 0.02], total_steps=6)
    for number in range(5):
        take(model, optimizer, number)
        optimizer.step() if optimizer._in_backward else None
        scheduler.step()


def with_masks(take: Train, model: Model, optimizer: GrokAdamW) -> None:
    mask = torch.arange(49).view(7, 7) % 3 > 0
    take(model, optimizer, 0)
    optimizer.set_mask("first.weight", mask)
    take(model, optimizer, 1)
    optimizer.set_mask("first.weight", ~mask, "freeze")
    take(model, optimizer, 2)
    optimizer.remove_mask("first.weight")
    take(model, optimizer, 3)


def with_changed_options(take: Train, model: Model, optimizer: GrokAdamW) -> None:
    take(model, optimizer, 0)
    optimizer.param_groups[0]["lamb"] = 5.0
    take(model, optimizer, 1)
    optimizer.param_groups[1]["grad_filter"] = "none"
    take(model, optimizer, 2)
    moved = optimizer.param_groups[0]["params"].pop()
    optimizer.param_groups[0]["param_names"].pop()
    optimizer.param_groups[1]["params"].append(moved)
    optimizer.param_groups[1]["param_names"].append("moved")
    take(model, optimizer, 3)


def with_a_checkpoint(take: Train, model: Model, optimizer: GrokAdamW) -> None:
    take(model, optimizer, 0)
    saved = copy.deepcopy(optimizer.state_dict())
    weights = copy.deepcopy(model.state_dict())
    take(model, optimizer, 1)
    model.load_state_dict(weights)
    optimizer.load_state_dict(saved)
    take(model, optimizer, 2)
    take(model, optimizer, 3)


def with_a_layer_frozen_at_first(take: Train, model: Model, optimizer: GrokAdamW) -> None:
    for number in range(4):
        model.first.requires_grad_(number >= 2)
        take(model, optimizer, number)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "train",
    [with_a_scheduler, with_masks, with_changed_options, with_a_checkpoint, with_a_layer_frozen_at_first],
    ids=lambda train: train.__name__,
)
def test_it_follows_what_changes_between_steps(backend, train) -> None:
    results = []
    for take in (ordinary, in_the_backward):
        model, optimizer = made(backend)
        if train is with_a_layer_frozen_at_first:
            model.first.requires_grad_(False)
        if take is in_the_backward:
            step_in_backward(optimizer)
        train(take, model, optimizer)
        results.append(values(optimizer))
    assert same(*results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_both_ways_may_take_turns(backend) -> None:
    model, optimizer = made(backend)
    other, plain = made(backend)
    for number in range(6):
        ordinary(other, plain, number)
        if number % 2:
            ordinary(model, optimizer, number)
            optimizer.zero_grad()
            continue
        with step_in_backward(optimizer) as handle:
            in_the_backward(model, optimizer, number)
        handle.remove()  # once more, which does nothing
    assert same(values(optimizer), values(plain))


def test_a_copy_of_the_optimizer_takes_ordinary_steps() -> None:
    model, optimizer = made("native")
    step_in_backward(optimizer)
    backward(model, 0)
    duplicate, other = copy.deepcopy((optimizer, model))
    backward(other, 1)
    duplicate.step()
    backward(model, 1)
    assert same(values(optimizer), values(duplicate))


def test_what_cannot_work_with_it_is_refused_at_once() -> None:
    model, optimizer = made("native")
    with pytest.raises(TypeError, match="takes a GrokAdam or GrokAdamW, got AdamW"):
        step_in_backward(torch.optim.AdamW(model.parameters()))
    _, clipping = made("native", max_grad_norm=1.0)
    with pytest.raises(ValueError, match=r"max_grad_norm=1\.0 cannot be used with step_in_backward"):
        step_in_backward(clipping)
    model.second.bias.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"'second.bias' of group 1 .* has a gradient: zero_grad"):
        step_in_backward(optimizer)
    optimizer.zero_grad()
    handle = step_in_backward(optimizer)
    with pytest.raises(RuntimeError, match="steps in backward already"):
        step_in_backward(optimizer)
    handle.remove()
    step_in_backward(optimizer)


def test_clipping_turned_on_later_is_refused_in_the_backward_pass() -> None:
    model, optimizer = made("native")
    step_in_backward(optimizer)
    before = values(optimizer)
    for group in optimizer.param_groups:
        group["max_grad_norm"] = 1.0
    with pytest.raises(ValueError, match=r"max_grad_norm=1\.0 cannot be used"):
        backward(model, 0)
    assert same(values(optimizer), before)
    assert not optimizer.state


def test_a_loss_scale_is_refused_by_name() -> None:
    model, optimizer = made("native")
    step_in_backward(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.ones(1, 7)).sum()).backward()
    with pytest.raises(RuntimeError, match="step_in_backward and GradScaler cannot be combined"):
        scaler.step(optimizer)
    optimizer.grad_scale = torch.tensor(2.0)
    before = values(optimizer)
    with pytest.raises(RuntimeError, match="grad_scale is set"):
        backward(model, 0)
    assert same(values(optimizer), before)


def test_leftover_gradients_are_refused_by_name() -> None:
    model, optimizer = made("native")
    step_in_backward(optimizer)
    model.unused.grad = torch.ones(5)
    with pytest.raises(RuntimeError, match=r"'unused' of group 1 .* has a gradient: with step_in_backward"):
        optimizer.step()
    optimizer.zero_grad()
    late = nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [("late", late)]})
    late.sum().backward()
    with pytest.raises(RuntimeError, match=r"'late' of group 2 .* needs the ordinary step, or a new handle"):
        optimizer.step()


def test_accumulation_is_told_where_the_step_is_called() -> None:
    model, optimizer = made("native")
    step_in_backward(optimizer)
    for number in range(3):
        backward(model, number)
        optimizer.step()
    backward(model, 3)
    backward(model, 4)
    with pytest.raises(RuntimeError, match=r"has taken 2 steps since the last optimizer\.step\(\)"):
        optimizer.step()


def test_a_gradient_that_does_not_fit_stops_the_backward_pass_and_changes_nothing() -> None:
    param = nn.Parameter(torch.ones(4, 2))
    optimizer = GrokAdamW([("table", param)], **OPTIONS)
    step_in_backward(optimizer)
    with pytest.raises(RuntimeError, match=r"table.*sparse"):
        nn.functional.embedding(torch.tensor([1]), param, sparse=True).sum().backward()
    assert torch.equal(param, torch.ones(4, 2))
    assert not optimizer.state


def test_the_step_runs_its_closure_and_hooks_and_steps_once() -> None:
    model, optimizer = made("native")
    other, plain = made("native")
    step_in_backward(optimizer)
    seen = []
    optimizer.register_step_post_hook(lambda *_: seen.append(1))

    def closure() -> float:
        backward(model, 0)
        return 1.5

    assert optimizer.step(closure) == 1.5
    assert seen == [1]
    ordinary(other, plain, 0)
    assert same(values(optimizer), values(plain))
