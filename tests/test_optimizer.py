"""The optimizers beside torch.optim and the paper, and what they make of gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from stepping import (
    ADAM,
    BACKENDS,
    OPTIONS,
    assert_same_bits,
    new_param,
    randn,
    train,
    ulps_of_the_largest,
    values,
)
from torch import Tensor

from grokfused import GrokAdam, GrokAdamW
from grokfused.lab.agreement import differing_bits

PAIRS = [(GrokAdamW, torch.optim.AdamW), (GrokAdam, torch.optim.Adam)]


# --- torch.optim and the paper ---------------------------------------------------------------------------


@pytest.mark.parametrize("fused", [False, True], ids=["single", "fused"])
@pytest.mark.parametrize("amsgrad", [False, True], ids=["adam", "amsgrad"])
@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["AdamW", "Adam"])
def test_without_amplification_it_is_torch_optim(ours, theirs, maximize, amsgrad, fused) -> None:
    shapes = [(7,), (31, 33), (4097,)]
    mine, reference = ([new_param(*shape) for shape in shapes] for _ in range(2))
    options = {**ADAM, "amsgrad": amsgrad, "maximize": maximize}
    train(ours(mine, lamb=0.0, alpha=0.93, **options), 100)
    train(theirs(reference, fused=fused, foreach=False, **options), 100)
    for a, b in zip(mine, reference, strict=True):
        # The one tolerance of the suite: torch rounds in another order (lerp, addcdiv, eps), which moves
        # a parameter by half a unit now and then. 100 steps measured at most 1; 4 leaves room for others.
        assert ulps_of_the_largest(a.detach(), b.detach()) <= 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_with_amplification_it_is_the_authors_filter_before_torch_adam(backend) -> None:
    alpha, lamb = OPTIONS["alpha"], OPTIONS["lamb"]
    ours, theirs = new_param(31, 33), new_param(31, 33)
    mine = GrokAdam([ours], backend=backend, **OPTIONS)
    adam = torch.optim.Adam([theirs], foreach=False, **ADAM)
    random = torch.Generator().manual_seed(2)
    slow = None
    for _ in range(200):
        ours.grad = torch.randn(31, 33, generator=random)
        theirs.grad = ours.grad.clone()
        # gradfilter_ema of arXiv:2405.20233 (Lee et al. 2024), from its formula.
        slow = theirs.grad.clone() if slow is None else alpha * slow + (1 - alpha) * theirs.grad
        theirs.grad = theirs.grad + lamb * slow
        mine.step()
        adam.step()
    # Each element's error relative to the largest parameter: see ulps_of_the_largest for why.
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()
    # Moments and slow gradient in the same way; they are sums whose terms are of the largest one's size.
    state, expected = mine.state[ours], adam.state[theirs]
    for name, truth in {"grad_ema": slow, **expected}.items():
        assert (state[name] - truth).abs().max() <= 1e-6 * truth.abs().max(), name


def test_its_error_against_float64_is_that_of_torchs_fused_adamw(set_threads) -> None:
    set_threads(1)  # 4096 elements: torch's threads would spend longer waiting for each other
    # A decay factor that float32 holds exactly, 1 - 2**-13: another one's own rounding, the same in both,
    # adds up to ten times the error of all the arithmetic and would hide it.
    options = {"lr": 2**-8, "weight_decay": 2**-5, "betas": (0.87, 0.993), "eps": 3e-7}
    values = randn(4096)

    def final(make: Callable[[Tensor], torch.optim.Optimizer], dtype: torch.dtype) -> Tensor:
        param = values.to(dtype).requires_grad_()
        train(make(param), 1000)
        return param.detach().double()

    truth = final(lambda p: torch.optim.AdamW([p], foreach=False, **options), torch.float64)
    ours = final(lambda p: GrokAdamW([p], lamb=0.0, alpha=0.93, **options), torch.float32)
    theirs = final(lambda p: torch.optim.AdamW([p], fused=True, **options), torch.float32)
    error, their_error = ((x - truth).square().mean().sqrt() for x in (ours, theirs))
    # 1 %: both are random walks of 1000 roundings, and the measured ratio is 1 to 0.2 % either way.
    assert error <= 1.01 * their_error


# --- gradients -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_is_never_written(backend, dtype) -> None:
    param = new_param(31, 33, dtype=dtype)
    optimizer = GrokAdamW([param], backend=backend, maximize=True, **OPTIONS)
    grad = randn(31, 33, seed=3).to(dtype)
    param.grad, before = grad, grad.clone()
    for _ in range(3):
        optimizer.step()
    assert param.grad is grad
    assert grad._version == 0
    assert differing_bits(grad, before) == 0


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "transposed": lambda x: x.t().contiguous().t(),
    "with gaps": lambda x: torch.stack([x, x.new_full(x.shape, torch.nan)], dim=-1)[..., 0],
    "odd offset": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


@pytest.mark.parametrize("grad_layout", LAYOUTS)
@pytest.mark.parametrize("param_layout", ["contiguous", "transposed", "odd offset"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_may_lie_in_memory_unlike_its_parameter(backend, param_layout, grad_layout) -> None:
    results = []
    for layout in ("contiguous", grad_layout):
        param = LAYOUTS[param_layout](randn(6, 9)).requires_grad_()
        optimizer = GrokAdamW([param], backend=backend, **OPTIONS)
        for seed in range(3):
            param.grad = LAYOUTS[layout](randn(6, 9, seed=seed))
            optimizer.step()
        results.append(values(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_expanded_gradient_is_read_as_its_values(backend) -> None:
    results = []
    for expand in (lambda x: x.expand(6, 9), lambda x: x.expand(6, 9).contiguous()):
        param = new_param(6, 9)
        optimizer = GrokAdamW([param], backend=backend, **OPTIONS)
        for seed in range(3):
            param.grad = expand(randn(1, 9, seed=seed))
            optimizer.step()
        results.append(values(optimizer))
    assert_same_bits(*results)


def transpose(tensor: Tensor) -> None:
    tensor.data = tensor.data.t()


def to_bfloat16(state: dict[str, Any]) -> None:
    state.update({name: value.bfloat16() for name, value in state.items() if name.startswith("exp")})
    state["grad_ema"] = state["grad_ema"].bfloat16()


EXCHANGES: dict[str, Callable[[Tensor, dict[str, Any]], object]] = {
    "parameter transposed in place": lambda param, state: transpose(param),
    "state transposed in place": lambda param, state: transpose(state["exp_avg"]),
    "states of another dtype": lambda param, state: to_bfloat16(state),
    "slow gradient deleted": lambda param, state: state.pop("grad_ema"),
    "state deleted": lambda param, state: state.clear(),
}


@pytest.mark.parametrize("exchange", EXCHANGES)
def test_what_is_exchanged_between_steps_is_noticed(exchange) -> None:
    results = []
    for backend in BACKENDS:
        params = [new_param(6, 6), new_param(5)]
        optimizer = GrokAdamW(params, backend=backend, **OPTIONS)
        train(optimizer, 3)
        EXCHANGES[exchange](params[0], optimizer.state[params[0]])
        train(optimizer, 2)
        results.append(values(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("lost", ["step", "exp_avg", "exp_avg_sq"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_state_that_has_lost_a_part_is_refused_by_name(backend, lost) -> None:
    param = new_param(5)
    optimizer = GrokAdamW([param], backend=backend, **OPTIONS)
    train(optimizer, 2)
    del optimizer.state[param][lost]
    before = param.detach().clone()
    with pytest.raises(RuntimeError, match=f"has lost '{lost}'"):
        train(optimizer, 1)
    assert differing_bits(param.detach(), before) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parameter_without_gradient_keeps_everything(backend) -> None:
    with_grad, without = new_param(5), new_param(7)
    optimizer = GrokAdamW([with_grad, without], backend=backend, **OPTIONS)
    before = without.detach().clone()
    with_grad.grad = randn(5)
    optimizer.step()
    assert without not in optimizer.state
    assert differing_bits(without.detach(), before) == 0


def test_a_step_without_any_gradient_changes_nothing() -> None:
    param = new_param(5)
    optimizer = GrokAdamW([param], **OPTIONS)
    before = param.detach().clone()
    assert optimizer.step() is None
    assert len(optimizer.state) == 0
    assert differing_bits(param.detach(), before) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parameter_that_missed_steps_counts_its_own(backend) -> None:
    both = [new_param(5), new_param(6)]
    optimizer = GrokAdamW(both, backend=backend, **OPTIONS)
    alone = new_param(6)
    single = GrokAdamW([alone], backend=backend, **OPTIONS)
    for number in range(6):
        both[0].grad = randn(5, seed=number)
        missed = number in (0, 3)
        both[1].grad = None if missed else randn(6, seed=number)
        optimizer.step()
        if not missed:
            alone.grad = randn(6, seed=number)
            single.step()
    assert [optimizer.state[param]["step"].item() for param in both] == [6, 4]
    assert differing_bits(both[1].detach(), alone.detach()) == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_parameter_frozen_for_a_while_goes_on_where_it_stopped(backend) -> None:
    results = []
    for pause in (0, 3):
        param, other = new_param(9), new_param(4)
        optimizer = GrokAdamW([param, other], backend=backend, **OPTIONS)
        train(optimizer, 2)
        param.requires_grad_(False)
        param.grad = None
        for seed in range(pause):
            other.grad = randn(4, seed=seed)
            optimizer.step()
        param.requires_grad_(True)
        for seed in (10, 11):
            param.grad = randn(9, seed=seed)
            optimizer.step()
        results.append({"param": param.detach(), **optimizer.state[param]})
    assert_same_bits(*results)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_group_added_late_trains_like_an_optimizer_of_its_own(backend) -> None:
    early, late, alone = new_param(5), new_param(6, seed=4), new_param(6, seed=4)
    optimizer = GrokAdamW([early], backend=backend, **OPTIONS)
    train(optimizer, 3)
    own = {"lr": 7e-3, "alpha": 0.8, "lamb": 0.6}
    optimizer.add_param_group({"params": [late], **own})
    single = GrokAdamW([alone], backend=backend, **{**OPTIONS, **own})
    for seed in range(3):
        early.grad = randn(5, seed=seed)
        late.grad = randn(6, seed=seed)
        alone.grad = randn(6, seed=seed)
        optimizer.step()
        single.step()
    assert optimizer.state[early]["step"] == 6
    assert_same_bits(
        {"param": late.detach(), **optimizer.state[late]}, {"param": alone.detach(), **single.state[alone]}
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_scalars_and_empty_tensors_are_parameters_too(backend) -> None:
    scalar, empty, vector = new_param(), new_param(0, 3), new_param(1)
    with torch.no_grad():
        vector.copy_(scalar)
    optimizer = GrokAdamW([scalar, empty, vector], backend=backend, **OPTIONS)
    for seed in range(3):
        grad = randn(1, seed=seed)
        scalar.grad, empty.grad, vector.grad = grad[0].clone(), torch.zeros(0, 3), grad
        optimizer.step()
    assert differing_bits(scalar.detach().reshape(1), vector.detach()) == 0
    assert optimizer.state[empty]["step"] == 3
    assert optimizer.state[empty]["grad_ema"].shape == (0, 3)
