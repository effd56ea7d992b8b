"""The bench of clipping measures the same work twice: in the step's pass, and before the step."""

import json
import sys

import torch

from bench import clipping_cpu
from bench.contenders import parameters, restoring_grads
from grokfused import GrokAdamW


def test_a_run_with_clipping_is_recorded_with_every_row(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["clipping_cpu", "--quick", "--json", str(tmp_path / "run.json")])
    monkeypatch.setattr(clipping_cpu, "CPU_CASES", {name: [(9,), (3, 2)] for name in clipping_cpu.ROUNDS})
    clipping_cpu.main()
    record = json.loads((tmp_path / "run.json").read_text())
    assert (len(record["rows"]), len(record["promises"])) == (2 * 6, 2)


def test_clipping_before_the_step_and_in_it_do_the_same_work() -> None:
    entries = {entry.name: entry for entry in clipping_cpu.contenders([(70,), (5, 33)])}
    assert [entry.bytes_per_element for entry in entries.values()] == [36, 40, 48, 28, 40, 8]
    shapes = [(70,), (5, 33)]
    before, within = parameters(shapes), parameters(shapes)
    limited = GrokAdamW(within, max_grad_norm=clipping_cpu.MAX_NORM)
    step = clipping_cpu.clipped_before(before, GrokAdamW(before).step)
    reset = restoring_grads(before)
    for _ in range(5):
        reset()
        step()
        limited.step()
    for a, b in zip(before, within, strict=True):
        # We divide by 1 / coefficient where torch multiplies by it.
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
