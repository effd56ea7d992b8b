"""What a result may depend on: seed, step and element, and nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from stepping import BACKENDS, OPTIONS, assert_same_bits, mixed_params, train, values
from torch import Tensor

from grokfused import GrokAdamW
from grokfused.lab.agreement import differing_bits, parameters, set_grads


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_do_not_depend_on_how_parameters_are_grouped(backend, state_dtype) -> None:
    results = []
    for sizes in ([5], [1, 1, 1, 1, 1], [2, 3], [4, 1]):
        params = mixed_params()
        rest = iter(params)
        groups = [{"params": [next(rest) for _ in range(size)]} for size in sizes]
        optimizer = GrokAdamW(groups, backend=backend, state_dtype=state_dtype, seed=3, **OPTIONS)
        train(optimizer, 4)
        results.append(values(optimizer))
    for other in results[1:]:
        assert_same_bits(results[0], other)


@contextmanager
def default(value: torch.dtype | torch.device) -> Iterator[None]:
    """Sets a default dtype or device of torch, for a while."""
    if isinstance(value, torch.device):
        with value:
            yield
        return
    torch.set_default_dtype(value)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("value", [torch.float64, torch.bfloat16, torch.device("meta")], ids=str)
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_results_do_not_depend_on_torchs_default_dtype_and_device(backend, state_dtype, value) -> None:
    results = []
    for context in (nullcontext(), default(value)):
        optimizer = GrokAdamW(mixed_params(), state_dtype=state_dtype, backend=backend, **OPTIONS)
        for param in optimizer.param_groups[0]["params"]:
            param.grad = torch.ones_like(param)
        optimizer.grad_scale = torch.tensor(3.0)
        with context:
            optimizer.step()
            state_dict = optimizer.state_dict()
            for state in state_dict["state"].values():
                state["step"] = 7
            optimizer.load_state_dict(state_dict)
            optimizer.step()
        results.append(values(optimizer))
    assert_same_bits(*results)


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_results_do_not_depend_on_the_number_of_threads(state_dtype, set_threads) -> None:
    results = []
    for threads in (1, 2):
        set_threads(threads)
        params = parameters(torch.float32, "cpu")
        optimizer = GrokAdamW(params, state_dtype=state_dtype, seed=3, **OPTIONS)
        random = torch.Generator().manual_seed(2)
        for _ in range(4):
            set_grads(params, random)
            optimizer.step()
        results.append(values(optimizer))
    assert_same_bits(*results)


# bfloat16 keeps 8 significant bits, so this lies between two of its numbers.
BETWEEN = 1.0 + 0.3 / 128


def rounded(seed: int, steps: int, count: int, backend: str = "native", earlier: float = BETWEEN) -> Tensor:
    """Returns exp_avg after a last step that rounded ``BETWEEN`` in every element."""
    param = torch.ones(count, requires_grad=True)
    optimizer = GrokAdamW(
        [param],
        lr=1e-4,
        betas=(0.0, 0.993),  # exp_avg forgets: it is the last gradient, rounded
        lamb=0.0,
        state_dtype=torch.bfloat16,
        state_rounding="stochastic",
        seed=seed,
        backend=backend,
    )
    for number in range(steps):
        param.grad = torch.full((count,), BETWEEN if number == steps - 1 else earlier)
        optimizer.step()
    return optimizer.state[param]["exp_avg"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_random_bits_depend_on_seed_step_and_element_only(backend) -> None:
    base = rounded(seed=1, steps=3, count=1000, backend=backend)
    assert base.unique().numel() == 2
    assert differing_bits(base[:10], rounded(1, 3, 10, backend)) == 0
    assert differing_bits(base, rounded(1, 3, 1000, backend, earlier=1.25)) == 0
    assert differing_bits(base, rounded(2, 3, 1000, backend)) > 100
    assert differing_bits(base, rounded(1, 2, 1000, backend)) > 100


def test_stochastic_rounding_is_unbiased() -> None:
    count, seeds = 10_000, 20
    grads = {"exp_avg": BETWEEN, "grad_ema": BETWEEN, "exp_avg_sq": BETWEEN}
    sums = dict.fromkeys(grads, 0.0)
    for seed in range(seeds):
        param = torch.zeros(count, requires_grad=True)
        # Both moments and the slow gradient become the gradient (or its square) itself.
        optimizer = GrokAdamW(
            [param], lr=1e-4, betas=(0.0, 0.0), lamb=0.0, state_dtype=torch.bfloat16, seed=seed
        )
        param.grad = torch.full((count,), BETWEEN)
        optimizer.step()
        for name in sums:
            sums[name] += optimizer.state[param][name].double().sum().item()
    exact = torch.tensor(BETWEEN)
    truths = {"exp_avg": exact, "grad_ema": exact, "exp_avg_sq": exact * exact}
    for name, truth in truths.items():
        gap = 1 / 128
        up = truth.item() % gap / gap
        standard_error = gap * (up * (1 - up) / (count * seeds)) ** 0.5
        assert abs(sums[name] / (count * seeds) - truth.item()) < 4 * standard_error, name
