"""Cases of tests/test_distributed.py: what several processes save, one and several others load."""

from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed_group import assert_same_states, give_grads, network, set_two_masks, sharded_network
from stepping import OPTIONS
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_state_dict,
)

from grokfused import GrokAdamW


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


CASES = [a_full_state_dict_fits_one_process, save]
