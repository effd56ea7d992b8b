"""The mean of a window of gradients: against the authors' way, its error, and wherever a step is taken."""

from collections import deque

import pytest
import torch
from windowed import BACKENDS, made, optimizer_of, run

from grokfused import GrokAdam
from grokfused.backends.windows import TURN
from grokfused.lab.agreement import differing_bits

# --- what it computes ------------------------------------------------------------------------------------


class AuthorsWay:
    """arXiv:2405.20233, algorithm 1, beside torch's Adam: the gradients are kept, and summed at each call."""

    def __init__(self, params, size, lamb, summed, warmup, start, **options) -> None:
        self.size, self.lamb, self.summed, self.warmup, self.start = size, lamb, summed, warmup, start
        self.windows = {param: deque(maxlen=size) for param in params}
        self.counts = dict.fromkeys(params, 0)
        self.adam = torch.optim.Adam(params, **options)

    def step(self) -> None:
        for param, window in self.windows.items():
            if param.grad is None:
                continue
            window.append(param.grad.clone())
            self.counts[param] += 1
            if self.counts[param] > self.start and (len(window) == self.size or not self.warmup):
                mean = sum(window) / (1 if self.summed else len(window))
                param.grad = param.grad + self.lamb * mean
        self.adam.step()


@pytest.mark.parametrize("start", [0, 40])
@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("kind", ["mean", "sum"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_the_authors_filter_before_adam(backend, kind, warmup, start) -> None:
    """Also for gradients that are absent at times, and parameters that have none for long."""
    random = torch.Generator().manual_seed(3)
    ours = [torch.randn(size, generator=random, requires_grad=True) for size in ((40, 30), (7,), (3, 5))]
    theirs = [param.detach().clone().requires_grad_() for param in ours]
    rest = {"lr": 1e-3, "betas": (0.9, 0.98), "weight_decay": 0.01}
    optimizer = GrokAdam(
        ours,
        **rest,
        grad_filter="mean",
        window_size=13,
        lamb=5.0,
        filter_type=kind,
        filter_warmup=warmup,
        filter_start_step=start,
        backend=backend,
    )
    authors = AuthorsWay(theirs, 13, 5.0, kind == "sum", warmup, start, **rest)
    for step in range(200):
        there = (True, step % 7 != 3, step >= 60)
        for mine, other, has_grad in zip(ours, theirs, there, strict=True):
            grad = torch.randn(mine.shape, generator=random) + 0.3
            mine.grad, other.grad = (grad.clone(), grad.clone()) if has_grad else (None, None)
        optimizer.step()
        authors.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert ((mine - other).norm() / other.norm()).item() <= 2e-6


@pytest.mark.parametrize("window_dtype", [torch.float32, torch.bfloat16])
def test_nothing_is_amplified_before_the_window_is_full(window_dtype) -> None:
    plain, plain_params = made((3, 700), grad_filter="none")
    filtered, params = made((3, 700), window_dtype=window_dtype)
    run(plain, plain_params, range(4))
    run(filtered, params, range(4))
    assert differing_bits(params[0], plain_params[0]) == 0
    run(plain, plain_params, [4])
    run(filtered, params, [4])
    assert differing_bits(params[0], plain_params[0]) > 1000


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_window_holds_the_last_gradients_and_their_sum(backend) -> None:
    optimizer, (param,) = made((50, 30), backend=backend, maximize=True)
    run(optimizer, [param], range(12))
    state = optimizer.state[param]
    grads = [torch.randn(50, 30, generator=torch.Generator().manual_seed(10 * step)) for step in range(12)]
    for step in range(7, 12):
        assert torch.equal(state["grad_window"][step % 5], -grads[step])
    # Summed in another order: some roundings of float32.
    assert torch.allclose(state["grad_sum"], -sum(grads[7:]), rtol=0, atol=1e-5)


def test_its_bytes_are_the_window_a_sum_and_the_moments() -> None:
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        optimizer, (param,) = made((100, 10), window_size=7, window_dtype=dtype)
        run(optimizer, [param], range(2))
        kept = optimizer.state_dict()["state"][0]
        arrays = [value for key, value in kept.items() if key not in ("step", "grad_window_start")]
        assert sum(array.numel() * array.element_size() for array in arrays) == 1000 * (7 * size + 4 + 8)


# --- its error -------------------------------------------------------------------------------------------


def mean_after(grads, window, dtype=torch.float32):
    """Yields the mean of the window after each gradient, as a step sees it."""
    param = torch.zeros(grads[0].shape, requires_grad=True)
    optimizer = optimizer_of([param], window_size=window, window_dtype=dtype, lr=0.0)
    for grad in grads:
        param.grad = grad
        optimizer.step()
        yield optimizer.state[param]["grad_sum"] / window


@pytest.mark.slow
def test_the_mean_does_not_drift_while_gradients_fall_a_million_times() -> None:
    """100,000 steps: at each of them after two windows, its error is at most 1e-5 of the mean."""
    steps, window, size = 100_000, 100, 3
    random = torch.Generator().manual_seed(5)
    exact, last, worst = torch.zeros(size, dtype=torch.float64), deque(maxlen=window), 0.0
    param = torch.zeros(size, requires_grad=True)
    param.grad = torch.zeros(size)
    optimizer = optimizer_of([param], window_size=window, lr=0.0)
    for step in range(steps):
        torch.rand(size, generator=random, out=param.grad)
        param.grad.mul_(10.0 ** (-6 * step / steps))
        last.append(param.grad.double())
        optimizer.step()
        if step >= 2 * window:
            exact = torch.stack(tuple(last)).mean(0)
            error = (optimizer.state[param]["grad_sum"].double() / window - exact).abs() / exact.abs()
            worst = max(worst, error.max().item())
    assert worst <= 1e-5


@pytest.mark.parametrize("large", [1e30, float("inf"), float("nan")])
def test_what_a_large_gradient_absorbed_is_back_after_two_windows(large) -> None:
    window, size = 10, TURN * 3 + 5
    random = torch.Generator().manual_seed(6)
    grads = [torch.rand(size, generator=random) for _ in range(60)]
    grads[17][::2] = large
    means = list(mean_after(grads, window))
    touched = torch.zeros(size, dtype=torch.bool)
    touched[::2] = True
    for step in range(window, 60):
        exact = torch.stack(grads[step - window + 1 : step + 1]).double().mean(0)
        good = (means[step].double() - exact).abs() <= 1e-5 * exact.abs()
        assert good[~touched].all()
        if step < 17 or step >= 17 + 2 * window - 1:
            assert good.all(), step
        elif step < 17 + window and large != 1e30:
            assert not means[step][touched].isfinite().any()


@pytest.mark.parametrize("window", [2, 3, 64])
def test_the_error_keeps_to_its_bound(window) -> None:
    random = torch.Generator().manual_seed(8)
    sizes = 10.0 ** torch.randint(-3, 4, (40 * window,), generator=random)
    grads = [torch.randn(2 * TURN + 3, generator=random) * size for size in sizes]
    magnitudes = torch.stack(grads).abs().double()
    sums = torch.stack([magnitudes[max(0, t - window + 1) : t + 1].sum(0) for t in range(len(grads))])
    for step, mean in enumerate(mean_after(grads, window)):
        if step < 2 * window:
            continue
        exact = torch.stack(grads[step - window + 1 : step + 1]).double().mean(0)
        bound = 3 * 2.0**-24 * sums[step - 2 * window + 1 : step + 1].amax(0)
        assert ((mean.double() - exact).abs() <= bound).all()
