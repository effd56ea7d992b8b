"""Cases of tests/test_distributed.py: states of 8 bits, whose blocks are those of each process's shard."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed_checkpoints import save_all
from distributed_group import assert_same_bits, every_layout, give_grads, network, sharded_network, whole
from stepping import OPTIONS
from torch import nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor

from grokfused import GrokAdamW, decode_state

IN_8_BITS = {**OPTIONS, "state_dtype": "block8", "amsgrad": True}


def trained(model: nn.Module, optimizer: GrokAdamW, steps: int) -> None:
    for step in range(steps):
        give_grads(model, step)
        optimizer.step()
        optimizer.zero_grad()


def shards_of_8_bits_are_stepped_as_tensors_of_their_own(_: Path) -> None:
    for dtype in torch.float32, torch.bfloat16:
        _, model = every_layout(dtype)
        params = [param for param in model.parameters() if isinstance(param, DTensor)]
        locals_ = [param.to_local().detach().clone().requires_grad_() for param in params]
        many, own = GrokAdamW(params, **IN_8_BITS), GrokAdamW(locals_, **IN_8_BITS)
        for step in range(4):
            give_grads(model, step)
            for param, shard in zip(params, locals_, strict=True):
                shard.grad = param.grad.to_local().clone()
            many.step()
            own.step()
        for number, (param, shard) in enumerate(zip(params, locals_, strict=True)):
            assert_same_bits(param.to_local(), shard)
            for key, state in own.state[shard].items():
                mine = many.state[param][key]
                assert_same_bits(mine.to_local() if isinstance(mine, DTensor) else mine, state, key)
            assert many.state[param]["exp_avg"].placements == param.placements
            shown = many.state_dict()["state"][number]["exp_avg"]
            assert (shown.dtype, shown.placements) == (torch.bfloat16, param.placements)


def save_8_bits(folder: Path) -> None:
    model = sharded_network()
    many = GrokAdamW(model.parameters(), **IN_8_BITS)
    trained(model, many, 3)
    save_all(model, many, folder / "block8")
    found = [
        {name: whole(array) for name, array in decode_state(many, param).items()}
        for param in model.parameters()
    ]
    if dist.get_rank() == 0:
        torch.save(found, folder / "block8.pt")


def load_8_bits(folder: Path) -> None:
    """On this number of processes blocks are others: what their windows hold is what was saved."""
    truth = torch.load(folder / "block8.pt", weights_only=True)
    for state_dtype, dtype in ("block8", torch.uint8), ("float32", torch.float32):
        model = sharded_network() if dist.get_world_size() > 1 else network()
        many = GrokAdamW(model.parameters(), **IN_8_BITS)
        trained(model, many, 1)
        found = {"optimizer": get_optimizer_state_dict(model, many)}
        dcp.load(found, checkpoint_id=folder / "block8")
        for group in found["optimizer"]["param_groups"]:
            group["state_dtype"] = state_dtype
        set_optimizer_state_dict(model, many, found["optimizer"])
        assert {state["exp_avg"].dtype for state in many.state.values()} == {dtype}
        for param, saved in zip(model.parameters(), truth, strict=True):
            found = decode_state(many, param)
            assert found.keys() == saved.keys()
            for name, array in found.items():
                assert (whole(array) - saved[name]).norm() <= saved[name].norm() / 16, name
        trained(model, many, 1)


CASES = [shards_of_8_bits_are_stepped_as_tensors_of_their_own, save_8_bits]
LOADS = [load_8_bits]
