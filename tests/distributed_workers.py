"""What tests/test_distributed.py runs in several processes: each case is a function of the test's folder.

``python distributed_workers.py FOLDER`` leaves a file of each process there, with a line per case that held.
Gradients are made up and distributed in most cases: a step is element by element, so the result is that of
one process, bit for bit, whatever the number of shards.
"""

import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from stepping import OPTIONS
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from grokfused import GrokAdam, GrokAdamW, ops
from grokfused.lab.agreement import differing_bits

SECONDS = 150  # for a group on a busy machine; alone it takes a few
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}  # gradients are summed in another order


def whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same_bits(ours: Tensor, theirs: Tensor, what: object = "parameter") -> None:
    ours, theirs = whole(ours).contiguous(), whole(theirs).contiguous()
    assert differing_bits(ours, theirs) == 0, f"{what}: {ours} is not {theirs}"


def assert_same_states(ours: GrokAdam, theirs: GrokAdam) -> None:
    """Compares parameters, states and masks, element by element of the whole tensors."""
    pairs = [
        zip(a["params"], b["params"], strict=True)
        for a, b in zip(ours.param_groups, theirs.param_groups, strict=True)
    ]
    for param, other in (pair for group in pairs for pair in group):
        assert_same_bits(param, other)
        assert ours.state[param].keys() == theirs.state[other].keys()
        for key in sorted(theirs.state[other].keys() - {"mask"}):  # one order: each is a collective
            assert_same_bits(ours.state[param][key], theirs.state[other][key], key)
    masks = zip(ours.masks().values(), theirs.masks().values(), strict=True)
    assert all(torch.equal(whole(mask), whole(other)) for mask, other in masks)


def network() -> nn.Module:
    """Returns a network of odd sizes; on two and on three processes some shards of it are empty."""
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 9), nn.LayerNorm(9), nn.Tanh(), nn.Linear(9, 1))


def sharded_network() -> nn.Module:
    model = network()
    for layer in model[0], model[3]:
        fully_shard(layer)
    return fully_shard(model)


def give_grads(model: nn.Module, step: int) -> None:
    """Gives every parameter a gradient that depends on the step, spread as the parameter is."""
    random = torch.Generator().manual_seed(100 + step)
    for param in model.parameters():
        grad = torch.randn(param.shape, generator=random)
        if isinstance(param, DTensor):
            grad = distribute_tensor(grad, param.device_mesh, param.placements)
        param.grad = grad


def batch(step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(200 + step)
    return torch.randn(8, 5, generator=random), torch.randn(8, 1, generator=random)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, part: slice = slice(None)) -> None:
    for step in range(5):
        inputs, targets = (whole_batch[part] for whole_batch in batch(step))
        optimizer.zero_grad()
        (model(inputs) - targets).square().mean().backward()
        optimizer.step()


def my_part() -> slice:
    return slice(dist.get_rank(), None, dist.get_world_size())


def mask_for(param: Tensor) -> Tensor:
    """Returns a mask that keeps two thirds, spread as the parameter is."""
    mask = torch.arange(param.numel()).view(param.shape) % 3 != 1
    return (
        distribute_tensor(mask, param.device_mesh, param.placements) if isinstance(param, DTensor) else mask
    )


def set_two_masks(optimizer: GrokAdam, model: nn.Module) -> None:
    optimizer.set_mask(model[0].weight, mask_for(model[0].weight), "zero")
    optimizer.set_mask(model[3].weight, mask_for(model[3].weight), "freeze")


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
    meshes = init_device_mesh("cpu", (2,)), init_device_mesh("cpu", (1, 2), mesh_dim_names=("a", "b"))
    layouts = [
        (meshes[0], [Shard(0)], [9, 7]),
        (meshes[0], [Shard(1)], [4, 5]),
        (meshes[0], [Shard(0)], [1]),
        (meshes[0], [Replicate()], []),
        (meshes[1], [Shard(0), Shard(1)], [3, 6]),
        (meshes[1], [Replicate(), Shard(0)], [0, 3]),
    ]
    for kind in GrokAdam, GrokAdamW:
        plain = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for *_, shape in layouts]
        plain.append(torch.ones(6))  # a parameter that is not sharded at all
        spread = [distribute_tensor(p.clone(), m, at) for p, (m, at, _) in zip(plain, layouts, strict=False)]
        models = [nn.ParameterList(params) for params in (plain, [*spread, plain[-1].clone()])]
        one, many = (kind(model.parameters(), amsgrad=True, **OPTIONS) for model in models)
        for step in range(4):
            for model in models:
                give_grads(model, step)
            one.step()
            many.step()
        assert_same_states(many, one)


def later_steps_run_on_remembered_addresses(_: Path) -> None:
    model = sharded_network()
    optimizer = GrokAdamW(model.parameters(), **OPTIONS)
    train(model, optimizer, my_part())
    plan, through_the_op, versions = (
        optimizer._plan,
        ops.adamw_step_,
        [p._version for p in model.parameters()],
    )
    ops.adamw_step_ = None
    train(model, optimizer, my_part())
    ops.adamw_step_ = through_the_op
    assert optimizer._plan is plan
    assert all(p._version > before for p, before in zip(model.parameters(), versions, strict=True))


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
    assert (mask.placements, mask.shape, mask.dtype) == ((Shard(0),), (9, 5), torch.bool)
    resumed = GrokAdamW(sharded_network().parameters())
    resumed.load_state_dict(many.state_dict())
    assert [packed["mask"].mode for packed in resumed.state.values() if "mask" in packed] == [
        "zero",
        "freeze",
    ]
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
        GrokAdamW([DTensor.from_local(full, mesh, [Partial()], run_check=False)])
    with pytest.raises(ValueError, match="set_optimizer_state_dict"):
        many.load_state_dict(one.state_dict())


def a_scaled_loss(_: Path) -> None:
    plain, model = network(), sharded_network()
    one, many = GrokAdamW(plain.parameters(), **OPTIONS), GrokAdamW(model.parameters(), **OPTIONS)
    for net, optimizer in (plain, one), (model, many):
        scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
        for step in range(3):
            give_grads(net, step)
            if step == 1:  # an overflow in one shard cancels the step on all processes
                bad = next(net.parameters()).grad
                local = bad.to_local() if isinstance(bad, DTensor) else bad
                if local is bad or dist.get_rank() == 1:
                    local[-1] = torch.inf
            scaler.scale(torch.ones(()))
            scaler.step(optimizer)
            scaler.update()
    assert_same_states(many, one)
    assert all(state["step"].item() == 2 for state in many.state.values())


def ddp_trains_like_one_process(_: Path) -> None:
    plain, model = network(), DistributedDataParallel(network())
    train(plain, GrokAdamW(plain.parameters(), **OPTIONS))
    train(model, GrokAdamW(model.parameters(), **OPTIONS), my_part())
    for param, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(param, other, **ROUNDING)


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


def a_full_state_dict_fits_one_process(_: Path) -> None:
    plain, model = network(), sharded_network()
    one, many = GrokAdamW(plain.parameters(), **OPTIONS), GrokAdamW(model.parameters(), **OPTIONS)
    set_two_masks(one, plain)
    set_two_masks(many, model)
    for net, optimizer in (plain, one), (model, many):
        give_grads(net, 0)
        optimizer.step()
    full = get_optimizer_state_dict(
        model, many, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    if dist.get_rank() == 0:
        names = [name for name, _ in plain.named_parameters()]
        resumed = GrokAdamW(plain.parameters(), **OPTIONS)
        group = {**full["param_groups"][0], "params": list(range(len(names)))}
        resumed.load_state_dict(
            {"state": {i: full["state"][name] for i, name in enumerate(names)}, "param_groups": [group]}
        )
        assert_same_states(resumed, one)


def save(folder: Path) -> None:
    """Trains three steps, saves, and notes what one process has three steps later."""
    plain, model = network(), sharded_network()
    one, many = GrokAdamW(plain.parameters(), **OPTIONS), GrokAdamW(model.parameters(), **OPTIONS)
    for net, optimizer in (plain, one), (model, many):
        set_two_masks(optimizer, net)
        for step in range(3):
            give_grads(net, step)
            optimizer.step()
    weights, states = get_state_dict(model, many)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder / "checkpoint")
    for step in range(3, 6):
        give_grads(plain, step)
        one.step()
    if dist.get_rank() == 0:
        torch.save({"model": plain.state_dict(), "optimizer": one.state_dict()}, folder / "later.pt")


def load(folder: Path) -> None:
    """Resumes on this number of processes from what ``save`` has written."""
    plain = network()
    model = sharded_network() if dist.get_world_size() > 1 else network()
    one, many = GrokAdamW(plain.parameters()), GrokAdamW(model.parameters(), **OPTIONS)
    for param in model.parameters():
        nn.init.zeros_(param)
    for layer in model[0], model[3]:  # DCP reads what there is a place for
        many.set_mask(layer.weight, torch.ones_like(layer.weight, dtype=torch.bool), "freeze")
    give_grads(model, 50)
    many.step()
    many.zero_grad()
    weights, states = get_state_dict(model, many)
    found = {"model": weights, "optimizer": states}
    dcp.load(found, checkpoint_id=folder / "checkpoint")
    set_state_dict(model, many, model_state_dict=found["model"], optim_state_dict=found["optimizer"])
    for step in range(3, 6):
        give_grads(model, step)
        many.step()
    later = torch.load(folder / "later.pt", weights_only=True)
    plain.load_state_dict(later["model"])
    one.load_state_dict(later["optimizer"])
    assert_same_states(many, one)


CASES = [
    fsdp2_trains_like_one_process,
    every_layout_steps_bit_for_bit,
    later_steps_run_on_remembered_addresses,
    masks_are_sharded_like_their_parameters,
    gradients_of_other_layouts,
    a_scaled_loss,
    ddp_trains_like_one_process,
    zero_redundancy_optimizer,
    a_full_state_dict_fits_one_process,
    save,
]


def work(rank: int, world_size: int, folder: Path, cases: list[Callable[[Path], None]]) -> None:
    """One process of a group; what it says goes into a file of its own."""
    with (folder / f"{rank}_of_{world_size}.txt").open("w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # A file is the meeting place: a port could be taken by someone else between asking and binding.
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting{world_size}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=60),
    )
    warnings.simplefilter("error")
    for case in cases:
        case(folder)
        print("held:", case.__name__, flush=True)
    dist.destroy_process_group()


def main() -> None:
    """Runs all cases on two processes, and then ``load`` on one and, meanwhile, on three."""
    folder = Path(sys.argv[1])
    # Forked: importing all this takes seconds, and nothing has started a thread yet.
    new_process = multiprocessing.get_context("fork").Process
    for groups in {2: CASES}, {1: [load], 3: [load]}:
        processes = [
            new_process(target=work, args=(rank, world_size, folder, cases), daemon=True)
            for world_size, cases in groups.items()
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(SECONDS)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
