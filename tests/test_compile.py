"""torch.compile: a compiled training step is the same one, and the optimizer is one break in its graph."""

from collections import Counter

import pytest
import torch
from stepping import OPTIONS, values
from torch import Tensor
from torch._dynamo.utils import counters

from grokfused import GrokAdamW
from grokfused.lab.agreement import differing_bits


@pytest.fixture(autouse=True)
def _nothing_compiled_before() -> None:
    torch._dynamo.reset()
    counters.clear()


def trained(steps: int, compiled: str, hooks: Counter[str]) -> dict[str, Tensor]:
    """Takes steps with nothing, the optimizer's step or the whole training step compiled."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(7, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    optimizer = GrokAdamW(model.parameters(), **OPTIONS)
    optimizer.register_step_post_hook(lambda *_: hooks.update([compiled]))
    # Not "inductor", which may round a model's arithmetic in another way than eager torch.
    step = torch.compile(optimizer.step, backend="eager") if compiled == "step" else optimizer.step

    def train(inputs: Tensor) -> None:
        optimizer.zero_grad()
        model(inputs).square().mean().backward()
        step()

    if compiled == "training":
        train = torch.compile(train, backend="eager")
    for inputs in torch.randn(steps, 4, 7):
        train(inputs)
    return values(optimizer)


@pytest.mark.parametrize("compiled", ["step", "training"])
def test_compiled_steps_are_the_same_and_compiled_once(compiled) -> None:
    hooks: Counter[str] = Counter()
    expected, frames = trained(12, "nothing", hooks), []
    for steps in (3, 12):
        torch._dynamo.reset()
        counters.clear()
        found = trained(steps, compiled, hooks)
        frames.append(counters["frames"]["total"])
    assert found.keys() == expected.keys()
    assert not any(differing_bits(found[name], expected[name]) for name in found)
    assert hooks == {"nothing": 12, compiled: 15}
    assert frames[0] == frames[1], "later steps compile nothing"
    assert frames[0] < 20


def test_the_optimizer_breaks_the_graph_once() -> None:
    trained(1, "step", Counter())
    assert sum(counters["graph_break"].values()) == 1
