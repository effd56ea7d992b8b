"""Tensors that torch changes when it reads them, or that lie where a step writes."""

import itertools

import pytest
import torch
from stepping import BACKENDS, OPTIONS, assert_same_bits, new_param, randn, train, values

from grokfused import GrokAdamW
from grokfused.backends import native
from grokfused.step import engine


@pytest.mark.parametrize("learned", [True, False], ids=["learned", "asked"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_lazily_negated_gradient_is_read_with_its_sign(backend, learned, monkeypatch) -> None:
    # What autograd leaves behind a conjugate: memory holds -g, and a bit says so.
    if backend == "native":
        assert native.table.knows_keys
        unlearned = native.new_table(lambda tensor: 1)
        assert not unlearned.knows_keys
        monkeypatch.setattr(engine.backends, "native_table", lambda: native.table if learned else unlearned)
    results = []
    for negated in (False, True):
        param = new_param(9)
        optimizer = GrokAdamW([param], backend=backend, **OPTIONS)
        for seed in range(3):
            grad = randn(9, seed=seed)
            param.grad = torch._neg_view(-grad) if negated else grad
            optimizer.step()
        results.append(values(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_in_inference_mode_and_outside_are_the_same(backend, masked) -> None:
    found = []
    for modes in (itertools.repeat(False), itertools.cycle([True, False])):
        param = new_param(4, 5)
        optimizer = GrokAdamW([param], backend=backend, **OPTIONS)
        for seed, mode in zip(range(4), modes, strict=False):
            with torch.inference_mode(mode):
                if masked and seed == 0:
                    optimizer.set_mask(param, randn(4, 5) > 0)
                param.grad = randn(4, 5, seed=seed)
                optimizer.step()
        optimizer.load_state_dict(optimizer.state_dict())
        optimizer.step()
        found.append(values(optimizer))
    assert_same_bits(*found)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_lazily_zero_gradient_is_zero(backend) -> None:
    results = []
    for zeros in (torch._efficientzerotensor((3, 4)), torch.zeros(3, 4)):
        param = new_param(3, 4)
        optimizer = GrokAdamW([param], backend=backend, **OPTIONS)
        for grad in (randn(3, 4), zeros, randn(3, 4, seed=1)):
            param.grad = grad
            optimizer.step()
        results.append(values(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_that_is_the_parameters_own_memory_is_read_before_it_is_written(backend) -> None:
    found = []
    for own in (False, True):
        param = new_param(4, 5)
        optimizer = GrokAdamW([param], backend=backend, **OPTIONS)
        for _ in range(3):
            param.grad = param.data if own else param.data.clone()
            optimizer.step()
        found.append(values(optimizer))
    assert_same_bits(*found)


@pytest.mark.parametrize("name", ["exp_avg", "step", "grad_scale"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_negated_when_it_is_read_is_read_so(backend, name) -> None:
    found = []
    for negated in (False, True):
        param = new_param(4, 5)
        optimizer = GrokAdamW([param], backend=backend, **OPTIONS)
        train(optimizer, 2)
        number = torch.tensor(2.0) if name == "grad_scale" else optimizer.state[param][name]
        number = torch._neg_view(-number) if negated else number
        if name == "grad_scale":
            optimizer.grad_scale = number
        else:
            optimizer.state[param][name] = number
        train(optimizer, 2)
        found.append(values(optimizer))
    assert_same_bits(*found)


def test_columns_of_one_matrix_are_stepped_like_parameters_of_their_own() -> None:
    matrix = new_param(8, 5).detach()
    apart = [column.clone().requires_grad_() for column in matrix.unbind(1)]
    together = [matrix[:, k].detach().requires_grad_() for k in range(5)]
    found = []
    for params in (apart, together):
        optimizer = GrokAdamW(params, backend="reference", **OPTIONS)
        train(optimizer, 3)
        found.append([param.detach().clone() for param in params])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
