"""Masks under names, in checkpoints and copies, and from torch.nn.utils.prune."""

import copy

import pytest
import torch
from masked import DTYPES, made, set_grad, some
from stepping import OPTIONS, through_a_file
from torch import nn
from torch.nn.utils import prune

from grokfused import GrokAdamW
from grokfused.lab.agreement import differing_bits
from grokfused.pruning import from_prune
from grokfused.step import mask

# --- names, checkpoints, copies --------------------------------------------------------------------------


def test_names_and_parameters_mean_the_same() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    optimizer = GrokAdamW(model.named_parameters())
    kept = {"0.weight": some(model[0].weight), model[1].weight: some(model[1].weight)}
    optimizer.set_masks(kept, mode="freeze")
    found = optimizer.masks()
    assert list(found) == [model[0].weight, model[1].weight]
    assert torch.equal(found[model[0].weight], kept["0.weight"])
    optimizer.remove_mask("0.weight")
    optimizer.set_masks(optimizer.masks())  # what masks() returns can be set again
    assert list(optimizer.masks()) == [model[1].weight]


@pytest.mark.parametrize("mode", mask.MODES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_checkpoint_holds_a_mask_and_goes_on_bit_for_bit(dtype, mode) -> None:
    params = [made([33, 5], dtype), made([40], dtype)]
    optimizer = GrokAdamW(params, state_dtype=torch.bfloat16, **OPTIONS)
    set_grad(params[0], 1, special=False)
    optimizer.step()
    optimizer.set_mask(params[0], some(params[0]), mode)
    saved = through_a_file(optimizer.state_dict())
    assert all(isinstance(value, torch.Tensor) for value in saved["state"][0].values())
    codes = torch.where(some(params[0]), 1, {"zero": 2, "freeze": 3}[mode])
    assert torch.equal(saved["state"][0]["mask"], codes.to(torch.uint8))
    copies = [param.detach().contiguous().requires_grad_() for param in params]  # in another memory order
    resumed = GrokAdamW(copies)
    resumed.load_state_dict(saved)
    assert resumed.state[copies[0]]["mask"].words.dtype is torch.int32
    for number in range(2):
        for each, other in zip(params, copies, strict=True):
            set_grad(each, 3 + number, special=False)
            other.grad = each.grad.contiguous()
        optimizer.step()
        resumed.step()
    if torch.bfloat16 is not optimizer.state[params[1]]["exp_avg"].dtype:
        assert differing_bits(copies[0].detach(), params[0].detach()) == 0
    assert differing_bits(copies[1].detach(), params[1].detach()) == 0
    assert torch.equal(resumed.masks()[copies[0]], some(params[0]))


@pytest.mark.parametrize("mode", mask.MODES)
def test_a_mask_of_an_older_checkpoint_is_taken(mode) -> None:
    optimizer = GrokAdamW([param := made([7, 9])], **OPTIONS)
    optimizer.set_mask(param, some(param), mode)
    saved = through_a_file(optimizer.state_dict())
    saved["state"][0] |= {"mask": some(param), "mask_mode": mode}
    resumed = GrokAdamW([other := made([7, 9])])
    resumed.load_state_dict(through_a_file(saved))
    assert (resumed.state[other]["mask"].mode, "mask_mode" in resumed.state[other]) == (mode, False)
    assert torch.equal(resumed.masks()[other], some(param))


def test_a_mask_may_be_saved_before_the_first_step() -> None:
    param, other = made([7, 9]), made([7, 9])
    optimizer, resumed = GrokAdamW([param]), GrokAdamW([other])
    optimizer.set_mask(param, some(param), "freeze")
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert torch.equal(resumed.masks()[other], some(param))
    set_grad(other, 1)
    resumed.step()
    assert torch.equal(other[~some(param)], made([7, 9])[~some(param)])


def test_a_state_dict_without_masks_takes_them_away_and_one_that_is_wrong_is_refused() -> None:
    param = made([7, 9])
    optimizer = GrokAdamW([param])
    plain = copy.deepcopy(optimizer.state_dict())
    optimizer.set_mask(param, some(param))
    saved = through_a_file(optimizer.state_dict())
    for spoilt, message in (
        ({"mask": some(param)}, "mode of a mask must be one of .* got None"),
        ({"mask": torch.zeros(7, 9, dtype=torch.uint8)}, "holds 0, as where none was read.*LoadPlanner"),
        ({"mask": saved["state"][0]["mask"] + 1}, r"must hold 1 and one of .*, got \[2, 3\]"),
        ({"mask_mode": "zero"}, "must be a bool tensor"),
        ({"mask": torch.ones(7, 9), "mask_mode": "zero"}, "must be a bool tensor.* got torch.float32"),
        ({"mask": torch.ones(9, 7, dtype=torch.bool), "mask_mode": "zero"}, "must have its shape"),
    ):
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict({**saved, "state": {0: spoilt}})
        assert torch.equal(optimizer.masks()[param], some(param))
    optimizer.load_state_dict(plain)
    assert optimizer.masks() == {}


def test_a_mask_that_got_lost_on_the_way_is_missed() -> None:
    params = [made([7, 9]), made([5]), made([3])]
    optimizer = GrokAdamW([{"params": params[:2]}, {"params": params[2:]}])
    for param in params[:2]:
        optimizer.set_mask(param, some(param))
    saved = through_a_file(optimizer.state_dict())
    assert [group["masks"] for group in saved["param_groups"]] == [2, 0]
    del saved["state"][1]["mask"]
    with pytest.raises(ValueError, match="saved with 2 masks, of which 1 arrived"):
        optimizer.load_state_dict(saved)
    assert len(optimizer.masks()) == 2
    saved["param_groups"][0]["masks"] = 1  # on purpose
    optimizer.load_state_dict(saved)
    assert list(optimizer.masks()) == params[:1]
    assert [group["masks"] for group in optimizer.state_dict()["param_groups"]] == [1, 0]


def test_a_mask_is_refused_where_its_parameters_states_cannot_be_made() -> None:
    param, other = made([7, 9]), made([3])
    optimizer = GrokAdamW([param, other])
    optimizer.param_groups[0]["state_dtype"] = "float8"
    with pytest.raises(ValueError, match="state_dtype must be one of"):
        optimizer.set_masks({param: some(param), other: some(other)})
    assert not optimizer.state
    optimizer.param_groups[0]["state_dtype"] = "float32"
    set_grad(other, 1)
    optimizer.step()
    del optimizer.state[other]["exp_avg"]
    with pytest.raises(RuntimeError, match="has lost 'exp_avg'"):
        optimizer.set_masks({param: some(param), other: some(other)})
    assert optimizer.masks() == {}


def test_a_copy_and_a_pickled_optimizer_have_masks_of_their_own() -> None:
    param = made([7, 9])
    optimizer = GrokAdamW([param], **OPTIONS)
    optimizer.set_mask(param, some(param))
    copied_param, copied = copy.deepcopy((param, optimizer))
    copied.remove_mask(copied_param)
    assert list(optimizer.masks()) == [param]


# --- torch.nn.utils.prune --------------------------------------------------------------------------------


def test_masks_of_torch_prune_are_taken_over() -> None:
    model = nn.Sequential(nn.Linear(9, 7), nn.Linear(7, 5))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    prune.random_structured(model[1], "weight", amount=2, dim=0)
    prune.random_unstructured(model[1], "bias", amount=1)
    expected = {
        name.removesuffix("_mask"): values.clone().bool()
        for name, values in model.named_buffers()
        if name.endswith("_mask")
    }
    inputs = torch.randn(3, 9)
    output = model(inputs).detach()
    found = from_prune(model)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert {name for name, _ in model.named_parameters()} == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert torch.equal(model(inputs), output)
    optimizer = GrokAdamW(model.named_parameters(), **OPTIONS)
    optimizer.set_masks(found)
    model(inputs).sum().backward()
    optimizer.step()
    assert all(not dict(model.named_parameters())[name][~kept].any() for name, kept in found.items())


def test_a_module_that_is_not_pruned_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing in this module is pruned"):
        from_prune(nn.Linear(2, 2))


def test_a_mask_on_the_meta_device_is_saved_and_loaded() -> None:
    param = torch.ones(4, 3, device="meta").requires_grad_()
    optimizer = GrokAdamW([param])
    other = GrokAdamW([torch.ones(4, 3).requires_grad_()])
    other.set_mask(other.param_groups[0]["params"][0], torch.eye(4, 3).bool())
    optimizer.load_state_dict(other.state_dict())
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.masks()[param].is_meta
