"""Cases of tests/test_distributed.py: what several processes save, one and several others load."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed_group import (
    ROUNDING,
    assert_same_bits,
    assert_same_states,
    give_grads,
    network,
    set_two_masks,
    sharded_network,
    whole,
)
from stepping import OPTIONS
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    get_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)

from grokfused import GrokAdamW
from grokfused.dcp import LoadPlanner

PAGE = Path(__file__).parents[1] / "docs" / "distributed.md"


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


def a_full_state_dict_is_spread_over_two(_: Path) -> None:
    plain, model = network(), sharded_network()
    one, many = GrokAdamW(plain.parameters(), **OPTIONS), GrokAdamW(model.parameters(), lr=0.5)
    trained(plain, one, 2)
    for from_first in False, True:
        give_grads(model, 50)
        many.step()
        many.zero_grad()
        set_two_masks(many, model)  # torch spreads what there is a place for
        full = get_optimizer_state_dict(plain, one) if dist.get_rank() == 0 or not from_first else {}
        options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=from_first)
        set_optimizer_state_dict(model, many, full, options=options)
        for param, other in zip(model.parameters(), plain.parameters(), strict=True):
            for key, state in one.state[other].items():
                if key != "mask":
                    assert_same_bits(many.state[param][key], state, key)
        masks = zip(many.masks().values(), one.masks().values(), strict=True)
        assert all(torch.equal(whole(mask), other) for mask, other in masks)


def torch_goes_on_from_an_export_of_shards(_: Path) -> None:
    plain, model = network(), sharded_network()
    taken_over = []
    for net in plain, model:
        optimizer = GrokAdamW(
            net.parameters(), **OPTIONS, state_dtype=torch.bfloat16, state_rounding="nearest"
        )
        give_grads(net, 0)
        optimizer.step()
        torchs = torch.optim.AdamW(net.parameters())
        torchs.load_state_dict(optimizer.torch_state_dict())
        give_grads(net, 1)
        torchs.step()
        taken_over.append(torchs)
    one, many = taken_over
    for param, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(whole(param), other.detach(), **ROUNDING)
        for key, state in one.state[other].items():
            torch.testing.assert_close(whole(many.state[param][key]), state, **ROUNDING)


def a_run_of_one_process_is_spread_as_documented(_: Path) -> None:
    """Each process has all masks whole, and an optimizer without a place for them takes its part."""
    plain, model = network(), sharded_network()
    one, many = GrokAdamW(plain.parameters(), **OPTIONS), GrokAdamW(model.parameters(), **OPTIONS)
    trained(plain, one, 2)
    saved, loaded = {"model": plain.state_dict(), "optimizer": one.state_dict()}, network()
    recipe: dict[str, Any] = {}
    exec(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0], recipe)
    recipe["spread"](saved, loaded, GrokAdamW(loaded.parameters()), model, many)
    for step in range(2, 4):
        for net, optimizer in (plain, one), (model, many):
            give_grads(net, step)
            optimizer.step()
    assert_same_states(many, one)


def flattened_states_go_through_a_file(folder: Path) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    model, many = new_optimizer(steps=0)
    trained(model, many, 3)
    other, resumed = new_optimizer(steps=1, masked=(0, 3))
    saved, found = (
        {"weights": net.state_dict(), "optimizer": get_optimizer_state_dict(net, optimizer, options=options)}
        for net, optimizer in ((model, many), (other, resumed))
    )
    dcp.save(saved, checkpoint_id=folder / "flattened")
    dcp.load(found, checkpoint_id=folder / "flattened")
    set_optimizer_state_dict(other, resumed, found["optimizer"], options=options)
    for net, optimizer in (model, many), (other, resumed):
        give_grads(net, 3)
        optimizer.step()
    assert_same_states(resumed, many)


def states_made_by_torch_count_no_step(_: Path) -> None:
    plain, model = network(), sharded_network()
    one, many = GrokAdamW(plain.parameters(), **OPTIONS), GrokAdamW(model.parameters(), **OPTIONS)
    get_state_dict(model, many)
    for step in range(2):
        for net, optimizer in (plain, one), (model, many):
            give_grads(net, step)
            optimizer.step()
    assert_same_states(many, one)


def trained(model: nn.Module, optimizer: GrokAdamW, steps: int) -> None:
    set_two_masks(optimizer, model)
    for step in range(steps):
        give_grads(model, step)
        optimizer.step()


def save(folder: Path) -> None:
    """Trains three steps, saves, and notes what one process has three steps later."""
    plain, model, unmasked = network(), sharded_network(), sharded_network()
    one, many = GrokAdamW(plain.parameters(), **OPTIONS), GrokAdamW(model.parameters(), **OPTIONS)
    for net, optimizer in (plain, one), (model, many):
        trained(net, optimizer, 3)
    save_all(model, many, folder / "checkpoint")
    save_all(unmasked, GrokAdamW(unmasked.parameters()), folder / "unmasked")
    for step in range(3, 6):
        give_grads(plain, step)
        one.step()
    if dist.get_rank() == 0:
        torch.save({"model": plain.state_dict(), "optimizer": one.state_dict()}, folder / "later.pt")


def save_all(model: nn.Module, optimizer: GrokAdamW, folder: Path) -> None:
    weights, states = get_state_dict(model, optimizer)
    dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder)


def load_all(model: nn.Module, optimizer: GrokAdamW, folder: Path, planner: Any = None) -> None:
    weights, states = get_state_dict(model, optimizer)
    found = {"model": weights, "optimizer": states}
    dcp.load(found, checkpoint_id=folder, planner=planner)
    set_state_dict(model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"])


def new_optimizer(*, steps: int, masked: tuple[int, ...] = ()) -> tuple[nn.Module, GrokAdamW]:
    """Returns a network of zeros, sharded where there are several processes, and an optimizer of it."""
    model = sharded_network() if dist.get_world_size() > 1 else network()
    optimizer = GrokAdamW(model.parameters(), **OPTIONS)
    for param in model.parameters():
        nn.init.zeros_(param)
    for layer in masked:
        param = model[layer].weight
        optimizer.set_mask(param, torch.ones_like(param, dtype=torch.bool), "freeze")
    for step in range(steps):
        give_grads(model, 50 + step)
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def load(folder: Path) -> None:
    """Resumes on this number of processes from what ``save`` has written."""
    plain = network()
    one = GrokAdamW(plain.parameters())
    later = torch.load(folder / "later.pt", weights_only=True)
    plain.load_state_dict(later["model"])
    one.load_state_dict(later["optimizer"])
    for (model, many), planner in (
        (new_optimizer(steps=1, masked=(0, 3)), None),  # where there is a place for each mask
        (new_optimizer(steps=0), LoadPlanner()),
        (new_optimizer(steps=2, masked=(1, 3)), LoadPlanner()),
    ):
        load_all(model, many, folder / "checkpoint", planner)
        for step in range(3, 6):
            give_grads(model, step)
            many.step()
        assert_same_states(many, one)


def masks_are_never_lost_unnoticed(folder: Path) -> None:
    for masked in (), (3,):
        model, optimizer = new_optimizer(steps=1, masked=masked)
        with pytest.raises(
            ValueError, match=r"saved with 2 masks, of which \d arrived.*planner=grokfused.dcp"
        ):
            load_all(model, optimizer, folder / "checkpoint")
        assert len(optimizer.masks()) == len(masked)
    model, optimizer = new_optimizer(steps=1, masked=(0, 3))
    load_all(model, optimizer, folder / "unmasked", LoadPlanner())
    assert optimizer.masks() == {}


# Not full when it is saved, and full some steps later; after a first step without the filter.
WINDOW = {"window_size": 5, "window_dtype": torch.bfloat16}


def save_windows(folder: Path) -> None:
    plain, model = network(), sharded_network()
    one, many = (GrokAdamW(net.parameters(), **OPTIONS, **WINDOW) for net in (plain, model))
    for net, optimizer in (plain, one), (model, many):
        optimizer.param_groups[0]["grad_filter"] = "none"
        trained(net, optimizer, 1)
        optimizer.param_groups[0]["grad_filter"] = "mean"
        for step in range(1, 4):
            give_grads(net, step)
            optimizer.step()
    assert_same_states(many, one)
    save_all(model, many, folder / "windows")
    for step in range(4, 9):
        give_grads(plain, step)
        one.step()
    if dist.get_rank() == 0:
        torch.save({"model": plain.state_dict(), "optimizer": one.state_dict()}, folder / "windows.pt")


def load_windows(folder: Path) -> None:
    """Resumes on this number of processes, in optimizers that have had a place for windows, or none."""
    plain = network()
    one = GrokAdamW(plain.parameters(), **WINDOW)
    later = torch.load(folder / "windows.pt", weights_only=True)
    plain.load_state_dict(later["model"])
    one.load_state_dict(later["optimizer"])
    for steps, grad_filter in (0, "ema"), (2, "ema"), (2, "mean"):
        model = sharded_network() if dist.get_world_size() > 1 else network()
        many = GrokAdamW(model.parameters(), **{**OPTIONS, **WINDOW, "grad_filter": grad_filter})
        for step in range(steps):
            give_grads(model, 50 + step)
            many.step()
            many.zero_grad()
        load_all(model, many, folder / "windows", LoadPlanner())
        for step in range(4, 9):
            give_grads(model, step)
            many.step()
        assert_same_states(many, one)


def neither_are_moments(folder: Path) -> None:
    """A mask set before the first step is not all that is read of its parameter's state."""
    _, optimizer = new_optimizer(steps=0, masked=(0,))
    states = optimizer.state_dict()
    dcp.load({"optimizer": {"state": {"0.weight": states["state"][0]}}}, checkpoint_id=folder / "checkpoint")
    assert states["state"][0]["step"] == 3
    del states["state"][0]["step"]
    with pytest.raises(ValueError, match=r"lacks \['step'\].*planner=grokfused.dcp.LoadPlanner"):
        optimizer.load_state_dict(states)


CASES = [
    a_full_state_dict_fits_one_process,
    a_full_state_dict_is_spread_over_two,
    torch_goes_on_from_an_export_of_shards,
    a_run_of_one_process_is_spread_as_documented,
    flattened_states_go_through_a_file,
    states_made_by_torch_count_no_step,
    save,
    save_windows,
]
LOADS = [load, masks_are_never_lost_unnoticed, neither_are_moments, load_windows]
