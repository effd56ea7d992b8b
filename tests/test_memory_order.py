"""Parameters may lie in memory in any order, and change it."""

from collections.abc import Callable, Iterator

import pytest
import torch
from stepping import BACKENDS, OPTIONS, assert_same_bits, new_param, randn, train, values
from torch import Tensor

from grokfused import BackendUnavailable, GrokAdamW, backends
from grokfused.lab.agreement import differing_bits

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "odd offset": lambda region: region.view(24),
    "transposed": lambda region: region.view(4, 6).t(),
    "channels last": lambda region: region.view(1, 2, 3, 4).permute(0, 3, 1, 2),
}


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_dense_view_is_updated_in_place_and_its_neighbours_are_not(backend, dtype, view) -> None:
    base = randn(3 + 24 + 5).to(dtype)
    neighbours = torch.cat([base[:3], base[-5:]])
    param = VIEWS[view](base[3:-5]).requires_grad_()
    assert param.data_ptr() == base[3:].data_ptr()
    plain = param.detach().contiguous().clone().requires_grad_()
    train(GrokAdamW([plain], backend=backend, **OPTIONS), 3)
    train(GrokAdamW([param], backend=backend, **OPTIONS), 3)
    assert param.data_ptr() == base[3:].data_ptr()
    assert differing_bits(param.detach(), plain.detach()) == 0
    assert differing_bits(VIEWS[view](base[3:-5]), plain.detach()) == 0
    assert differing_bits(torch.cat([base[:3], base[-5:]]), neighbours) == 0


@pytest.fixture
def _fresh_choice() -> Iterator[None]:
    """The warning about the slow backend comes once per process: forget that it came."""
    backends.choose.cache_clear()
    yield
    backends.choose.cache_clear()


@pytest.mark.usefixtures("_fresh_choice")
def test_a_view_with_gaps_takes_the_reference_and_says_so() -> None:
    base = randn(5, 8)
    between = base[:, 1::2].clone()
    param = base[:, ::2].requires_grad_()
    plain = param.detach().contiguous().clone().requires_grad_()
    optimizer = GrokAdamW([param], backend="auto", **OPTIONS)
    with pytest.warns(RuntimeWarning, match=r"slow reference backend.*gaps in its memory"):
        train(optimizer, 1)
    train(optimizer, 2, seed=5)
    single = GrokAdamW([plain], **OPTIONS)
    train(single, 1)
    train(single, 2, seed=5)
    assert_same_bits(values(optimizer), values(single))
    assert differing_bits(base[:, ::2], plain.detach()) == 0
    assert differing_bits(base[:, 1::2], between) == 0


@pytest.mark.usefixtures("_fresh_choice")
def test_a_parameter_negated_when_read_takes_the_reference_or_is_refused() -> None:
    base = randn(5, 8)
    plain = (-base).requires_grad_()
    optimizer = GrokAdamW([torch._neg_view(base).requires_grad_()], backend="native", **OPTIONS)
    with pytest.raises(BackendUnavailable, match="negated or conjugated only when read"):
        train(optimizer, 1)
    assert not optimizer.state
    optimizer.param_groups[0]["backend"] = "auto"
    with pytest.warns(RuntimeWarning, match=r"slow reference backend.*negated or conjugated only when read"):
        train(optimizer, 3)
    single = GrokAdamW([plain], **OPTIONS)
    train(single, 3)
    assert differing_bits(-base, plain.detach()) == 0


def test_a_view_with_gaps_is_refused_by_the_native_backend() -> None:
    base = randn(5, 8)
    before = base.clone()
    optimizer = GrokAdamW([base[:, ::2].requires_grad_()], backend="native", **OPTIONS)
    with pytest.raises(BackendUnavailable, match="gaps in its memory"):
        train(optimizer, 1)
    assert differing_bits(base, before) == 0


@pytest.mark.parametrize("grad_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parameter_whose_memory_order_changes_goes_on(backend, grad_format) -> None:
    results = []
    for change in (False, True):
        param = new_param(2, 3, 4, 5)
        optimizer = GrokAdamW([param], backend=backend, **OPTIONS)
        train(optimizer, 2)
        if change:  # what model.to(memory_format=torch.channels_last) does
            param.data = param.data.contiguous(memory_format=torch.channels_last)
        for seed in range(2):
            param.grad = randn(2, 3, 4, 5, seed=seed).contiguous(memory_format=grad_format)
            optimizer.step()
        results.append(values(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parameter_transposed_where_it_lies_goes_on(backend) -> None:
    # The same address and size, another memory order: element [i, j] of the states stays with [i, j].
    results = []
    for copied in (False, True):
        param = new_param(4, 4)
        optimizer = GrokAdamW([param], backend=backend, **OPTIONS)
        train(optimizer, 2)
        param.data = param.data.t().contiguous() if copied else param.data.t()
        train(optimizer, 2, seed=5)
        results.append(values(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_cast_to_bfloat16_goes_on_with_its_float32_states(backend) -> None:
    params = [new_param(5), new_param(6)]
    optimizer = GrokAdamW(params, backend=backend, **OPTIONS)
    train(optimizer, 2)
    for param in params[1:]:  # a part of the model, so that one bucket becomes two
        param.grad = None
        param.data = param.data.bfloat16()
    train(optimizer, 2, seed=5)
    assert params[1].dtype is torch.bfloat16
    assert [optimizer.state[param]["step"].item() for param in params] == [4, 4]
    assert {optimizer.state[param]["exp_avg"].dtype for param in params} == {torch.float32}
