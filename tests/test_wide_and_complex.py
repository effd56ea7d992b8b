"""Parameters of float64 and complex ones: stepped, saved and loaded as torch.optim does it."""

import copy

import pytest
import torch
from stepping import BACKENDS, OPTIONS, assert_same_bits, randn, train, ulps_of_the_largest, values
from torch import Tensor, nn

from grokfused import BackendUnavailable, GrokAdamW

COMPLEX = (torch.complex64, torch.complex128)


def numbers(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_made_under_a_default_of_float64_trains_as_with_torch(backend) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        ours = nn.Linear(7, 5)
        theirs = copy.deepcopy(ours)
        a = GrokAdamW(ours.parameters(), lr=0.01, lamb=0.0, max_grad_norm=0.5, backend=backend)
        b = torch.optim.AdamW(theirs.parameters(), lr=0.01)
        for seed in range(5):
            for model, optimizer in ((ours, a), (theirs, b)):
                optimizer.zero_grad()
                model(numbers((3, 7), torch.float64, seed)).square().sum().backward()
            torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
            a.step()
            b.step()
    finally:
        torch.set_default_dtype(torch.float32)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert ulps_of_the_largest(mine.detach(), other.detach()) <= 8
        assert a.state[mine]["exp_avg"].dtype is torch.float64


@pytest.mark.parametrize("lazily", [torch.conj, torch._neg_view], ids=["conj", "neg"])
@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_complex_gradient_is_read_as_torch_reads_it(backend, dtype, lazily) -> None:
    found = []
    for resolved in (False, True):
        param = numbers((9, 4), dtype).requires_grad_()
        optimizer = GrokAdamW([param], backend=backend, **OPTIONS)
        for seed in range(3):
            grad = lazily(numbers((9, 4), dtype, seed + 1))
            param.grad = grad.resolve_conj().resolve_neg() if resolved else grad
            optimizer.step()
        found.append(param.detach())
    assert torch.equal(*found)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", COMPLEX, ids=str)
def test_a_complex_parameter_is_two_real_ones(dtype, backend) -> None:
    def run(real: bool) -> Tensor:
        param = numbers((3, 5), dtype).t()  # and lies otherwise
        param = (torch.view_as_real(param) if real else param).detach().requires_grad_()
        optimizer = GrokAdamW([param], backend=backend, amsgrad=True, **OPTIONS)
        for seed in range(3):
            grad = numbers((5, 3), dtype, seed + 1)
            param.grad = torch.view_as_real(grad) if real else grad
            optimizer.step()
        return param.detach() if real else torch.view_as_real(param.detach())

    assert torch.equal(run(False), run(True))


def test_a_mask_of_a_complex_parameter_is_refused() -> None:
    param = numbers((4,), torch.complex64).requires_grad_()
    optimizer = GrokAdamW([param])
    with pytest.raises(TypeError, match="masks of complex parameters are not supported"):
        optimizer.set_mask(param, torch.ones(4, dtype=torch.bool))


@pytest.mark.parametrize("backend", BACKENDS)
def test_states_are_widened_with_their_parameter(backend) -> None:
    optimizers = [
        GrokAdamW([randn(6, 5).requires_grad_()], backend=backend, state_dtype=torch.bfloat16, **OPTIONS)
        for _ in range(2)
    ]
    for optimizer in optimizers:
        train(optimizer, 3)
        (param,) = optimizer.param_groups[0]["params"]
        param.data, param.grad = param.data.double(), None
    by_hand = optimizers[1].state[param]
    for name in ("exp_avg", "exp_avg_sq", "grad_ema"):
        by_hand[name] = by_hand[name].double()
    for optimizer in optimizers:
        optimizer.param_groups[0]["params"][0].grad = numbers((6, 5), torch.float64)
        optimizer.step()
    assert_same_bits(*map(values, optimizers))


def test_complex_states_are_not_made_of_real_ones() -> None:
    param = randn(6, 5).requires_grad_()
    optimizer = GrokAdamW([param], **OPTIONS)
    train(optimizer, 1)
    param.data, param.grad = param.data.to(torch.complex64), None
    param.grad = numbers((6, 5), torch.complex64)
    with pytest.raises(RuntimeError, match=r"'exp_avg' of .* must be torch.complex64 like the parameter"):
        optimizer.step()


@pytest.mark.parametrize(("saved", "own"), [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_a_checkpoint_of_torchs_is_cast_to_the_parameters_dtype(saved, own) -> None:
    theirs = torch.optim.AdamW([randn(6, 5).to(saved).requires_grad_()])
    train(theirs, 3)
    param = randn(6, 5).to(own).requires_grad_()
    ours = GrokAdamW([param])
    ours.load_state_dict(theirs.state_dict())
    for name in ("exp_avg", "exp_avg_sq"):
        state, original = ours.state[param][name], theirs.state_dict()["state"][0][name]
        assert state.dtype is own
        assert torch.equal(state, original.to(own))
    back = torch.optim.AdamW([param])
    back.load_state_dict(ours.torch_state_dict())
    assert back.state[param]["exp_avg"].dtype is own
    train(ours, 1)


@pytest.mark.parametrize("dtype", [torch.float64, *COMPLEX], ids=str)
def test_a_checkpoint_goes_on_bit_for_bit(dtype) -> None:
    optimizers = [GrokAdamW([numbers((6, 5), dtype).requires_grad_()], **OPTIONS) for _ in range(2)]
    for optimizer in optimizers:
        optimizer.param_groups[0]["params"][0].grad = numbers((6, 5), dtype, 3)
        optimizer.step()
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for optimizer in optimizers:
        optimizer.step()
    assert_same_bits(*map(values, optimizers))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_triton_refuses_what_it_would_compute_in_float32(dtype) -> None:
    param = torch.ones(3, dtype=dtype, requires_grad=True)
    param.grad = torch.ones_like(param)
    with pytest.raises(BackendUnavailable, match="triton"):
        GrokAdamW([param], backend="triton").step()


def test_a_compiled_step_of_complex_parameters_breaks_the_graph() -> None:
    found = []
    for compile_ in (lambda step: step, lambda step: torch.compile(step, backend="eager")):
        param = numbers((4,), torch.complex64).requires_grad_()
        optimizer = GrokAdamW([param], **OPTIONS)
        step = compile_(lambda optimizer=optimizer: optimizer.step())
        for seed in range(2):
            param.grad = numbers((4,), torch.complex64, seed + 1)
            step()
        found.append(param.detach())
    assert torch.equal(*found)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        torch.compile(lambda: optimizer.step(), backend="eager", fullgraph=True)()
