"""The norm of all gradients: native code against the truth, and the truth against a loop."""

import math

import pytest
import torch

from grokfused.backends import native_table
from grokfused.backends.norm import AT_ONCE, LANES, PIECE, sum_of_squares
from grokfused.lab.bench.probes import probe
from grokfused.step import norm
from grokfused.step.norm import total_norm

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIZES = (0, 1, LANES - 1, LANES, LANES + 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 777, AT_ONCE + 5)


def drawn(size: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=random).to(dtype)


def one_after_the_other(grads: list[torch.Tensor]) -> float:
    """The order of backends/norm.py in plain floats, which are float64."""
    total = 0.0
    for grad in grads:
        values = grad.double().tolist()
        for begin in range(0, len(values), PIECE):
            lanes = [0.0] * LANES
            for number, value in enumerate(values[begin : begin + PIECE]):
                lanes[number % LANES] += value * value
            piece = 0.0
            for lane in lanes:
                piece += lane
            total += piece
    return total


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_truth_adds_in_the_written_order(dtype) -> None:
    grads = [drawn(size, dtype) for size in (0, 1, 100, PIECE + 3, 2 * PIECE)]
    assert sum_of_squares(grads) == one_after_the_other(grads)


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_code_equals_the_truth_with_any_number_of_threads(dtype, threads) -> None:
    grads = [drawn(size, dtype, size) for size in SIZES]
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert native_table().sum_of_squares(grads) == (sum_of_squares(grads), dtype is torch.float64)
        for grad in grads:
            assert native_table().sum_of_squares([grad])[0] == sum_of_squares([grad])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38, 1e-44, -0.0])
def test_native_code_equals_the_truth_at_the_ends_of_the_numbers(value) -> None:
    grads = [torch.tensor([1.0, value, 2.0]), torch.full((PIECE + 1,), value)]
    found, expected = native_table().sum_of_squares(grads)[0], sum_of_squares(grads)
    assert found == expected or (math.isnan(found) and math.isnan(expected))


@pytest.fixture(params=["native", "truth"])
def summed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both ways to sum on a CPU."""
    if request.param == "truth":
        monkeypatch.setattr(norm, "native_table", lambda: None)


@pytest.mark.usefixtures("summed")
def test_it_is_the_norm_of_all_elements_and_next_to_torchs() -> None:
    grads = [drawn(size, torch.float32, size) for size in SIZES]
    exact = math.sqrt(math.fsum(value * value for grad in grads for value in grad.double().tolist()))
    # Sums in float64 are wrong by 2**-53 an addition: far from half a rounding to float32.
    assert total_norm(grads) == torch.tensor(exact, dtype=torch.float32)
    # Tolerance: torch adds millions of squares in float32.
    torch.testing.assert_close(total_norm(grads), torch.nn.utils.get_total_norm(grads), rtol=1e-5, atol=0)


@pytest.mark.usefixtures("summed")
def test_gradients_count_however_they_lie() -> None:
    real, number = drawn(240, torch.float32), torch.view_as_complex(drawn(240, torch.float32, 1).view(120, 2))
    plain = [real, torch.view_as_real(number)]
    expected = total_norm(plain)
    other = [
        [real.view(12, 20).t(), number],  # dense, in another order
        [torch.nn.Parameter(real), number.conj()],
        [torch._neg_view(real), torch.view_as_real(number).view(-1)],
        [torch.stack((real, real), 1)[:, 0], number],  # with gaps
    ]
    for grads in other:
        assert torch.equal(total_norm(grads), expected)
        assert total_norm(grads).dtype is torch.float32
    twice = [real[:1].expand(9), *plain]  # a gradient as sum() makes it
    # Tolerance: here the norm, rounded to float32 before, is squared and its root taken again.
    torch.testing.assert_close(total_norm(twice), (expected**2 + 9 * real[0] ** 2).sqrt(), rtol=1e-6, atol=0)


@pytest.mark.usefixtures("summed")
def test_one_gradient_of_float64_makes_the_norm_float64() -> None:
    grads = [drawn(50, torch.float16), drawn(50, torch.float64)]
    found = total_norm(grads)
    exact = math.sqrt(math.fsum(value * value for grad in grads for value in grad.double().tolist()))
    assert found.dtype is torch.float64
    # Tolerance: each of a hundred additions rounds.
    torch.testing.assert_close(found.item(), exact, rtol=1e-14, atol=0)
    assert total_norm([drawn(50, torch.complex128)]).dtype is torch.float64


class Own(torch.Tensor):
    """What torch makes of it is of this class again."""


class Wrapped(torch.Tensor):
    """It has no memory: each operation is done on what it wraps."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> torch.Tensor:
        wrapped = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, dtype=inner.dtype, device=inner.device
        )
        wrapped.inner = inner
        return wrapped

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        args = torch.utils._pytree.tree_map(lambda each: each.inner if isinstance(each, cls) else each, args)
        return function(*args, **(kwargs or {}))


@pytest.mark.usefixtures("summed")
@pytest.mark.parametrize("made", [lambda tensor: tensor.as_subclass(Own), Wrapped], ids=["own", "wrapped"])
def test_of_a_subclass_of_tensor_torch_sums_the_squares(made) -> None:
    grads = [drawn(100, torch.float32), drawn(50, torch.float32, 1)]
    found = total_norm([made(grads[0]), grads[1]]).as_subclass(torch.Tensor)
    # Tolerance: torch adds in float32.
    torch.testing.assert_close(found, total_norm(grads), rtol=1e-6, atol=0)


def test_the_norm_allocates_nothing_of_the_size_of_gradients() -> None:
    grads = [drawn(3 * AT_ONCE, dtype) for dtype in DTYPES]
    assert probe(lambda: total_norm(grads), "cpu").peak_extra_bytes < 1024
