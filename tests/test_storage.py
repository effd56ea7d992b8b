"""Storage: 16-bit rounding is right for every input, and random bits come from the element alone."""

import pytest
import torch

from grokfused.backends import rounding
from grokfused.state.storage import is_dense, overlaps_itself


def all_16_bit_values(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_rounding_to_nearest_keeps_what_is_representable(dtype) -> None:
    values = all_16_bit_values(dtype)
    again = rounding.round_to(values.float(), dtype)
    assert torch.equal(again.nan_to_num(7), values.nan_to_num(7))


def with_every_draw(value: float, dtype: torch.dtype) -> torch.Tensor:
    """Returns one value rounded with each of the 2**16 draws: means over them are exact."""
    values = torch.full((2**16,), value)
    return rounding.round_stochastically(values, torch.arange(2**16), dtype).double()


# dtype -> low, high: neighbours of each kind: normal, subnormal, the last subnormal and the first normal,
# on both sides of a power of two, the least, the largest.
NEIGHBOURS = {
    torch.bfloat16: [
        (1.0, 1 + 2**-7),
        (1 - 2**-8, 1.0),
        (0.0, 2.0**-133),
        (127 * 2.0**-133, 2.0**-126),
        (2.0**127, 2.0**127 + 2.0**120),
    ],
    torch.float16: [
        (1.0, 1 + 2**-10),
        (1 - 2**-11, 1.0),
        (0.0, 2.0**-24),
        (5 * 2.0**-24, 6 * 2.0**-24),
        (1023 * 2.0**-24, 2.0**-14),
        (2.0**-14, 1025 * 2.0**-24),
        (65472.0, 65504.0),
    ],
}


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("share", [1 / 4, 3 / 8, 1 - 2**-13])
@pytest.mark.parametrize(
    ("dtype", "low", "high"), [(dtype, *pair) for dtype, pairs in NEIGHBOURS.items() for pair in pairs]
)
def test_stochastic_rounding_takes_a_neighbour_with_the_right_probability(
    dtype, low, high, share, sign
) -> None:
    value = torch.tensor(sign * (low + share * (high - low)), dtype=torch.float64)
    if value != value.float().double():
        value = value.float().double()  # float32 itself counts coarser here
    rounded = with_every_draw(value.item(), dtype)
    assert set(rounded.tolist()) == {sign * low, sign * high}
    assert rounded.mean() == value


@pytest.mark.parametrize("value", [2.0**-24 * 2**-16 * 1.75, 2.0**-24 * (3 + 2**-17), 1e-45])
def test_what_float16_cannot_count_is_lost_by_less_than_2_to_the_minus_40(value) -> None:
    mean = with_every_draw(value, torch.float16).mean().item()
    assert 0 <= torch.tensor(value).double().item() - mean < 2.0**-40


@pytest.mark.parametrize(
    ("dtype", "largest", "infinity"),
    [(torch.bfloat16, (2 - 2**-7) * 2.0**127, 2.0**128), (torch.float16, 65504.0, 65536.0)],
    ids=str,
)
def test_only_what_lies_above_the_largest_number_may_become_infinite(dtype, largest, infinity) -> None:
    assert with_every_draw(largest, dtype).unique().tolist() == [largest]
    below = torch.nextafter(torch.tensor(largest), torch.tensor(0.0)).item()
    assert with_every_draw(below, dtype).max() == largest
    quarter = with_every_draw(-(largest + (infinity - largest) / 4), dtype)
    assert quarter.unique().tolist() == [-torch.inf, -largest]
    assert quarter.isinf().double().mean() == 1 / 4
    for value in (min(infinity, torch.finfo(torch.float32).max), 3e38, torch.inf):
        if value >= infinity:
            assert with_every_draw(value, dtype).isinf().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_stochastic_rounding_never_moves_what_is_representable(dtype) -> None:
    values = all_16_bit_values(dtype)
    for draw in (0, 1, 0x7FFF, 0xFFFF):
        bits = torch.full(values.shape, draw)
        again = rounding.round_stochastically(values.float(), bits, dtype)
        assert torch.equal(again.isnan(), values.isnan())
        kept = ~values.isnan()
        assert torch.equal(again.view(torch.int16)[kept], values.view(torch.int16)[kept])


def test_random_bits_are_those_of_the_published_mixer() -> None:
    # lowbias32 of 0, 1, 2, 3, worked out by hand-checked integer arithmetic below, not by torch.
    def lowbias32(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x7FEB352D) % 2**32
        x = ((x ^ (x >> 15)) * 0x846CA68B) % 2**32
        return x ^ (x >> 16)

    numbers = torch.tensor([0, 1, 2, 3, 2**32 - 1, 0xDEADBEEF])
    assert rounding.scramble(numbers).tolist() == [lowbias32(x) for x in numbers.tolist()]


def test_draws_look_uniform_and_differ_between_steps_and_seeds() -> None:
    count = 1 << 16
    base = rounding.state_draws(count, rounding.random_key(seed=3, step=5))
    for other in (
        rounding.state_draws(count, rounding.random_key(seed=3, step=6)),
        rounding.state_draws(count, rounding.random_key(seed=4, step=5)),
    ):
        # Two independent uniform streams of 16 bits: their correlation is below 4 / sqrt(count).
        assert torch.corrcoef(torch.stack([base, other]).double())[0, 1].abs() < 4 / count**0.5
        # The mean of a uniform 16-bit number, within 4 standard errors.
        assert (other.double().mean() - 32767.5).abs() < 4 * 2**16 / 12**0.5 / count**0.5


@pytest.mark.parametrize("lag", [0, 1, 2, 3, 32, 1024, 4096, 1 << 20, 3 << 20])
@pytest.mark.parametrize("seed", [3, 4])
def test_a_draw_tells_nothing_of_those_of_others_and_of_neighbours(seed, lag) -> None:
    count, key = 1 << 18, rounding.random_key(seed, step=5)
    states, params = rounding.state_draws(count + lag, key), rounding.param_draws(count + lag, key)
    pairs = [(params[:count], states[lag:]), (states[:count], params[lag:])]
    pairs += [(params[:count], params[lag:]), (states[:count], states[lag:])] if lag else []
    for one, other in pairs:
        assert torch.corrcoef(torch.stack([one, other]).double())[0, 1].abs() < 4 / count**0.5
        # Uniform: each of 16 x 16 cells of four bits of both draws holds its share, within 5 standard errors.
        for shift in (12, 8, 4, 0):
            cells = torch.bincount(((one >> shift) & 15) * 16 + ((other >> shift) & 15), minlength=256)
            assert ((cells - count / 256).abs() < 5 * (count / 256) ** 0.5).all(), shift


def test_two_neighbours_share_the_bits_of_a_number_which_no_two_keys_have_alike() -> None:
    keys = torch.arange(2**20) * 4093  # some of all keys; over all of them each pair of halves comes once
    assert rounding.random_bits(torch.tensor(77), keys).unique().numel() == len(keys)
    key = rounding.random_key(1, 2)
    states, params = rounding.state_draws(6, key), rounding.param_draws(6, key)
    bits = rounding.random_bits(torch.arange(6), key)
    assert torch.equal(states[::2] << 16 | states[1::2], bits[::2])
    assert torch.equal(params[::2] << 16 | params[1::2], bits[1::2])


@pytest.mark.parametrize("draws", [rounding.state_draws, rounding.param_draws])
def test_the_draw_of_an_element_does_not_depend_on_the_number_of_elements(draws) -> None:
    key = rounding.random_key(1, 2)
    for count in (9, 10):
        assert torch.equal(draws(1000, key)[:count], draws(count, key))


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
