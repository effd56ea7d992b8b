"""The memory model is what optimizers really keep, and its tables are plain arithmetic on it."""

import pytest
import torch

from bench import model
from grokfused import GrokAdamW

ELEMENTS = 1024


def plane_of(state: torch.Tensor) -> torch.Tensor:
    """Returns what a step writes of a state: of a window, one gradient."""
    return state[0] if state.dim() > 1 else state


@pytest.mark.parametrize("variant", model.VARIANTS.values(), ids=model.VARIANTS)
def test_what_a_variant_holds_and_writes_is_counted(variant) -> None:
    param = torch.ones(ELEMENTS, dtype=variant.dtype, requires_grad=True)
    param.grad = torch.ones_like(param)
    optimizer = GrokAdamW([param], **variant.options)
    optimizer.step()
    kept = [v for k, v in optimizer.state[param].items() if k not in ("step", "grad_window_start")]
    states, written = (sum(value.nbytes for value in each) for each in (kept, [plane_of(v) for v in kept]))
    assert variant.held * ELEMENTS == param.nbytes + param.grad.nbytes + states
    assert variant.traffic.written * ELEMENTS == param.nbytes + written


def test_a_size_costs_its_bytes_over_the_bandwidth_of_the_devices_that_hold_it() -> None:
    rows = {line.split(" | ")[0][2:]: line for line in model.cost_table(1e9, ["float32"]).splitlines()[2:]}
    assert f"| 1, {36e9 / 3.35e12 * 1e3:.3g} |" in rows["NVIDIA H100 SXM 80 GB"]
    rows = {line.split(" | ")[0][2:]: line for line in model.cost_table(70e9, ["float32"]).splitlines()[2:]}
    devices = 10  # 70e9 parameters of 20 bytes, in devices of 141e9
    assert f"| {devices}, {70e9 * 36 / 4.8e12 / devices * 1e3:.3g} |" in rows["NVIDIA H200 141 GB"]


def test_the_model_stands_beside_what_was_measured() -> None:
    spread = {"median": 0.8, "low": 0.7, "high": 0.9}
    rows = [
        {
            "implementation": name,
            "bytes_per_element": moved,
            "times_longer_than": {"GrokAdamW": spread},
            "device": "cpu",
            "share_of_limit": spread,
        }
        for name, moved in (("GrokAdamW", 36), ("AdamW(fused)", 28))
    ]
    rows.append({"implementation": "AdamW(foreach)", "bytes_per_element": 28, "why_not": "absent"})
    lines = model.check_table(rows).splitlines()
    assert lines[3] == "| AdamW(fused) | 28 | 0.78 | 0.80 (0.70-0.90) | 0.80 |"
    assert len(lines) == 4  # what was not measured checks nothing
