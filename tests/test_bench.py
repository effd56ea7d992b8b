"""The bench measures what it says: the right work, the right bytes, honest ratios."""

import json
import sys

import pytest
import torch

from bench import masks_cpu, step_cpu
from bench.cases import CPU_CASES, bytes_per_element, demo, gpt2_small
from bench.contenders import (
    ALPHA,
    LAMB,
    Contender,
    Place,
    contender,
    foreach_grokfast,
    foreach_masked,
    parameters,
    python_grokfast,
    restoring_grads,
)
from bench.measure import interleaved, ratios
from grokfused import GrokAdamW


@pytest.mark.parametrize(
    ("states", "dtype", "expected"), [(3, torch.float32, 36), (2, torch.float32, 28), (3, torch.bfloat16, 24)]
)
def test_bytes_are_counted_from_the_dtypes(states, dtype, expected) -> None:
    assert bytes_per_element(torch.float32, dtype, states) == expected


def test_kahans_rest_is_counted_where_there_is_one() -> None:
    place = Place(dtype=torch.bfloat16)
    options = {"state_dtype": torch.bfloat16, "param_rounding": "kahan"}
    assert contender("ours", [(5,)], place, **options).bytes_per_element == 3 * 2 + 2 * 3 * 2 + 2 * 2
    assert contender("ours", [(5,)], **options).bytes_per_element == 24


def test_the_demo_case_is_the_demos_network() -> None:
    from grokfused.lab.model import Decoder

    assert sorted(tuple(p.shape) for p in Decoder(99).parameters()) == sorted(demo())
    assert (len(demo()), sum(torch.Size(s).numel() for s in demo())) == (29, 422_784)


def test_gpt_2_small_has_its_published_size() -> None:
    assert (len(gpt2_small()), sum(torch.Size(s).numel() for s in gpt2_small())) == (148, 124_439_808)


def test_a_drift_that_hits_all_alike_leaves_the_ratio() -> None:
    drift = [1.0, 2.0, 10.0, 3.0]
    assert ratios([3 * d for d in drift], [2 * d for d in drift]) == (1.5, 1.5, 1.5)


def test_contenders_take_turns() -> None:
    order: list[str] = []
    resets: list[str] = []
    entries = [
        Contender(name, lambda name=name: order.append(name), 1, lambda name=name: resets.append(name))
        for name in "abc"
    ]
    interleaved(entries, rounds=3, block=1)
    # Two warm-up calls each, then per round one untimed and one timed call, beginning with another one.
    assert "".join(order) == "aabbcc" + "aabbcc" + "bbccaa" + "ccaabb"
    assert "".join(resets) == "abc" * 3


@pytest.mark.parametrize("grokfast", [foreach_grokfast, python_grokfast])
def test_the_baselines_do_the_same_work(grokfast) -> None:
    shapes = [(7,), (5, 3)]
    theirs, ours = parameters(shapes), parameters(shapes)
    step, reset = grokfast(theirs), restoring_grads(theirs)
    optimizer = GrokAdamW(ours, alpha=ALPHA, lamb=LAMB, weight_decay=1e-2)
    for _ in range(10):
        reset()
        step()
        optimizer.step()
    for a, b in zip(theirs, ours, strict=True):
        # torch fuses and orders its roundings otherwise.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_usual_way_with_masks_does_the_same_work() -> None:
    shapes = [(70,), (5, 33)]
    theirs, ours = parameters(shapes), parameters(shapes)
    masks = [torch.rand(p.shape, generator=torch.Generator().manual_seed(2)) < 0.5 for p in ours]
    step, reset = foreach_masked(theirs, masks), restoring_grads(theirs)
    optimizer = GrokAdamW(ours, alpha=ALPHA, lamb=LAMB, weight_decay=1e-2)
    optimizer.set_masks(dict(zip(ours, masks, strict=True)))
    for _ in range(10):
        reset()
        step()
        optimizer.step()
    for a, b in zip(theirs, ours, strict=True):
        # torch fuses and orders its roundings otherwise.
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_bytes_under_a_mask_are_counted_by_words() -> None:
    param = torch.zeros(64)
    half = torch.arange(64) < 32
    assert masks_cpu.masked_bytes([param], [half | True]) == 36.125
    assert masks_cpu.masked_bytes([param], [half]) == (36 + 4) / 2 + 0.125
    assert masks_cpu.masked_bytes([param], [half & False]) == 4.125


def test_a_run_under_masks_is_recorded_with_every_row(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["masks_cpu", "--quick", "--json", str(tmp_path / "run.json")])
    masks_cpu.main()
    record = json.loads((tmp_path / "run.json").read_text())
    assert (len(record["rows"]), len(record["promises"])) == (11, 4)


def test_a_run_is_recorded_with_every_row(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["step_cpu", "--quick", "--json", str(tmp_path / "run.json")])
    monkeypatch.setattr(step_cpu, "CPU_CASES", {name: [(9,), (3, 2)] for name in CPU_CASES})
    step_cpu.main()
    record = json.loads((tmp_path / "run.json").read_text())
    assert len(record["rows"]) == 3 * 7
    assert len(record["promises"]) == 6
    assert record["machine"]["torch"] == torch.__version__
