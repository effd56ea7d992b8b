"""Exported state dicts: torch.optim loads them and goes on as if it had trained from the beginning."""

import copy
from typing import Any

import pytest
import torch
from checkpointing import copies
from stepping import ADAM, BACKENDS, OPTIONS, through_a_file, train, ulps_of_the_largest, values
from torch import Tensor

from grokfused import GrokAdam, GrokAdamW
from grokfused.lab.agreement import differing_bits

PAIRS = [(GrokAdamW, torch.optim.AdamW), (GrokAdam, torch.optim.Adam)]
UNFILTERED: dict[str, Any] = {"lamb": 0.0, "grad_filter": "none"}
# torch rounds in another order: a few units in the last place of the largest element.
ULPS = 4


def new_params(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    random = torch.Generator().manual_seed(1)
    made = [torch.randn(shape, generator=random).to(dtype) for shape in ([9, 7], [], [257])]
    made.append(torch.randn(5, 6, generator=random).to(dtype).t())
    return [param.requires_grad_() for param in made]


def assert_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Compares two state dicts: the same keys, options and bits."""
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for number, state in theirs["state"].items():
        assert ours["state"][number].keys() == state.keys()
        for key, value in state.items():
            assert differing_bits(ours["state"][number][key], value) == 0, (number, key)
            assert ours["state"][number][key].stride() == value.stride(), (number, key)


@pytest.mark.parametrize("options", [{}, {"amsgrad": True}, {"maximize": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["AdamW", "Adam"])
def test_torch_goes_on_as_if_it_had_trained_from_the_beginning(ours, theirs, backend, options) -> None:
    # The last one lies transposed: torch's fused CPU step then reads and writes elements in another order.
    count = 3 if "fused" in options else 4
    all_along = theirs(new_params()[:count], **ADAM, **options)
    optimizer = ours(new_params()[:count], **ADAM, **UNFILTERED, **options, backend=backend)
    for each in (all_along, optimizer):
        train(each, 5)
    taking_over = theirs(copies(optimizer.param_groups[0]["params"]), lr=0.5)
    taking_over.load_state_dict(optimizer.torch_state_dict())
    for each in (all_along, taking_over):
        train(each, 8, seed=5)
    found, expected = values(taking_over), values(all_along)
    assert found.keys() == expected.keys()
    assert max(ulps_of_the_largest(found[name], expected[name]) for name in found) <= ULPS
    assert taking_over.state_dict()["param_groups"] == all_along.state_dict()["param_groups"]


@pytest.mark.parametrize("amsgrad", [False, True], ids=["adam", "amsgrad"])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["AdamW", "Adam"])
def test_what_was_imported_is_exported_again_to_the_bit(ours, theirs, amsgrad) -> None:
    params = new_params()
    torchs = theirs(
        [{"params": params[:2]}, {"params": params[2:], "lr": 0.7, "initial_lr": 0.9}],
        amsgrad=amsgrad,
        **ADAM,
    )
    train(torchs, 3)
    del torchs.state[params[1]]  # as of a parameter that never had a gradient
    saved = copy.deepcopy(torchs.state_dict())
    optimizer = ours([{"params": params[:2]}, {"params": params[2:]}], lamb=1.7)
    optimizer.load_state_dict(saved)
    assert_same(optimizer.torch_state_dict(), saved)


@pytest.mark.parametrize(("ours", "theirs"), PAIRS, ids=["AdamW", "Adam"])
def test_an_export_imported_again_has_the_moments_the_step_and_torchs_options(ours, theirs) -> None:
    optimizer = ours(new_params(), **OPTIONS, amsgrad=True)
    train(optimizer, 3)
    saved = through_a_file(optimizer.torch_state_dict())
    resumed = ours(copies(optimizer.param_groups[0]["params"]), alpha=0.6)
    resumed.load_state_dict(saved)
    kept = {name: value for name, value in values(optimizer).items() if "grad_ema" not in name}
    found = values(resumed)
    assert found.keys() == kept.keys()
    assert not any(differing_bits(found[name], kept[name]) for name in kept)
    assert {name: resumed.param_groups[0][name] for name in ADAM} == ADAM
    assert resumed.param_groups[0]["alpha"] == 0.6


def test_the_groups_hold_torchs_options_and_what_others_put_there() -> None:
    params = [(f"layer.{number}", param) for number, param in enumerate(new_params())]
    optimizer = GrokAdamW(
        [{"params": params[:1]}, {"params": params[1:], "lr": 0.25}], **OPTIONS, max_grad_norm=0.5, fused=True
    )
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    exported = optimizer.torch_state_dict()["param_groups"]
    theirs = torch.optim.AdamW([param for _, param in params]).param_groups[0]
    for group in exported:
        assert group.keys() == {*theirs, "param_names", "initial_lr"}
    assert [group["params"] for group in exported] == [[0], [1, 2, 3]]
    assert [group["lr"] for group in exported] == [OPTIONS["lr"], 0.25]
    assert exported[1]["param_names"] == ["layer.1", "layer.2", "layer.3"]
    assert all(group["fused"] is True and group["decoupled_weight_decay"] is True for group in exported)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bfloat16_states_are_widened_exactly_and_torch_rounds_to_the_parameters_dtype(dtype) -> None:
    optimizer = GrokAdamW(new_params(dtype), **OPTIONS, state_dtype=torch.bfloat16)
    train(optimizer, 3)
    exported = optimizer.torch_state_dict()
    taking_over = torch.optim.AdamW(copies(optimizer.param_groups[0]["params"]))
    taking_over.load_state_dict(exported)
    pairs = zip(optimizer.state.values(), taking_over.state.values(), strict=True)
    for number, (state, theirs) in enumerate(pairs):
        for key in ("exp_avg", "exp_avg_sq"):
            assert differing_bits(exported["state"][number][key], state[key].float()) == 0
            assert differing_bits(theirs[key], state[key].to(dtype)) == 0
    train(taking_over, 1)


def test_an_export_shares_no_memory_with_the_optimizer() -> None:
    optimizer = GrokAdamW(new_params(), **{**OPTIONS, "lr": torch.tensor(0.5)})
    train(optimizer, 2)
    exported, before = optimizer.torch_state_dict(), values(optimizer)
    kept = copy.deepcopy(exported)
    torchs = torch.optim.AdamW(copies(optimizer.param_groups[0]["params"]))
    torchs.load_state_dict(exported)
    train(torchs, 2)
    after = values(optimizer)
    assert not any(differing_bits(after[name], before[name]) for name in before)
    exported = optimizer.torch_state_dict()
    optimizer.param_groups[0]["lr"].fill_(0.25)
    train(optimizer, 2)
    assert_same(exported, kept)


def test_amsgrad_turned_on_since_the_last_step_is_exported_with_its_memory() -> None:
    optimizer = GrokAdamW(new_params(), **ADAM, **UNFILTERED)
    train(optimizer, 2)
    optimizer.param_groups[0]["amsgrad"] = True
    torchs = torch.optim.AdamW(copies(optimizer.param_groups[0]["params"]))
    torchs.load_state_dict(optimizer.torch_state_dict())
    for each in (optimizer, torchs):
        train(each, 2, seed=5)
    found, expected = values(torchs), values(optimizer)
    assert max(ulps_of_the_largest(found[name], expected[name]) for name in found) <= ULPS


def test_a_mask_is_refused_by_name_and_an_optimizer_that_never_stepped_exports_no_state() -> None:
    params = new_params()
    optimizer = GrokAdamW([("embedding", params[0]), ("gain", params[1])], **OPTIONS)
    assert optimizer.torch_state_dict()["state"] == {}
    optimizer.set_mask("embedding", torch.ones(9, 7).bool())
    with pytest.raises(ValueError, match=r"parameter 'embedding' .* has a mask.*call remove_mask first"):
        optimizer.torch_state_dict()
    optimizer.remove_mask("embedding")
    torch.optim.AdamW(copies(params[:2])).load_state_dict(optimizer.torch_state_dict())


def test_a_state_that_has_lost_a_moment_is_refused() -> None:
    optimizer = GrokAdamW(new_params(), **OPTIONS)
    train(optimizer, 1)
    del optimizer.state[optimizer.param_groups[0]["params"][2]]["exp_avg_sq"]
    with pytest.raises(RuntimeError, match=r"the state of parameter 2 .* has lost 'exp_avg_sq'"):
        optimizer.torch_state_dict()
