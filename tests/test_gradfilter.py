"""grokfused.compat's functions of the Grokfast authors' file, beside independent transcriptions of it."""

import copy
import math
from collections import deque

import pytest
import torch
from stepping import assert_same_bits, randn, through_a_file, values
from torch import Tensor, nn

from grokfused import GrokAdamW
from grokfused.compat import gradfilter_ema, gradfilter_ma
from grokfused.lab.agreement import differing_bits


def model_of(dtype: torch.dtype = torch.float32) -> nn.Module:
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).to(dtype)
    for number, param in enumerate(model.parameters()):
        param.data.copy_(randn(*param.shape, seed=number))
    return model


def give_gradients(model: nn.Module, step: int, late: str = "", absent: bool = False) -> None:
    """Gradients of a step: none at all for ``late`` before step 4, some absent in between."""
    for number, (name, param) in enumerate(model.named_parameters()):
        gone = (name == late and step < 4) or (absent and (step + number) % 5 == 0)
        param.grad = None if gone else randn(*param.shape, seed=100 * step + number).to(param.dtype)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: param.grad.clone() for name, param in model.named_parameters() if param.grad is not None}


class TestEma:
    def test_it_is_the_authors_function(self) -> None:
        """h = alpha h + (1 - alpha) g from the first g on; g += lamb h; in float64."""
        model, grads, slow = model_of(), None, {}
        for step in range(30):
            give_gradients(model, step, late="1.bias", absent=True)
            raw = {name: grad.double() for name, grad in gradients(model).items()}
            grads = gradfilter_ema(model, grads, 0.9, 1.5)
            for name, grad in raw.items():
                slow[name] = 0.9 * slow.get(name, grad) + (1 - 0.9) * grad
                expected = grad + 1.5 * slow[name]
                found = gradients(model)[name].double()
                assert (found - expected).abs().max() <= 1e-6 * expected.abs().max()
                assert (grads[name].double() - slow[name]).abs().max() <= 1e-6 * slow[name].abs().max()
        assert list(grads) == list(slow)

    @pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
    @pytest.mark.parametrize(
        "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str
    )
    def test_its_bits_are_those_of_the_step(self, dtype) -> None:
        """The slow gradient of a GrokAdamW; and, of float32 parameters, the step on what it has amplified."""
        fused, plain, grads = model_of(dtype), model_of(dtype), None
        amplifies = GrokAdamW(fused.parameters(), lr=1e-2, alpha=0.9, lamb=1.5)
        steps = GrokAdamW(plain.parameters(), lr=1e-2, grad_filter="none")
        for step in range(8):
            for model in (fused, plain):
                give_gradients(model, step, late="1.bias")
            grads = gradfilter_ema(plain, grads, 0.9, 1.5)
            amplifies.step()
            steps.step()
        for name, param in fused.named_parameters():
            assert grads[name].dtype == amplifies.state[param]["grad_ema"].dtype
            assert not differing_bits(grads[name], amplifies.state[param]["grad_ema"])
        if dtype is not torch.bfloat16:  # its amplified gradients are rounded on their way
            found = {
                name: value for name, value in values(amplifies).items() if not name.endswith("grad_ema")
            }
            assert_same_bits(found, values(steps))

    def test_the_first_call_amplifies_by_1_plus_lamb_and_shares_no_memory(self) -> None:
        model = model_of()
        give_gradients(model, 0)
        raw, held = gradients(model), {name: param.grad for name, param in model.named_parameters()}
        grads = gradfilter_ema(model)
        for name, param in model.named_parameters():
            assert param.grad is held[name]
            assert torch.equal(grads[name], raw[name])
            assert torch.equal(param.grad, raw[name] + 2.0 * raw[name])
        before = copy.deepcopy(grads)
        for param in model.parameters():
            param.grad.zero_()  # as zero_grad(set_to_none=False) does
        assert all(torch.equal(grads[name], before[name]) for name in grads)

    def test_the_same_gradient_again_and_again_is_amplified_alike(self) -> None:
        """3, 3, 3 becomes 9, 9, 9; where memory and gradient are one tensor, 3.0, 6.9, 6.8 (measured)."""
        model, grads = nn.Linear(1, 1, bias=False), None
        for _ in range(5):
            model.weight.grad = torch.full((1, 1), 3.0)
            grads = gradfilter_ema(model, grads)
            assert model.weight.grad.item() == pytest.approx(9.0, rel=1e-6)

    def test_what_it_returns_can_be_saved_and_is_what_was_given(self) -> None:
        whole, resumed, grads = model_of(), model_of(), None
        for step in range(3):
            give_gradients(whole, step)
            grads = gradfilter_ema(whole, grads)
        saved = through_a_file(grads)
        for model, memory in ((whole, grads), (resumed, saved)):
            give_gradients(model, 3)
            assert gradfilter_ema(model, memory) is memory
        assert_same_bits(gradients(whole), gradients(resumed))
        assert_same_bits(grads, saved)

    def test_frozen_parameters_are_left_alone(self) -> None:
        model = model_of()
        give_gradients(model, 0)
        model[0].requires_grad_(False)
        before = gradients(model)
        assert list(gradfilter_ema(model)) == ["1.weight", "1.bias"]
        assert torch.equal(model[0].weight.grad, before["0.weight"])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"alpha": 1.0}, "Invalid alpha value: 1.0"),
            ({"lamb": math.inf}, "Invalid lamb value: inf"),
            ({"grads": []}, "grads must be None or what the last call returned, got list"),
            ({"grads": {"1.bias": None}}, r"grads\['1.bias'\] must be a tensor, got NoneType"),
            ({"grads": {"1.bias": torch.ones(9)}}, r"grads\['1.bias'\] has shape \[9\], the gradient \[3\]"),
        ],
        ids=str,
    )
    def test_what_does_not_fit_is_refused_and_changes_nothing(self, arguments, message) -> None:
        model = model_of()
        give_gradients(model, 0)
        before = gradients(model)
        with pytest.raises((TypeError, ValueError), match=message):
            gradfilter_ema(model, **arguments)
        assert_same_bits(before, gradients(model))

    def test_a_sparse_gradient_is_refused_by_name(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3), nn.Embedding(4, 2, sparse=True))
        model[0].weight.grad = torch.ones(3, 3)
        model[1](torch.tensor([1])).sum().backward()
        with pytest.raises(RuntimeError, match=r"the gradient of '1.weight' has layout torch.sparse_coo"):
            gradfilter_ema(model)
        assert torch.equal(model[0].weight.grad, torch.ones(3, 3))


class TestMa:
    @pytest.mark.parametrize("trigger", [False, True])
    @pytest.mark.parametrize("warmup", [True, False])
    @pytest.mark.parametrize("filter_type", ["mean", "sum"])
    def test_it_is_the_authors_function(self, filter_type, warmup, trigger) -> None:
        """A deque of the last w gradients; (not warmup) or (full and not trigger); in float64."""
        model, grads, queues, amplified = model_of(), None, {}, 0
        for step in range(30):
            give_gradients(model, step, late="1.bias", absent=True)
            raw, held = gradients(model), trigger and step < 20
            grads = gradfilter_ma(model, grads, 7, 1.5, filter_type, warmup, held)
            for name, grad in raw.items():
                queue = queues.setdefault(name, deque(maxlen=7))
                queue.append(grad.double())
                found, expected = gradients(model)[name], grad.double()
                if not warmup or (len(queue) == 7 and not held):
                    amplified += 1
                    expected = expected + 1.5 * sum(queue) / (len(queue) if filter_type == "mean" else 1)
                    assert not torch.equal(found, grad)
                    assert (found.double() - expected).abs().max() <= 2e-6 * expected.abs().max()
                else:
                    assert torch.equal(found, grad)
        assert amplified > 20
        assert list(grads) == list(queues)

    @pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
    @pytest.mark.parametrize(
        "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str
    )
    def test_its_bits_are_those_of_the_step(self, dtype) -> None:
        fused, plain, grads = model_of(dtype), model_of(dtype), None
        options = {"grad_filter": "mean", "window_size": 3, "lamb": 1.5}
        amplifies = GrokAdamW(fused.parameters(), lr=1e-2, **options)
        steps = GrokAdamW(plain.parameters(), lr=1e-2, grad_filter="none")
        for step in range(8):
            for model in (fused, plain):
                give_gradients(model, step, late="1.bias")
            grads = gradfilter_ma(plain, grads, 3, 1.5)
            amplifies.step()
            steps.step()
        for name, param in fused.named_parameters():
            for key in ("grad_window", "grad_sum"):
                found = amplifies.state[param][key]
                found = torch.view_as_real(found) if found.is_complex() else found
                assert not differing_bits(grads[name][key], found)
        if dtype is not torch.bfloat16:  # its amplified gradients are rounded on their way
            left = ("grad_window", "grad_sum", "grad_window_start")
            found = {name: value for name, value in values(amplifies).items() if not name.endswith(left)}
            assert_same_bits(found, values(steps))

    def test_gradients_that_are_cleared_in_place_stay_in_the_window(self) -> None:
        """3, 3, 3 becomes 18, 18, 18; where the window holds the gradients themselves, less (measured)."""
        model, grads = nn.Linear(1, 1, bias=False), None
        for _ in range(5):
            if model.weight.grad is None:
                model.weight.grad = torch.zeros(1, 1)
            model.weight.grad.zero_().add_(3.0)
            grads = gradfilter_ma(model, grads, 4, warmup=False)
            assert model.weight.grad.item() == pytest.approx(18.0, rel=1e-6)

    def test_what_it_returns_can_be_saved_and_is_what_was_given(self) -> None:
        whole, resumed, grads = model_of(), model_of(), None
        for step in range(5):
            give_gradients(whole, step)
            grads = gradfilter_ma(whole, grads, 3)
        saved = through_a_file(grads)
        for model, memory in ((whole, grads), (resumed, saved)):
            give_gradients(model, 5)
            assert gradfilter_ma(model, memory, 3) is memory
        assert_same_bits(gradients(whole), gradients(resumed))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"window_size": 0}, "window_size must be an integer >= 1, got 0"),
            ({"window_size": 2.0}, "window_size must be an integer >= 1, got 2.0"),
            ({"window_size": 4}, "is a window of 3, and window_size is 4"),
            ({"lamb": math.nan}, "Invalid lamb value: nan"),
            ({"filter_type": "median"}, "filter_type must be 'mean' or 'sum', got 'median'"),
            ({"warmup": 1}, "warmup must be True or False, got 1"),
            (
                {"grads": {"1.bias": torch.ones(3)}},
                r"grads\['1.bias'\] must be what gradfilter_ma has returned",
            ),
        ],
        ids=str,
    )
    def test_what_does_not_fit_is_refused_and_changes_nothing(self, arguments, message) -> None:
        model = model_of()
        give_gradients(model, 0)
        grads = gradfilter_ma(model, window_size=3)
        before, kept = gradients(model), copy.deepcopy(grads)
        with pytest.raises((TypeError, ValueError), match=message):
            gradfilter_ma(model, **{"grads": grads, "window_size": 3, **arguments})
        assert_same_bits(before, gradients(model))
        for name, of in grads.items():
            assert all(torch.equal(torch.as_tensor(of[key]), torch.as_tensor(kept[name][key])) for key in of)
