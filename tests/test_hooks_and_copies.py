"""What torch's optimizers do for their surroundings: autograd, hooks, closures, copies."""

import copy
import pickle

import pytest
import torch
from stepping import BACKENDS, OPTIONS, assert_same_bits, mixed_params, new_param, train, values
from torch import Tensor

from grokfused import GrokAdam, GrokAdamW
from grokfused.lab.agreement import differing_bits

# --- autograd, hooks, closures ---------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_backward_pass_through_values_of_before_the_step_fails_loudly(backend, steps) -> None:
    param = new_param(5)
    optimizer = GrokAdamW([param], backend=backend, **OPTIONS)
    train(optimizer, steps - 1)
    loss = param.square().sum()
    version = param._version
    train(optimizer, 1)
    assert param._version > version
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_closure_runs_with_gradients_and_its_loss_is_returned() -> None:
    results = []
    for with_closure in (False, True):
        param = new_param(9)
        optimizer = GrokAdamW([param], **OPTIONS)

        def closure(param=param, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = param.square().sum()
            loss.backward()
            return loss

        for _ in range(3):
            expected = param.detach().square().sum()
            if with_closure:
                assert optimizer.step(closure).item() == expected.item()
            else:
                closure()
                optimizer.step()
        results.append(values(optimizer))
    assert_same_bits(*results)


def test_step_hooks_run_once_around_every_step() -> None:
    param = new_param(9)
    optimizer = GrokAdamW([param], **OPTIONS)
    seen = []
    before = optimizer.register_step_pre_hook(
        lambda who, args, kwargs: seen.append(("before", who is optimizer, param.detach().clone()))
    )
    after = optimizer.register_step_post_hook(
        lambda who, args, kwargs: seen.append(("after", who is optimizer, param.detach().clone()))
    )
    train(optimizer, 3)
    assert [(name, own) for name, own, _ in seen] == [("before", True), ("after", True)] * 3
    for start, end in zip(seen[::2], seen[1::2], strict=True):
        assert differing_bits(start[2], end[2]) > 0
    before.remove()
    after.remove()
    train(optimizer, 1)
    assert len(seen) == 6


def test_step_hooks_are_shown_the_arguments_that_were_given() -> None:
    optimizer = GrokAdamW([new_param(9)], **OPTIONS)
    seen = []
    optimizer.register_step_pre_hook(lambda who, *given: seen.append(given))
    optimizer.register_step_post_hook(lambda who, *given: seen.append(given))

    def closure() -> None: ...

    optimizer.step()
    optimizer.step(closure)
    assert seen == [((optimizer,), {})] * 2 + [((optimizer, closure), {})] * 2


def test_global_step_hooks_see_it_too() -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    seen = []
    handles = [
        register_optimizer_step_pre_hook(lambda who, args, kwargs: seen.append(("before", who))),
        register_optimizer_step_post_hook(lambda who, args, kwargs: seen.append(("after", who))),
    ]
    optimizer = GrokAdamW([new_param(3)], **OPTIONS)
    try:
        train(optimizer, 2)
    finally:
        for handle in handles:
            handle.remove()
    assert seen == [("before", optimizer), ("after", optimizer)] * 2


# --- copies ----------------------------------------------------------------------------------------------


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda pair: pickle.loads(pickle.dumps(pair))}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("kind", [GrokAdamW, GrokAdam])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_copy_made_in_mid_training_continues_identically(backend, kind, duplicate) -> None:
    params = mixed_params()
    optimizer = kind(
        params, backend=backend, amsgrad=True, state_dtype=torch.bfloat16, seed=3, foreach=True, **OPTIONS
    )
    train(optimizer, 3)
    new_params, new = duplicate((params, optimizer))
    assert new.param_groups[0]["params"][0] is new_params[0]
    before = values(optimizer)
    train(new, 3, seed=5)
    assert_same_bits(values(optimizer), before)
    train(optimizer, 3, seed=5)
    assert_same_bits(values(optimizer), values(new))


def test_its_representation_names_every_option() -> None:
    shown = repr(GrokAdamW([new_param(3)], **OPTIONS))
    for name, value in OPTIONS.items():
        assert f"{name}: {value}" in shown
