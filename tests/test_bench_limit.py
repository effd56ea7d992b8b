"""The limit of a step on a CPU: it moves the bytes that it says, and says why where it cannot be measured."""

import math
import sys

import pytest
import torch

from grokfused.lab.bench import in_place, rows, show
from grokfused.lab.bench.implementations import Place, ours
from grokfused.lab.bench.timing import Turns
from grokfused.lab.bench.traffic import traffic


@pytest.mark.parametrize("sizes", [[3000, 0, 5], [200_000]], ids=str)
def test_the_limit_goes_once_through_every_byte(sizes, set_threads) -> None:
    set_threads(2)

    def array(size: int, bytes_each: float) -> torch.Tensor:
        return torch.arange(math.ceil(size * bytes_each / in_place.LINE) * in_place.LINE).to(torch.uint8)

    arrays = [[array(size, each) for each in (4, 1 / 8, 4, 2, 3.3)] for size in sizes]
    before = [[one.clone() for one in of_tensor] for of_tensor in arrays]
    in_place.Pass(arrays, reads=2)()
    for own, old in zip(arrays, before, strict=True):
        assert all(map(torch.equal, own, old))
    in_place.Pass(arrays, reads=2, flip=2**64 - 1)()
    for own, old in zip(arrays, before, strict=True):
        assert all(map(torch.equal, own, old[:2] + [~each for each in old[2:]]))


def test_the_limit_has_the_bytes_of_the_step() -> None:
    moved = traffic({"state_dtype": torch.bfloat16, "max_grad_norm": 1.0})
    assert moved == ((4, 2, 2, 2), (4,), (4,))
    passes = in_place.Limits([(1000,), (64, 2)]).of(moved).passes
    found = [[array.nbytes for array in each.arrays] for each in passes]
    lines = [[math.ceil(count * size / 64) * 64 for size in (4, 4, 2, 2, 2)] for count in (1000, 128)]
    assert found == [[lines[0][0], lines[1][0]], [*lines[0], *lines[1]]]


def test_each_has_the_limit_of_its_own_bytes_in_the_same_rounds(monkeypatch) -> None:
    def timed(takers, clock, turns):  # of each its bytes, in one round and, twice as slow, another
        return {name: [each.bytes_per_element, 2 * each.bytes_per_element] for name, each in takers.items()}

    monkeypatch.setattr(rows, "timed", timed)
    narrow = ours("narrow", state_dtype=torch.bfloat16)
    found = rows.measure("few", [(9,)], [ours(), narrow, ours("twin")], Place(), Turns(0.0, least=2))
    assert [row["share_of_limit"] for row in found] == [{"median": 1.0, "low": 1.0, "high": 1.0}] * 3
    assert rows.of_limit([4.0, 80.0], [3.0, 60.0], "")["share_of_limit"]["median"] == 0.75


def test_without_a_compiler_the_rows_say_why_they_have_no_share(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(in_place, "_library", in_place._library.__wrapped__)
    (row,) = rows.measure("few", [(9,)], [ours()], Place(), Turns(0.0, least=2))
    why = "there is no C++ compiler 'no-such-compiler' (CXX names another)"
    assert (row["share_of_limit"], row["why_no_limit"], show.cells(row)[5]) == (None, why, "-")
    assert f"The limit could not be measured: {why}" in show.markdown([row])
    monkeypatch.setenv("CXX", rf"{sys.executable} -c raise\ SystemError")
    with pytest.raises(in_place.NoLimit, match="SystemError"):
        in_place.Pass([[torch.zeros(16)]], 0)
