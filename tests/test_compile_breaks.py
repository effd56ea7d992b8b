"""torch.compile: where the graph breaks at the step, and what is refused in it."""

import pytest
import torch
from compiling import EXACT, Train, assert_compiled_is_the_same, assert_same, loss_of, made, set_grads
from torch import Tensor, nn
from torch._dynamo.exc import Unsupported
from torch._dynamo.utils import counters

from grokfused import GrokAdam, GrokAdamW, step_in_backward
from grokfused.optim.dynamo import TRACES_ASSIGNMENTS, break_at_assignments

pytestmark = pytest.mark.usefixtures("nothing_compiled_before")


def sets_lr(_: nn.Module, optimizer: GrokAdam) -> Train:
    def run() -> None:
        optimizer.param_groups[0]["lr"] = 0.02
        optimizer.step()

    return run


def sets_mask(_: nn.Module, optimizer: GrokAdam) -> Train:
    mask = torch.arange(35).view(5, 7) % 3 > 0

    def run() -> None:
        optimizer.set_mask("0.weight", mask)
        optimizer.step()

    return run


def reads_states(_: nn.Module, optimizer: GrokAdam) -> Train:
    def run() -> int:
        known = len(optimizer.state)
        optimizer.step()
        return known

    return run


def sets_gradient_to_none(model: nn.Module, optimizer: GrokAdam) -> Train:
    def run() -> None:
        model[0].weight.grad = None
        optimizer.step()

    return run


def sets_loss_scale(_: nn.Module, optimizer: GrokAdam) -> Train:
    scale = torch.tensor(3.0)

    def run() -> None:
        optimizer.grad_scale, optimizer.found_inf = scale * 2, scale * 0
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf

    return run


def test_a_loss_scale_may_be_set_in_compiled_code() -> None:
    assert_compiled_is_the_same(made, sets_loss_scale, fullgraph=TRACES_ASSIGNMENTS)
    assert any("_assign" in reason for reason in counters["graph_break"]) == (not TRACES_ASSIGNMENTS)


def test_where_dynamo_would_fail_at_an_assignment_the_graph_breaks(monkeypatch) -> None:
    monkeypatch.setattr(GrokAdam, "__setattr__", None, raising=False)  # to be taken back
    monkeypatch.setattr(GrokAdam, "__delattr__", None, raising=False)
    break_at_assignments(GrokAdam)
    assert_compiled_is_the_same(made, sets_loss_scale, fullgraph=False)
    assert any("_assign" in reason for reason in counters["graph_break"])
    optimizer = made()[1]
    optimizer.note = 1
    del optimizer.note
    assert not hasattr(optimizer, "note")


@pytest.mark.filterwarnings("ignore:Dynamo detected a call to a `functools.lru_cache`")  # of set_mask
def test_masks_may_be_set_in_compiled_code() -> None:
    assert_compiled_is_the_same(made, sets_mask, fullgraph=False)


@pytest.mark.parametrize("train", [sets_lr, reads_states, sets_gradient_to_none])
def test_the_graph_breaks_where_it_has_changed_what_the_op_reads(train) -> None:
    assert_compiled_is_the_same(made, train, fullgraph=False)
    assert any("_untraced_step" in reason for reason in counters["graph_break"])
    model, optimizer = made()
    set_grads(model, 0)
    with pytest.raises(Unsupported):
        torch.compile(train(model, optimizer), backend="eager", fullgraph=True)()


def test_the_graph_breaks_where_the_step_was_taken_in_backward() -> None:
    (model, plain), (twin, traced) = made(), made()
    step_in_backward(plain)
    step_in_backward(traced)
    step = torch.compile(traced.step, backend="eager")
    for _ in range(2):
        for each, take in ((model, plain.step), (twin, step)):
            loss_of(each).backward()
            take()
    assert_same(traced, plain)
    twin[0].bias.grad = torch.ones(5)
    with pytest.raises(RuntimeError, match="had to be stepped in the backward pass"):
        step()


@pytest.mark.parametrize("key", ["exp_avg", "step"])
def test_a_graph_that_reads_the_states_it_steps_is_refused(key) -> None:
    model, optimizer = made()
    set_grads(model, 0)

    def run() -> Tensor:
        optimizer.step()
        return optimizer.state[model[0].weight][key] * 2

    before = [param.clone() for param in model.parameters()]
    with pytest.raises(RuntimeError, match=r"reads optimizer\.state"):
        torch.compile(run, backend=EXACT, fullgraph=True)()
    assert all(map(torch.equal, model.parameters(), before))


def test_the_graph_breaks_for_a_parameter_on_the_meta_device_and_the_others_are_stepped() -> None:
    stepped = []
    for compiled in (False, True):
        params = [torch.ones(5).requires_grad_(), torch.ones(4, device="meta").requires_grad_()]
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer = GrokAdamW(params, lr=0.1)
        step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
        for _ in range(3):
            step()
        stepped.append(params[0].detach())
        assert [optimizer.state[param]["step"].item() for param in params] == [3.0, 3.0]
    assert torch.equal(*stepped)
