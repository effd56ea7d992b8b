"""Cases of tests/test_distributed.py: the step on shards and replicas, and the masks of shards."""

import copy
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from distributed_group import (
    ROUNDING,
    assert_same_bits,
    assert_same_states,
    batch,
    every_layout,
    give_grads,
    mask_for,
    my_part,
    network,
    set_two_masks,
    sharded_network,
    train,
    whole,
)
from stepping import OPTIONS
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from grokfused import GrokAdam, GrokAdamW, step_in_backward


def fsdp2_trains_like_one_process(_: Path) -> None:
    plain, model = network(), sharded_network()
    one, many = GrokAdamW(plain.parameters(), **OPTIONS), GrokAdamW(model.parameters(), **OPTIONS)
    train(plain, one)
    train(model, many, my_part())
    for param, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(whole(param), other.detach(), **ROUNDING)
        state = many.state[param]
        assert all(state[key].placements == param.placements for key in ("exp_avg", "exp_avg_sq", "grad_ema"))
        assert type(state["step"]) is Tensor
        assert (state["step"].shape, state["step"].item()) == ((), 5)
    assert 0 in [param.to_local().numel() for param in model.parameters()] or dist.get_rank() == 0


def every_layout_steps_bit_for_bit(_: Path) -> None:
    options = {**OPTIONS, "amsgrad": True, "param_rounding": "kahan"}
    for kind, dtype in (GrokAdam, torch.float32), (GrokAdamW, torch.float32), (GrokAdamW, torch.bfloat16):
        models = every_layout(dtype)
        one, many = (kind(model.parameters(), **options) for model in models)
        for step in range(4):
            for model in models:
                give_grads(model, step)
            one.step()
            many.step()
        assert_same_states(many, one)
    first = many.param_groups[0]["params"][0]
    assert many.state[first]["kahan_comp"].placements == first.placements


def a_compiled_step_leaves_the_graph_for_shards(_: Path) -> None:
    plain, model = network(), sharded_network()
    one, many = GrokAdamW(plain.parameters(), **OPTIONS), GrokAdamW(model.parameters(), **OPTIONS)
    step = torch.compile(many.step, backend="eager")
    for number in range(3):
        give_grads(plain, number)
        give_grads(model, number)
        one.step()
        step()
    assert_same_states(many, one)


def masks_are_sharded_like_their_parameters(_: Path) -> None:
    plain, model = network(), sharded_network()
    one, many = GrokAdamW(plain.parameters(), **OPTIONS), GrokAdamW(model.parameters(), **OPTIONS)
    for net, optimizer in (plain, one), (model, many):
        give_grads(net, 0)
        optimizer.step()
        set_two_masks(optimizer, net)
        give_grads(net, 1)
        optimizer.step()
    assert_same_states(many, one)
    assert len(many.masks()) == 2
    mask = many.state_dict()["state"][0]["mask"]
    assert (mask.placements, mask.shape, mask.dtype) == ((Shard(0),), (9, 5), torch.uint8)
    resumed = GrokAdamW(sharded_network().parameters())
    resumed.load_state_dict(many.state_dict())
    modes = [packed["mask"].mode for packed in resumed.state.values() if "mask" in packed]
    # The last layer has one row: of its mask the second process has nothing, and nothing to leave out.
    assert modes == ["zero", "freeze" if dist.get_rank() == 0 else "zero"]
    for mine, loaded in zip(many.masks().values(), resumed.masks().values(), strict=True):
        assert torch.equal(whole(mine), whole(loaded))
    with pytest.raises(ValueError, match="got a plain tensor"):
        many.set_mask(model[0].weight, torch.ones(9, 5).bool())


def gradients_of_other_layouts(_: Path) -> None:
    mesh, other = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2), mesh_dim_names=("a", "b"))
    plain = torch.randn([5, 3], generator=torch.Generator().manual_seed(1))
    sharded = nn.Parameter(distribute_tensor(plain.clone(), mesh, [Shard(0)]))
    one, many = GrokAdamW([plain], **OPTIONS), GrokAdamW([("w", sharded)], **OPTIONS)
    full = torch.randn([5, 3], generator=torch.Generator().manual_seed(2))
    half = DTensor.from_local(full / 2, mesh, [Partial()], run_check=False)
    for grad in half, distribute_tensor(full, mesh, [Shard(1)]), distribute_tensor(full, mesh, [Replicate()]):
        plain.grad, sharded.grad = full, grad
        one.step()
        many.step()
    assert_same_states(many, one)
    for wrong in distribute_tensor(full, other, [Replicate(), Shard(0)]), full:
        sharded.grad = None  # torch compares a new gradient with the parameter, but not their meshes
        sharded.grad = wrong
        with pytest.raises(RuntimeError, match="the gradient of parameter 'w'"):
            many.step()
    assert_same_states(many, one)
    with pytest.raises(ValueError, match="Partial"):
        GrokAdamW([DTensor.from_local(full, mesh, [Partial()], run_check=False).requires_grad_()])
    with pytest.raises(ValueError, match="set_optimizer_state_dict"):
        many.load_state_dict(one.state_dict())


def ddp_trains_like_one_process(_: Path) -> None:
    plain, model = network(), DistributedDataParallel(network())
    train(plain, GrokAdamW(plain.parameters(), **OPTIONS))
    train(model, GrokAdamW(model.parameters(), **OPTIONS), my_part())
    for param, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(param, other, **ROUNDING)


def a_step_in_backward_refuses_ddp(_: Path) -> None:
    """Whichever came first, the wrapper or the handle, and before anything was stepped."""
    net = network()
    optimizer = GrokAdamW(net.named_parameters(), **OPTIONS)
    words = "parameter '.*' of group 0 .* is one of a DistributedDataParallel model"
    early = step_in_backward(optimizer)
    model = DistributedDataParallel(net)
    before = [param.detach().clone() for param in net.parameters()]
    with pytest.raises(RuntimeError, match=words):
        model(batch(0)[0]).sum().backward()
    for param, old in zip(net.parameters(), before, strict=True):
        assert_same_bits(param, old)
    early.remove()
    optimizer.zero_grad()
    with pytest.raises(RuntimeError, match=words):
        step_in_backward(optimizer)
    other = network()  # beside it, one that is not exchanged
    with step_in_backward(GrokAdamW(other.parameters())):
        other(batch(0)[0]).sum().backward()


def a_step_in_backward_of_shards_is_the_ordinary_one(_: Path) -> None:
    models = sharded_network(), sharded_network()
    optimizers = [GrokAdamW(model.parameters(), **OPTIONS) for model in models]
    for number, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
        with step_in_backward(optimizer) if number else nullcontext():
            train(model, optimizer, my_part())
    for param, other in zip(*(model.parameters() for model in models), strict=True):
        assert_same_bits(whole(param), whole(other))


def zero_redundancy_optimizer(_: Path) -> None:
    plain, model = network(), network()
    one = GrokAdamW(plain.parameters(), **OPTIONS)
    many = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=GrokAdamW, **OPTIONS)
    resumed = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=GrokAdamW, **OPTIONS)
    for step in range(6):
        if step == 3:  # all states, gathered on the first process, and given out again
            many.consolidate_state_dict(to=0)
            saved = [many.state_dict() if dist.get_rank() == 0 else None]
            dist.broadcast_object_list(saved, src=0)
            resumed.load_state_dict(saved[0])
            many = resumed
        for net, optimizer in (plain, one), (model, many):
            give_grads(net, step)
            optimizer.step()
    for param, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert_same_bits(param, other)


def zero_redundancy_optimizer_keeps_masks(_: Path) -> None:
    """Masks are set on the optimizer of each process; one process loads what all have saved, and all its."""
    plain, model = network(), network()
    one = GrokAdamW(plain.parameters(), **OPTIONS)
    many = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=GrokAdamW, **OPTIONS)
    for step in range(6):
        if step == 1:
            set_two_masks(one, plain)
            mine = [param for group in many.optim.param_groups for param in group["params"]]
            for layer, mode in (model[0], "zero"), (model[3], "freeze"):
                if any(param is layer.weight for param in mine):
                    many.optim.set_mask(layer.weight, mask_for(layer.weight), mode)
        if step in (2, 3):  # from all to all, and anew
            saved = consolidated(many)
            many = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=GrokAdamW, **OPTIONS)
            many.load_state_dict(saved)
        if step == 4:  # from all to one
            resumed = GrokAdamW(plain.parameters())
            resumed.load_state_dict(consolidated(many))
            assert_same_states(resumed, one)
            one = resumed
        if step == 5:  # from one to all
            many = ZeroRedundancyOptimizer(model.parameters(), optimizer_class=GrokAdamW, **OPTIONS)
            many.load_state_dict(copy.deepcopy(one.state_dict()))
        for net, optimizer in (plain, one), (model, many):
            give_grads(net, step)
            optimizer.step()
    for param, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert_same_bits(param, other)
    assert len(one.masks()) == 2


def consolidated(optimizer: ZeroRedundancyOptimizer) -> dict[str, Any]:
    optimizer.consolidate_state_dict(to=0)
    saved = [optimizer.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(saved, src=0)
    return saved[0]


CASES = [
    fsdp2_trains_like_one_process,
    every_layout_steps_bit_for_bit,
    a_compiled_step_leaves_the_graph_for_shards,
    masks_are_sharded_like_their_parameters,
    gradients_of_other_layouts,
    ddp_trains_like_one_process,
    a_step_in_backward_refuses_ddp,
    a_step_in_backward_of_shards_is_the_ordinary_one,
    zero_redundancy_optimizer,
    zero_redundancy_optimizer_keeps_masks,
]
