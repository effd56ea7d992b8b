"""What the tests of torch.compile train, compile and compare."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from stepping import OPTIONS, values
from torch import Tensor, nn

from grokfused import GrokAdam, GrokAdamW
from grokfused.lab.agreement import differing_bits

# Keeps gradients exact, where "inductor" may round a model's arithmetic in another way than eager torch. It
# hands copies of the parameters to the step, where "inductor" hands over the parameters themselves.
EXACT = "aot_eager"
# An experiment of torch's, without which every backward() is a break in the graph.
TRACES_BACKWARD = hasattr(torch._dynamo.config, "trace_autograd_ops")
needs_traced_backward = pytest.mark.skipif(
    not TRACES_BACKWARD, reason="this torch breaks the graph at every backward()"
)

Made = tuple[nn.Module, GrokAdam]
Train = Callable[[], Any]


def made(**options: Any) -> Made:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3))
    return model, GrokAdamW(model.named_parameters(), **{**OPTIONS, **options})


def set_grads(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in model.parameters():
        param.grad = torch.randn(param.shape, generator=generator)


def loss_of(model: nn.Module) -> Tensor:
    return model(torch.ones(2, 7)).square().mean()


def no_recompilation(step: int) -> Any:
    tracing = {"trace_autograd_ops": True} if TRACES_BACKWARD else {}
    return torch._dynamo.config.patch(error_on_recompile=step > 0, **tracing)


def assert_same(found: GrokAdam, expected: GrokAdam) -> None:
    ours, theirs = values(found), values(expected)
    assert ours.keys() == theirs.keys()
    assert not [name for name in ours if differing_bits(ours[name], theirs[name])]


def assert_compiled_is_the_same(
    make: Callable[[], Made],
    train: Callable[[nn.Module, GrokAdam], Train],
    before: Callable[[nn.Module, GrokAdam, int], Any] = lambda *_: None,
    *,
    backend: str = EXACT,
    fullgraph: bool = True,
) -> None:
    """Trains twice, once compiled, and compares; with fullgraph nothing is compiled after the first step."""
    plain, traced = make(), make()
    eager = train(*plain)
    fast = torch.compile(train(*traced), backend=backend, fullgraph=fullgraph)
    for step in range(4):
        for (model, optimizer), run in ((plain, eager), (traced, fast)):
            set_grads(model, step)
            before(model, optimizer, step)
            with no_recompilation(step if fullgraph else 0):
                run()
    assert_same(traced[1], plain[1])
