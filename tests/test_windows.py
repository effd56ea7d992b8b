"""The mean of a window of gradients: against the authors' way, its error, and wherever a step is taken."""

import copy
import io
from collections import deque
from itertools import product

import pytest
import torch

from grokfused import GrokAdam, GrokAdamW
from grokfused.backends.windows import TURN
from grokfused.lab.agreement import differing_bits

BACKENDS = ["native", "reference"]


def optimizer_of(params, **options) -> GrokAdam:
    window = {"grad_filter": "mean", "window_size": 5, "lamb": 5.0, "lr": 1e-2}
    return GrokAdam(params, **{**window, **options})


def states_of(optimizer) -> list[torch.Tensor]:
    """Returns parameters and states, in order."""
    found = []
    for param in optimizer.param_groups[0]["params"]:
        state = optimizer.state[param]
        found += [
            param.detach(),
            *(state[key] for key in sorted(state) if isinstance(state[key], torch.Tensor)),
        ]
    return [tensor.clone() for tensor in found]


def same(a, b) -> bool:
    return all(differing_bits(x, y) == 0 for x, y in zip(states_of(a), states_of(b), strict=True))


def run(optimizer, params, steps, seed=0) -> None:
    """Takes steps on random gradients, the same ones for the same seed and step."""
    for step in steps:
        for number, param in enumerate(params):
            random = torch.Generator().manual_seed(1000 * seed + 10 * step + number)
            param.grad = torch.randn(param.shape, generator=random).to(param.dtype)
        optimizer.step()


def made(*shapes, dtype=torch.float32, **options):
    random = torch.Generator().manual_seed(7)
    params = [torch.randn(shape, generator=random).to(dtype).requires_grad_() for shape in shapes]
    return optimizer_of(params, **options), params


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


# --- wherever a step is taken ----------------------------------------------------------------------------

HOW = {
    "float32": {},
    "bfloat16 window": {"window_dtype": torch.bfloat16},
    "bfloat16 states": {"state_dtype": torch.bfloat16, "amsgrad": True, "seed": 3},
    "clipped": {"max_grad_norm": 0.5},
    "sum": {"filter_type": "sum", "filter_warmup": False, "lamb": 0.4},
    "two stages": {"filter_start_step": 4, "filter_stop_step": 9},
}


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.complex64]
)
@pytest.mark.parametrize("how", HOW)
def test_backends_agree_through_two_windows(how, dtype) -> None:
    results = []
    for backend in BACKENDS:
        optimizer, params = made((2300,), (13, 3), dtype=dtype, backend=backend, **HOW[how])
        for step in range(13):
            if step == 4 and not dtype.is_complex:
                kept = torch.rand(2300, generator=torch.Generator().manual_seed(1)) < 0.3
                optimizer.set_mask(params[0], kept, "freeze")
                optimizer.set_mask(params[1], kept[:39].view(13, 3), "zero")
            run(optimizer, params, [step])
        results.append(optimizer)
    assert same(*results)


@pytest.mark.parametrize("mode", ["zero", "freeze"])
def test_a_mask_holds_the_window_too(mode) -> None:
    optimizer, (param,) = made((3 * TURN,))
    run(optimizer, [param], range(3))
    kept = torch.rand(3 * TURN, generator=torch.Generator().manual_seed(1)) < 0.5
    optimizer.set_mask(param, kept, mode)
    before = copy.deepcopy(optimizer.state[param])
    run(optimizer, [param], range(3, 14))
    for name in ("grad_window", "grad_sum"):
        left_out, was = optimizer.state[param][name][..., ~kept], before[name][..., ~kept]
        assert differing_bits(left_out, was if mode == "freeze" else torch.zeros_like(was)) == 0


def test_an_overflow_leaves_the_window_as_it_is() -> None:
    optimizer, (param,) = made((900,))
    run(optimizer, [param], range(7))
    before = states_of(optimizer)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1024.0), torch.tensor(1.0)
    run(optimizer, [param], [7])
    assert all(differing_bits(a, b) == 0 for a, b in zip(states_of(optimizer), before, strict=True))


def test_steps_that_the_device_counts_are_the_same(monkeypatch) -> None:
    from grokfused.step import engine

    plain, plain_params = made((2100,), (5,))
    run(plain, plain_params, range(9))
    monkeypatch.setattr(engine, "NUMBERING_DEVICES", ("cpu",))
    counted, params = made((2100,), (5,), capturable=True)
    run(counted, params, range(9))
    assert same(plain, counted)


# --- when it filters -------------------------------------------------------------------------------------


def test_a_window_that_was_left_begins_anew_and_is_never_misread() -> None:
    """Its size, its sum and where it stands are those of the steps since then, in either order of filters."""
    optimizer, (param,) = made((1500,), backend="native")
    other, (its,) = made((1500,), backend="reference")
    order = ["mean"] * 8 + ["none"] * 2 + ["mean"] * 7 + ["ema"] * 3 + ["mean"] * 7
    for step, name in enumerate(order):
        for each, owned in ((optimizer, param), (other, its)):
            each.param_groups[0]["grad_filter"] = name
            run(each, [owned], [step])
        state = optimizer.state[param]
        assert ("grad_window" in state, "grad_sum" in state) == (name == "mean", name == "mean")
        assert ("grad_ema" in state) == ("ema" in order[: step + 1])
        if name == "mean":
            begun = max(k for k in range(step + 1) if k == 0 or order[k - 1] != "mean")
            last = [
                torch.randn(1500, generator=torch.Generator().manual_seed(10 * k))
                for k in range(begun, step + 1)
            ]
            assert torch.allclose(state["grad_sum"], sum(last[-5:]), rtol=0, atol=1e-5)
    assert same(optimizer, other)


def test_a_late_window_waits_until_it_is_full() -> None:
    optimizer, (param,) = made((40,), grad_filter="none")
    plain, (its,) = made((40,), grad_filter="none")
    run(optimizer, [param], range(3))
    run(plain, [its], range(3))
    optimizer.param_groups[0]["grad_filter"] = "mean"
    run(optimizer, [param], range(3, 7))
    run(plain, [its], range(3, 7))
    assert differing_bits(param, its) == 0  # four of five
    run(optimizer, [param], [7])
    run(plain, [its], [7])
    assert differing_bits(param, its) > 30


# --- saved and loaded ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "late"), list(product([3, 5, 8], [False, True])))
@pytest.mark.parametrize("window_dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_goes_on_in_the_middle_of_a_window(before, late, window_dtype) -> None:
    def fresh():
        optimizer, params = made((1100,), (4, 3), window_dtype=window_dtype)
        if late:
            optimizer.param_groups[0]["grad_filter"] = "none"
            run(optimizer, params, range(2))
            optimizer.param_groups[0]["grad_filter"] = "mean"
        return optimizer, params

    whole, params = fresh()
    run(whole, params, range(2, 2 + before))
    file = io.BytesIO()
    torch.save([whole.state_dict(), [param.detach() for param in params]], file)
    file.seek(0)
    saved, values = torch.load(file, weights_only=True)
    resumed, its = made((1100,), (4, 3))  # of another window_dtype at times: states keep theirs
    for param, value in zip(its, values, strict=True):
        param.data.copy_(value)
    resumed.load_state_dict(saved)
    assert resumed.state[its[0]]["grad_window"].dtype is window_dtype
    run(whole, params, range(2 + before, 16))
    run(resumed, its, range(2 + before, 16))
    assert same(whole, resumed)


def test_a_window_of_another_size_is_refused_by_name() -> None:
    saved, params = made((30,))
    run(saved, params, range(3))
    other, _ = made((30,), window_size=6)
    with pytest.raises(ValueError, match=r"a window of 5 gradients.*made with window_size=6.*window_size=5"):
        other.load_state_dict(saved.state_dict())
    assert not other.state
    before = states_of(saved)
    saved.param_groups[0]["window_size"] = 9
    with pytest.raises(RuntimeError, match=r"grad_window.*\[9, 30\]\), got .*\[5, 30\]\): a window keeps"):
        run(saved, params, [3])
    assert all(differing_bits(a, b) == 0 for a, b in zip(states_of(saved), before, strict=True))


def test_torchs_adam_goes_on_without_the_window() -> None:
    optimizer, (param,) = made((30,))
    run(optimizer, [param], range(3))
    state = optimizer.torch_state_dict()
    assert set(state["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    assert not {"window_size", "filter_type", "window_dtype"} & set(state["param_groups"][0])
    torch.optim.Adam([param]).load_state_dict(state)


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_windows_that_do_not_fit_are_refused_before_anything_is_allocated(backend) -> None:
    optimizer, params = made((1000, 1000), (10,), window_size=2**24, backend=backend)
    for param in params:
        param.grad = torch.ones_like(param)
    need = (1_000_000 + 10) * 2**24 * 4
    with pytest.raises(MemoryError, match=f"take {need:,} bytes on cpu.* are free.*window_size"):
        optimizer.step()
    assert not any(optimizer.state.values())
    with pytest.raises(MemoryError, match="bytes on cpu"):
        optimizer.set_mask(params[0], torch.ones(1000, 1000, dtype=torch.bool))
    assert not any(optimizer.state.values())


BAD = [
    ({"window_size": 1}, ValueError, r"window_size must be an integer in \[2, 16777216\], got 1"),
    ({"window_size": 2.5}, TypeError, "window_size must be an integer"),
    ({"window_size": True}, TypeError, "window_size must be an integer"),
    ({"filter_type": "median"}, ValueError, r"filter_type must be one of \('mean', 'sum'\)"),
    ({"filter_warmup": 1}, TypeError, "filter_warmup must be True or False"),
    ({"window_dtype": torch.float16}, ValueError, "window_dtype must be torch.float32 or torch.bfloat16"),
    ({"filter_start_step": -1}, ValueError, "filter_start_step must be an integer"),
    (
        {"filter_start_step": 9, "filter_stop_step": 8},
        ValueError,
        r"filter_stop_step must be an integer in \[9",
    ),
    ({"filter_stop_step": "8"}, TypeError, "filter_stop_step must be an integer"),
]


@pytest.mark.parametrize(("options", "kind", "words"), BAD, ids=str)
def test_an_option_out_of_its_range_is_refused(options, kind, words) -> None:
    with pytest.raises(kind, match=words):
        GrokAdamW([torch.ones(2, requires_grad=True)], **options)
    optimizer, (param,) = made((2,))
    optimizer.param_groups[0].update(options)
    param.grad = torch.ones(2)
    with pytest.raises(kind, match=words):
        optimizer.step()
    assert not optimizer.state
