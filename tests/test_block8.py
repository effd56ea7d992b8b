"""States of 8 bits: the format itself, and what of it a user sees."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stepping import BACKENDS, OPTIONS, new_param, randn, train

from grokfused import GrokAdam, GrokAdamW, decode_state
from grokfused.backends import block8
from grokfused.backends.rounding import random_key
from grokfused.state.arrays import NAMES

SIGNED, UNSIGNED = block8.kind_of("exp_avg"), block8.kind_of("exp_avg_sq")
KEY = random_key(3, 5)
NUMBERS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=150)


def stored(values: torch.Tensor, kind: block8.Kind, drawn: torch.Tensor | None = None) -> torch.Tensor:
    """Returns what is left of numbers once they were encoded."""
    drawn = block8.draws(len(values), KEY) if drawn is None else drawn
    codes, bases = block8.encode(values, drawn, kind)
    return block8.decode(codes, block8.spread(bases, len(values)), kind)


def constant(number: int, count: int) -> torch.Tensor:
    return torch.full((count,), number, dtype=torch.int64)


# --- the format ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
@pytest.mark.parametrize("base", [0, 1, 7, 100, 237, 246])
def test_every_code_is_a_number_of_its_own_that_bfloat16_holds(kind, base) -> None:
    base = min(base, 254 - kind.octaves)
    codes = torch.arange(256).to(torch.uint8)
    numbers = block8.decode(codes, constant(base, 256), kind)
    assert numbers.isfinite().all()
    assert torch.equal(numbers.to(torch.bfloat16).float(), numbers)
    half = numbers[:128] if kind.signed else numbers
    assert (half.diff() > 0).all()
    assert half[0] == 0
    if kind.signed:
        assert torch.equal(numbers[128:], -half)


@pytest.mark.parametrize("kind", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
@given(numbers=NUMBERS)
@settings(max_examples=60, deadline=None)
def test_a_number_goes_to_a_neighbour_and_then_stays_there_whatever_is_drawn(kind, numbers) -> None:
    values = torch.tensor(numbers).to(torch.float32)
    values = values if kind.signed else values.abs()
    once = stored(values, kind)
    for drawn in (constant(0, len(values)), constant(block8.UNIT - 1, len(values)), None):
        assert torch.equal(stored(once, kind, drawn), once)
    low, high = (stored(values, kind, constant(d, len(values))) for d in (0, block8.UNIT - 1))
    assert ((once == low) | (once == high)).all()
    size = values.abs()
    largest = block8.spread(block8.largest(size.view(torch.int32).long()), len(values))
    largest = largest.to(torch.int32).view(torch.float32)
    # A sixteenth of the number, or what the window tells apart at its lower end: 2^-130 in the lowest one.
    lower_end = (largest * 2.0 ** (-10 if kind.signed else -14.85)).clamp(min=2.0**-130)
    quantum = torch.maximum(size / 16, lower_end)
    finite = size <= 1.875 * 2.0**126
    assert ((once - values).abs() <= quantum)[finite].all()
    if not kind.signed:
        assert not once[values == 0].any()
        assert (once[values > 1e-38] > 0).all()  # a second moment that is there does not vanish


@pytest.mark.parametrize("kind", [SIGNED, UNSIGNED], ids=["signed", "unsigned"])
def test_the_mean_of_many_roundings_is_the_number(kind) -> None:
    values = torch.tensor([1.0, 0.7501, 0.031, 0.0173, 1.9, 0.5 + 2.0**-12]).repeat(11)[:64]
    total = sum(stored(values, kind, block8.draws(64, random_key(1, step))).double() for step in range(2000))
    assert ((total / 2000 - values) / values).abs().max() < 0.004  # a quantum is 1 / 16


def test_draws_are_uniform_and_not_alike_within_a_word() -> None:
    drawn = (
        torch.stack([block8.draws(64, random_key(9, step)) for step in range(4000)]).double() / block8.UNIT
    )
    assert (drawn.mean(0) - 0.5).abs().max() < 0.025
    assert (drawn.var(0) - 1 / 12).abs().max() < 0.006
    correlations = torch.corrcoef(drawn.T) - torch.eye(64)
    assert correlations.abs().max() < 0.09  # 4,000 independent ones: 0.075 is the largest of 2,016


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 200])
def test_bytes_lie_by_words_of_four_vectors(count) -> None:
    elements = torch.arange(count)
    assert torch.equal(block8.unlaid(block8.laid(elements)), elements)
    lies = block8.laid(elements)
    assert lies[count // 64 * 64 :].tolist() == list(range(count // 64 * 64, count))
    if count >= 64:
        assert lies[:8].tolist() == [0, 16, 32, 48, 1, 17, 33, 49]


def test_what_is_not_finite_becomes_the_largest_number() -> None:
    values = torch.tensor([math.inf, -math.inf, math.nan, 3e38, -3e38, 1.0])
    largest = 1.875 * 2.0**126
    assert stored(values, SIGNED).tolist()[:5] == [largest, -largest, largest, largest, -largest]
    assert stored(values.abs(), UNSIGNED).tolist()[:4] == [largest] * 4


def test_one_large_element_leaves_its_neighbours_as_they_are() -> None:
    values = randn(64).abs() + 0.5
    values[7] = 100.0  # 8 octaves above the least: within the 16 of a second moment
    rest = torch.arange(64) != 7
    low = stored(values[rest], UNSIGNED, constant(0, 63))
    assert torch.equal(stored(values, UNSIGNED, constant(0, 64))[rest], low)


# --- what a user sees ------------------------------------------------------------------------------------


@pytest.mark.parametrize("numel", [1, 64, 4097])
def test_states_take_3_bytes_and_a_sixteenth(numel) -> None:
    param = new_param(numel)
    optimizer = GrokAdamW([param], state_dtype="block8", **OPTIONS)
    train(optimizer, 2)
    state = optimizer.state[param]
    kept = sum(state[name].untyped_storage().nbytes() for name in NAMES if name in state)
    assert kept == 3 * numel + 4 * -(-numel // 64)
    assert {state[name].dtype for name in ("exp_avg", "exp_avg_sq", "grad_ema")} == {torch.uint8}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("amsgrad", [False, True])
def test_decoded_states_are_those_of_float32_to_a_sixteenth(backend, amsgrad) -> None:
    found = []
    for state_dtype in ("block8", torch.float32):
        param = new_param(300, 7)
        optimizer = GrokAdamW([param], state_dtype=state_dtype, amsgrad=amsgrad, backend=backend, **OPTIONS)
        train(optimizer, 6)
        found.append(decode_state(optimizer, param))
    ours, truth = found
    assert ours.keys() == truth.keys()
    assert all(array.dtype is torch.float32 and array.shape == (300, 7) for array in ours.values())
    for name, array in ours.items():
        assert (array - truth[name]).norm() < truth[name].norm() / 16, name


def test_a_shown_state_is_a_copy_and_of_a_parameter_of_the_optimizer() -> None:
    param = new_param(70)
    optimizer = GrokAdamW([param], state_dtype="block8")
    assert decode_state(optimizer, param) == {}
    train(optimizer, 1)
    decode_state(optimizer, param)["exp_avg"].zero_()
    assert decode_state(optimizer, param)["exp_avg"].abs().sum() > 0
    with pytest.raises(ValueError, match="not one of this optimizer's"):
        decode_state(optimizer, new_param(70))


@pytest.mark.parametrize("kind", [GrokAdam, GrokAdamW])
def test_rounding_to_nearest_is_refused_with_the_reason(kind) -> None:
    with pytest.raises(ValueError, match="would stand still; leave it 'stochastic'"):
        kind([new_param(3)], state_dtype="block8", state_rounding="nearest")


@pytest.mark.parametrize("wrong", [torch.uint8, "uint8", "block4", torch.float8_e4m3fn])
def test_another_dtype_is_refused_and_block8_is_named(wrong) -> None:
    with pytest.raises(ValueError, match=r'torch\.bfloat16, or "block8"'):
        GrokAdamW([new_param(3)], state_dtype=wrong)
    with pytest.raises(ValueError, match=r"window_dtype must be torch\.float32 or torch\.bfloat16, got"):
        GrokAdamW([new_param(3)], window_dtype="block8")


def test_wide_and_complex_parameters_keep_states_of_their_own() -> None:
    params = [new_param(70, dtype=torch.float64), torch.zeros(70, dtype=torch.complex64, requires_grad=True)]
    optimizer = GrokAdamW(params, state_dtype="block8")
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    assert all(optimizer.state[param]["exp_avg"].dtype is param.dtype for param in params)
    assert not any("block_bases" in optimizer.state[param] for param in params)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_that_stop_leave_the_second_moment_right(backend) -> None:
    param = new_param(640)
    optimizer = GrokAdamW(
        [param], lr=0.0, betas=(0.9, 0.999), grad_filter="none", state_dtype="block8", backend=backend
    )
    param.grad = randn(640).abs() + 0.5
    optimizer.step()
    before = decode_state(optimizer, param)["exp_avg_sq"]
    param.grad = torch.zeros(640)
    steps = 300
    for _ in range(steps):
        optimizer.step()
    ratio = decode_state(optimizer, param)["exp_avg_sq"] / (before * 0.999**steps)
    assert abs(float(ratio.mean()) - 1) < 0.02
