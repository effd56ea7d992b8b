"""What the cases that several processes run have in common: a network, its gradients, and comparisons.

Gradients are made up and distributed in most cases: a step is element by element, so the result is that of
one process, bit for bit, whatever the number of shards.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from grokfused import GrokAdam
from grokfused.lab.agreement import differing_bits

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
            mine, other_ones = ours.state[param][key], theirs.state[other][key]
            if isinstance(other_ones, Tensor):
                assert_same_bits(mine, other_ones, key)
            else:  # when a filter's memory was made
                assert mine == other_ones, key
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


def every_layout(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """Returns the same parameters on one process and, but for the last one, spread over two."""
    mesh, wide, high = (
        init_device_mesh("cpu", shape, mesh_dim_names=names)
        for shape, names in (((2,), None), ((1, 2), ("a", "b")), ((2, 1), ("c", "d")))
    )
    layouts = [
        (mesh, [Shard(0)], [9, 7]),
        (mesh, [Shard(1)], [4, 5]),
        (mesh, [Shard(0)], [1]),
        (mesh, [Replicate()], []),
        (wide, [Shard(0), Shard(1)], [3, 6]),
        (wide, [Replicate(), Shard(0)], [0, 3]),
        (high, [Replicate(), Shard(0)], [5]),
    ]
    plain = [torch.randn(shape, generator=torch.Generator().manual_seed(1)) for *_, shape in layouts]
    plain = [param.to(dtype) for param in plain]
    plain.append(torch.ones(6))
    spread = [distribute_tensor(p.clone(), m, at) for p, (m, at, _) in zip(plain, layouts, strict=False)]
    return nn.ParameterList(plain), nn.ParameterList([*spread, plain[-1].clone()])


def give_grads(model: nn.Module, step: int) -> None:
    """Gives every parameter a gradient that depends on the step, spread as the parameter is."""
    random = torch.Generator().manual_seed(100 + step)
    for param in model.parameters():
        grad = torch.randn(param.shape, generator=random).to(param.dtype)
        if isinstance(param, DTensor):
            grad = distribute_tensor(grad, param.device_mesh, param.placements)
        param.grad = grad


def batch(step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(200 + step)
    return torch.randn(8, 5, generator=random), torch.randn(8, 1, generator=random)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, part: slice = slice(None), steps: int = 5
) -> None:
    for step in range(steps):
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
