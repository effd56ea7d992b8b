"""torch.compile: the step is one op of the graph, the same to the bit, and compiled once."""

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from compiling import (
    EXACT,
    TRACES_BACKWARD,
    Made,
    Train,
    assert_compiled_is_the_same,
    assert_same,
    loss_of,
    made,
    needs_traced_backward,
)
from torch import Tensor, nn
from torch._dynamo.utils import counters

from grokfused import GrokAdam

pytestmark = pytest.mark.usefixtures("nothing_compiled_before")


def only_the_step(_: nn.Module, optimizer: GrokAdam) -> Train:
    return optimizer.step


def change_hyperparameters(_: nn.Module, optimizer: GrokAdam, step: int) -> None:
    optimizer.param_groups[0].update(
        lr=0.001 * (step + 1), alpha=0.9 + 0.01 * step, lamb=1.0 - step, betas=(0.8 + 0.01 * step, 0.99)
    )


def change_everything(model: nn.Module, optimizer: GrokAdam, step: int) -> None:
    """Does what an eager loop may do between two steps."""
    if step:
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        mask = torch.rand(5, 7, generator=torch.Generator().manual_seed(step)) > 0.5
        optimizer.set_mask("0.weight", mask, "freeze" if step % 2 else "zero")
    optimizer.param_groups[0].update(
        maximize=step > 1, amsgrad=step > 2, weight_decay=0.0 if step == 1 else 0.1
    )
    model[2].bias.grad = None


def change_the_filter(_: nn.Module, optimizer: GrokAdam, step: int) -> None:
    optimizer.param_groups[0].update(grad_filter=("ema", "mean", "none")[step % 3], window_size=2)


def scale_gradients(_: nn.Module, optimizer: GrokAdam, step: int) -> None:
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0 + step), torch.tensor(float(step == 1))


@pytest.mark.parametrize("backend", ["eager", EXACT, "inductor"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method`:DeprecationWarning")  # inductor's own
def test_numbers_may_change_between_compiled_steps(backend) -> None:
    assert_compiled_is_the_same(made, only_the_step, change_hyperparameters, backend=backend)
    assert not counters["graph_break"]


@pytest.mark.parametrize(
    ("options", "before"),
    [
        ({}, change_everything),
        ({"max_grad_norm": 0.3}, change_hyperparameters),
        ({"state_dtype": torch.bfloat16}, change_hyperparameters),
        ({"backend": "reference"}, change_hyperparameters),
        ({"max_grad_norm": 0.3}, scale_gradients),
        ({"grad_filter": "mean", "window_size": 2}, change_everything),
        ({}, change_the_filter),
        ({}, lambda model, *_: model.zero_grad()),
        ({}, lambda _, optimizer, step: optimizer.step()),
    ],
    ids=[
        "everything changes",
        "clipping",
        "bfloat16 states",
        "reference",
        "loss scale",
        "a window",
        "another filter",
        "no gradients",
        "eager steps between",
    ],
)
def test_a_compiled_step_does_what_an_eager_one_does(options, before) -> None:
    assert_compiled_is_the_same(lambda: made(**options), only_the_step, before)


def test_hyperparameters_that_are_tensors_may_change_in_the_graph() -> None:
    def train(_: nn.Module, optimizer: GrokAdam) -> Train:
        lr, beta = optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["betas"][1]

        def run() -> None:
            lr.mul_(0.5)
            optimizer.step()
            beta.mul_(0.9)
            optimizer.step()
            lr.mul_(1.7)

        return run

    def make() -> Made:
        return made(lr=torch.tensor(3e-3), betas=(0.87, torch.tensor(0.993)))

    assert_compiled_is_the_same(make, train)


def test_parameters_may_be_read_and_changed_in_the_graph() -> None:
    def train(model: nn.Module, optimizer: GrokAdam) -> Train:
        @torch.no_grad()
        def run() -> None:
            old = [param.clone() for param in model.parameters()]
            torch._foreach_mul_(list(model.parameters()), 0.5)
            optimizer.step()
            torch._foreach_add_(list(model.parameters()), old)

        return run

    assert_compiled_is_the_same(made, train)


@needs_traced_backward
def test_a_training_step_is_one_graph() -> None:
    def train(model: nn.Module, optimizer: GrokAdam) -> Train:
        def run() -> Tensor:
            loss = loss_of(model)
            loss.backward()
            optimizer.step()
            return loss.detach()

        return run

    def before(model: nn.Module, optimizer: GrokAdam, step: int) -> None:
        change_hyperparameters(model, optimizer, step)
        optimizer.zero_grad()

    assert_compiled_is_the_same(made, train, before)


def test_a_training_step_breaks_only_where_torch_breaks_it() -> None:
    def train(model: nn.Module, optimizer: GrokAdam) -> Train:
        def run() -> None:
            optimizer.zero_grad()
            loss_of(model).backward()
            optimizer.step()

        return run

    with torch._dynamo.config.patch(trace_autograd_ops=False) if TRACES_BACKWARD else nullcontext():
        (_, plain), (_, traced) = pair = made(), made()
        runs = train(*pair[0]), torch.compile(train(*pair[1]), backend=EXACT)
        for _ in range(3):
            for run in runs:
                run()
    assert_same(traced, plain)
    assert len(counters["graph_break"]) == 2, "Tensor.backward and Optimizer.zero_grad"
    assert not any("_untraced_step" in reason for reason in counters["graph_break"])


@needs_traced_backward
def test_closures_and_hooks_are_traced() -> None:
    def train(model: nn.Module, optimizer: GrokAdam) -> Train:
        def halve_gradients(*_: Any) -> None:
            torch._foreach_mul_([param.grad for param in model.parameters()], 0.5)

        def decay(*_: Any) -> None:
            with torch.no_grad():
                torch._foreach_mul_(list(model.parameters()), 0.9)

        optimizer.register_step_pre_hook(halve_gradients)
        optimizer.register_step_post_hook(decay)

        def closure() -> Tensor:
            loss = loss_of(model)
            loss.backward()
            return loss.detach()

        return lambda: optimizer.step(closure)

    assert_compiled_is_the_same(made, train)
