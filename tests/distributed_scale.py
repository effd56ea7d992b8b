"""Cases of tests/test_distributed.py: what multiplies the gradients of a step, clipping and a loss scale."""

import itertools
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed_group import (
    ROUNDING,
    assert_same_bits,
    assert_same_states,
    every_layout,
    give_grads,
    my_part,
    network,
    sharded_network,
    train,
    whole,
)
from stepping import OPTIONS
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, get_total_norm

from grokfused import GrokAdamW
from grokfused.step.norm import total_norm

LIMIT = 0.7  # the norms of the gradients below are 5 to 10
# Squares are summed shard by shard, and we divide by 1 / coefficient where torch multiplies by it: a few
# roundings (6e-8) of each gradient, of which the states are sums; the parameters, of order 1, move by lr.
CLIPPED = {"rtol": 1e-6, "atol": 1e-7}


def assert_close_states(ours: GrokAdamW, theirs: GrokAdamW) -> None:
    pairs = zip(ours.param_groups[0]["params"], theirs.param_groups[0]["params"], strict=True)
    for param, other in pairs:
        torch.testing.assert_close(whole(param), whole(other), **CLIPPED)
        for key, value in theirs.state[other].items():
            torch.testing.assert_close(whole(ours.state[param][key]), value, **CLIPPED)


def clipping_is_clip_grad_norm_and_a_step_of_one_process(_: Path) -> None:
    for one_process, several in (network(), sharded_network()), every_layout():
        one = GrokAdamW(one_process.parameters(), **OPTIONS)
        many = GrokAdamW(several.parameters(), **OPTIONS, max_grad_norm=LIMIT)
        for step in range(4):
            for model in one_process, several:
                give_grads(model, step)
            before = [whole(param.grad).clone() for param in several.parameters()]
            many.step()
            for param, grad in zip(several.parameters(), before, strict=True):
                assert_same_bits(param.grad, grad, "gradients are read only")
            norm = clip_grad_norm_(one_process.parameters(), LIMIT)
            assert norm > 5 * LIMIT
            one.step()
        assert_close_states(many, one)


def clipping_trains_like_one_process(_: Path) -> None:
    plain, model = network(), sharded_network()
    train(plain, GrokAdamW(plain.parameters(), **OPTIONS, max_grad_norm=0.1))
    train(model, GrokAdamW(model.parameters(), **OPTIONS, max_grad_norm=0.1), my_part())
    for param, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(whole(param), other.detach(), **ROUNDING)


def the_norm_counts_every_element_once(_: Path) -> None:
    """Whatever the layout, beside gradients that are no DTensors, in 16 bits, and before they are summed."""
    one_process, several = every_layout()
    for model in one_process, several:
        give_grads(model, 0)
    plain = [param.grad for param in one_process.parameters()]
    spread = [param.grad for param in several.parameters()]
    mesh = init_device_mesh("cpu", (2,))
    half = DTensor.from_local(plain[0] / 2, mesh, [Partial()], run_check=False)
    narrow = [[grad.bfloat16() for grad in grads[:3]] + grads[3:] for grads in (plain, spread)]
    # A norm of norms, grouped otherwise by shards and meshes: a few roundings of 2**-24.
    for ours, theirs in ((spread, plain), ([half, *spread[1:]], plain), narrow[::-1]):
        assert total_norm(ours).device == torch.device("cpu")
        assert type(total_norm(ours)) is Tensor
        torch.testing.assert_close(total_norm(ours), total_norm(theirs), rtol=1e-6, atol=0)
    torch.testing.assert_close(total_norm(spread), get_total_norm(plain), rtol=1e-6, atol=0)


def a_norm_that_is_not_finite_reaches_all_processes(_: Path) -> None:
    model = sharded_network()
    optimizer = GrokAdamW(model.parameters(), **OPTIONS, max_grad_norm=LIMIT)
    give_grads(model, 0)
    spoil(model, 0, torch.nan)
    optimizer.step()
    assert all(whole(param).isnan().all() for param in model.parameters())


def spoil(model: nn.Module, rank: int, value: float) -> None:
    """Writes a number into the first gradient, on one process where it is sharded."""
    grad = next(model.parameters()).grad
    local = grad.to_local() if isinstance(grad, DTensor) else grad
    if local is grad or dist.get_rank() == rank:
        local[-1] = value


def an_overflow_on_one_process_cancels_the_step_on_all(_: Path) -> None:
    cases = itertools.product((0, 1), (torch.inf, torch.nan), (True, False), (None, LIMIT))
    for rank, value, unscales_grads, max_grad_norm in cases:
        options = {**OPTIONS, "unscales_grads": unscales_grads, "max_grad_norm": max_grad_norm}
        model = sharded_network()
        optimizer = GrokAdamW(model.parameters(), **options)
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        before = [whole(param).clone() for param in model.parameters()]
        give_grads(model, 0)
        spoil(model, rank, value)
        scaler.scale(torch.ones(()))
        if rank:  # the user may want to look at them first
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        for param, old in zip(model.parameters(), before, strict=True):
            assert_same_bits(param, old)
        assert all(state["step"].item() == 0 for state in optimizer.state.values())
        assert scaler.get_scale() == 4.0


def shards_that_are_no_dtensors(_: Path) -> None:
    """As FSDP1 has them: its scaler tells all processes, but only where it unscales itself."""
    param = nn.Parameter(torch.ones(4))
    optimizer = GrokAdamW([param], **OPTIONS, unscales_grads=False)
    scaler = ShardedGradScaler("cpu", init_scale=8.0)
    param.grad = torch.full((4,), torch.inf if dist.get_rank() else 1.0)
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(param, torch.ones(4))
    assert scaler.get_scale() == 4.0


def a_norm_of_a_part_warns(_: Path) -> None:
    """Once, with the way out; not where the gradients are whole. (Warnings are errors here.)"""
    cpu = torch.device("cpu")
    flat, original = (
        FullyShardedDataParallel(network(), device_id=cpu, use_orig_params=each) for each in (False, True)
    )
    options = {**OPTIONS, "max_grad_norm": LIMIT}
    zero_model = network()
    cases = {
        "FullyShardedDataParallel .* its own clip_grad_norm_": [
            (model, GrokAdamW(model.parameters(), **options)) for model in (flat, original)
        ],
        "ZeroRedundancyOptimizer .* torch.nn.utils.clip_grad_norm_ of all": [
            (zero_model, ZeroRedundancyOptimizer(zero_model.parameters(), GrokAdamW, **options))
        ],
    }
    for words, found in cases.items():
        for model, optimizer in found:
            with pytest.warns(UserWarning, match=words):
                train(model, optimizer, steps=1)
            train(model, optimizer, steps=1)
    whole_model = DistributedDataParallel(network())
    train(whole_model, GrokAdamW(whole_model.parameters(), **options), steps=1)


def a_scaled_loss(_: Path) -> None:
    plain, model = network(), sharded_network()
    one, many = GrokAdamW(plain.parameters(), **OPTIONS), GrokAdamW(model.parameters(), **OPTIONS)
    for net, optimizer in (plain, one), (model, many):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(3):
            give_grads(net, step)
            if step == 1:
                spoil(net, 1, torch.inf)
            scaler.scale(torch.ones(()))
            scaler.step(optimizer)
            scaler.update()
    assert_same_states(many, one)
    assert all(state["step"].item() == 2 for state in many.state.values())


CASES = [
    clipping_is_clip_grad_norm_and_a_step_of_one_process,
    clipping_trains_like_one_process,
    the_norm_counts_every_element_once,
    a_norm_that_is_not_finite_reaches_all_processes,
    an_overflow_on_one_process_cancels_the_step_on_all,
    shards_that_are_no_dtensors,
    a_norm_of_a_part_warns,
    a_scaled_loss,
]
