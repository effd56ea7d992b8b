"""Storage: 16-bit rounding is right for every input, and random bits come from the element alone."""

import pytest
import torch

from grokfused import reference
from grokfused.storage import is_dense, overlaps_itself


def all_16_bit_values(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_to_nearest_keeps_what_is_representable(dtype) -> None:
    values = all_16_bit_values(dtype)
    again = reference.round_to(values.float(), dtype)
    assert torch.equal(again.nan_to_num(7), values.nan_to_num(7))


def test_stochastic_rounding_takes_one_of_the_two_neighbours_with_the_right_probability() -> None:
    low, high = torch.tensor([1.0, 1.0078125])  # neighbours in bfloat16
    value = low + 0.25 * (high - low)
    bits = torch.arange(2**16)
    rounded = reference.round_stochastically(value.expand(2**16).contiguous(), bits).float()
    assert set(rounded.tolist()) == {low.item(), high.item()}
    # All 2**16 random values are tried, so the mean is exact, not approximate.
    assert rounded.double().mean() == value.double()


@pytest.mark.parametrize("special", [float("inf"), float("-inf"), float("nan"), 0.0, -0.0, 1.5])
def test_stochastic_rounding_never_moves_what_is_representable(special) -> None:
    values = torch.full((2**16,), special)
    rounded = reference.round_stochastically(values, torch.arange(2**16)).float()
    assert torch.equal(rounded.nan_to_num(7), values.nan_to_num(7))
    assert torch.equal(rounded.signbit(), values.signbit()) or special != special


def test_random_bits_are_those_of_the_published_mixer() -> None:
    # lowbias32 of 0, 1, 2, 3, worked out by hand-checked integer arithmetic below, not by torch.
    def lowbias32(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
        x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
        return x ^ (x >> 16)

    numbers = torch.tensor([0, 1, 2, 3, 2**32 - 1, 0xDEADBEEF])
    assert reference.scramble(numbers).tolist() == [lowbias32(x) for x in numbers.tolist()]


def test_random_bits_look_uniform_and_differ_between_steps_and_seeds() -> None:
    count = 1 << 16
    base = reference.random_bits(count, reference.random_key(seed=3, step=5))
    for other in (
        reference.random_bits(count, reference.random_key(seed=3, step=6)),
        reference.random_bits(count, reference.random_key(seed=4, step=5)),
    ):
        # Two independent uniform streams of 16 bits: their correlation is below 4 / sqrt(count).
        assert torch.corrcoef(torch.stack([base, other]).double())[0, 1].abs() < 4 / count**0.5
        # The mean of a uniform 16-bit number, within 4 standard errors.
        assert (other.double().mean() - 32767.5).abs() < 4 * 2**16 / 12**0.5 / count**0.5


def test_random_bits_of_an_element_do_not_depend_on_the_number_of_elements() -> None:
    key = reference.random_key(1, 2)
    assert torch.equal(reference.random_bits(1000, key)[:10], reference.random_bits(10, key))


BASE = torch.zeros(6, 8)


@pytest.mark.parametrize(
    ("tensor", "dense", "overlaps"),
    [
        (torch.zeros(()), True, False),
        (torch.zeros(0, 3), True, False),
        (BASE, True, False),
        (BASE.t(), True, False),
        (torch.zeros(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), True, False),
        (BASE[:, ::2], False, False),
        (BASE[1:3, 2:4], False, False),
        (torch.zeros(3, 1).expand(3, 4), False, True),
        (torch.zeros(9).as_strided((4, 4), (1, 1)), False, True),
        (torch.zeros(1).expand(1, 1, 1), True, False),
    ],
)
def test_memory_layouts_are_told_apart(tensor, dense, overlaps) -> None:
    assert (is_dense(tensor), overlaps_itself(tensor)) == (dense, overlaps)
