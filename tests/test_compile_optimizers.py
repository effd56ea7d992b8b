"""torch.compile: which optimizer a compiled step belongs to, while it lives and is what it was."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from compiling import EXACT, assert_same, made, no_recompilation, set_grads
from stepping import OPTIONS, values
from torch import nn

from grokfused import GrokAdam
from grokfused.optim import op

pytestmark = pytest.mark.usefixtures("nothing_compiled_before")


def test_one_optimizer_of_several_models_steps_the_one_that_was_trained() -> None:
    def trained(compiled: bool) -> GrokAdam:
        torch.manual_seed(0)
        models = [nn.Linear(3, 2) for _ in range(2)]
        optimizer = GrokAdam([param for model in models for param in model.parameters()], **OPTIONS)

        def run(model: nn.Module) -> None:
            torch._foreach_mul_([param.grad for param in model.parameters()], 2.0)
            optimizer.step()

        step = torch.compile(run, backend=EXACT, fullgraph=True) if compiled else run
        for seed in range(4):
            for number, model in enumerate(models):
                set_grads(model, 2 * seed + number)
            step(models[seed % 2])
        return optimizer

    assert_same(trained(compiled=True), trained(compiled=False))


def test_optimizers_and_their_copies_are_told_apart() -> None:
    step = torch.compile(lambda optimizer: optimizer.step(), backend="eager", fullgraph=True)
    model, optimizer = made()
    set_grads(model, 0)
    step(optimizer)
    pairs = [
        made(),
        copy.deepcopy((model, optimizer)),
        pickle.loads(pickle.dumps((model, optimizer))),
        (model, optimizer),
    ]
    twins = copy.deepcopy(pairs)
    for number, (one, traced) in enumerate(pairs):
        set_grads(one, number)
        step(traced)
    set_grads(model, 7)
    with no_recompilation(1):
        step(optimizer)
    for number, (one, plain) in enumerate(twins):
        set_grads(one, number)
        plain.step()
    set_grads(twins[-1][0], 7)
    twins[-1][1].step()
    for (_, traced), (_, plain) in zip(pairs, twins, strict=True):
        assert_same(traced, plain)


def test_compiled_code_keeps_no_optimizer_alive() -> None:
    step = torch.compile(lambda optimizer: optimizer.step(), backend=EXACT, fullgraph=True)
    model, optimizer = made()
    set_grads(model, 0)
    step(optimizer)
    weight = model[0].weight
    alive = [weakref.ref(each) for each in (optimizer, weight, optimizer.state[weight]["exp_avg"])]
    name = optimizer._name
    assert name in vars(op.traced_groups)
    del model, optimizer, weight
    gc.collect()
    assert [each() for each in alive] == [None] * 3
    assert name not in vars(op.traced_groups)
    model, optimizer = made()
    twin, plain = made()
    for each in (model, twin):
        set_grads(each, 1)
    step(optimizer)
    plain.step()
    assert_same(optimizer, plain)


def test_another_list_of_groups_is_refused() -> None:
    model, optimizer = made()
    step = torch.compile(optimizer.step, backend=EXACT, fullgraph=True)
    set_grads(model, 0)
    step()
    optimizer.param_groups = list(optimizer.param_groups)
    before = values(optimizer)
    with pytest.raises(RuntimeError, match=r"exchanged for another list.*torch\.compiler\.reset"):
        step()
    after = values(optimizer)
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.compiler.reset()
    step()
    assert optimizer.state[model[0].bias]["step"] == 2


def test_a_group_that_has_lost_an_option_is_refused() -> None:
    model, optimizer = made()
    set_grads(model, 0)
    step = torch.compile(optimizer.step, backend=EXACT, fullgraph=True)
    step()
    for name in ("lr", "betas", "seed"):
        value = optimizer.param_groups[0].pop(name)
        with pytest.raises(ValueError, match=rf"param_groups\[0\] has lost \['{name}'\]"):
            step()
        optimizer.param_groups[0][name] = value
    step()
    assert optimizer.state[model[0].bias]["step"] == 2


def test_the_op_passes_the_checks_of_torch() -> None:
    model, optimizer = made(lr=torch.tensor(0.1))
    # The op counts the step in the optimizer, and torch's checks call it several times and compare: with
    # gradients of 0 only the decay moves the parameters, as far in every step.
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    torch.compile(optimizer.step, backend="eager", fullgraph=True)()
    params = [param.detach().clone() for param in model.parameters()]
    grads = [torch.zeros_like(param) for param in params]
    arguments = (
        params,
        grads,
        [torch.tensor(0.2)],
        torch.tensor(4.0),
        None,
        (0,),
        (0, 1, 2, 3),
        optimizer._name,
    )
    found = torch.library.opcheck(torch.ops.grokfused.optimizer_step_.default, arguments)
    assert set(found.values()) == {"SUCCESS"}
    assert len(found) == 4
